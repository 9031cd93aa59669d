"""Whether the files of a model are those that a flavour needs, found out before anything long starts. Without torch.

Local files are judged by their configurations and headers, those on a hub by a few kilobytes. Imports sources,
recognition, flavours, errors. A message says what was found, what was expected, and which option or flavour fits.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from simplewan.errors import Problem, UserError
from simplewan.flavours import EXPERT_SUBFOLDER, FLAVOURS, HIGH, LOW, SIZES, Flavour, Size, not_trained
from simplewan.headers import PICKLED, WEIGHT_ENDINGS, weight_files
from simplewan.models.wan.sources import (
    OTHER_PLACES,
    ModelSource,
    Source,
    embeds_tokenizer,
    needs_image_embeds,
    part_config,
    part_path,
    source,
)
from simplewan.recognition import (
    KINDS,
    TRANSFORMER,
    VAE,
    Found,
    of_config,
    read_config,
    recognise,
)

_CONFIG_NAMES = {"tokenizer": "tokenizer_config.json", "image_processor": "preprocessor_config.json"}
_KINDS = {"transformer": TRANSFORMER, "transformer_2": TRANSFORMER, "vae": VAE}
_READABLE = (None, "fp8", "fp8 scaled")
_SHARD = re.compile(r"(.*-)(\d{5})-of-(\d{5})(\.\w+)")
_TIME = "take the published weights"
# Only TI2V's time enters once a token, which is what the option is about.
_TI2V_TIME = (
    f"{_TIME}; wan_force_2_1_time_embedding is for checkpoints that were trained with one time a sample, as Wan 2.1 "
    "is, whose shapes are the same"
)


def check_files(
    model: ModelSource,
    flavour: Flavour,
    *,
    experts: Sequence[str] | None = None,
    with_other_stage: bool = False,
    look: Callable[[Path, Source, Flavour], list[Problem]] | None = None,
) -> None:
    """Look at every part that is needed, as far as it is local, and whether the others can be had.

    Needed are the transformers of `experts`, by default those that `flavour` trains, the VAE and the text encoder, for
    Wan 2.1 I2V the image encoder; and the other stage's transformer when validation renders with it. `look` says what
    is wrong with what is local, by default `check_part`. Raises UserError with all problems.
    """
    look = look or check_part
    wanted = [EXPERT_SUBFOLDER[expert] for expert in (flavour.trained_experts if experts is None else experts)]
    clip = ("image_encoder", "image_processor") if needs_image_embeds(flavour) else ()
    problems = [
        problem
        for part in (*wanted, "vae", "text_encoder", "tokenizer", *clip)
        for problem in _problems_of(model, flavour, part, look)
    ]
    if clip and not problems:
        problems = [problem for part in wanted for problem in _other_clip(model, flavour, part)]
    other = flavour.other_stage
    if with_other_stage and other is not None:
        for problem in _problems_of(model, flavour, EXPERT_SUBFOLDER[other], look):
            fix = f"{problem.fix}; or set wan_validation_load_other_stage, which needs it, to false"
            if problem not in problems:  # a model that is not there at all is told once
                problems.append(replace(problem, fix=fix))
    if flavour.boundary is not None and wanted and not problems:
        problems = _same_twice(model, flavour)
    unique = list({str(problem): problem for problem in problems}.values())
    if unique:
        raise UserError(*unique)


def _problems_of(
    model: ModelSource, flavour: Flavour, part: str, look: Callable[[Path, Source, Flavour], list[Problem]]
) -> Sequence[Problem]:
    try:
        place = source(model, flavour, part)
        if place.is_local:
            return look(part_path(place), place, flavour)
        found = of_config(read_config(part_config(place)))
        return [] if found is None else _mismatch(found, place, flavour)
    except UserError as error:
        return error.problems


def _other_clip(model: ModelSource, flavour: Flavour, transformer: str) -> list[Problem]:
    """That the image encoder's embeddings do not fit into the transformer, as far as both are local."""
    place, encoder = source(model, flavour, transformer), source(model, flavour, "image_encoder")
    if not (place.is_local and encoder.is_local):
        return []
    tower, taker = recognise(part_path(encoder)), recognise(part_path(place))
    width, wanted = tower and tower.width, taker and taker.image_dim
    if None in (width, wanted) or width == wanted:
        return []
    message = f"has an image_encoder {width} wide, and a {transformer} that takes {wanted}"
    return [Problem("model", message, key=encoder.key, value=encoder.name, fix="take both from one model")]


def _same_twice(model: ModelSource, flavour: Flavour) -> list[Problem]:
    """That both experts are to be read from one and the same place."""
    places = [source(model, flavour, EXPERT_SUBFOLDER[expert]) for expert in (HIGH, LOW)]
    if not all(place.is_local and Path(place.name).expanduser().exists() for place in places):
        return []
    high, low = (part_path(place) for place in places)
    if not (high.exists() and low.exists() and high.samefile(low)):
        return []
    fix = "pretrained_transformer_model_name_or_path takes high noise, pretrained_transformer_2_... low noise"
    return [Problem("model", "is given for both experts", key=places[1].key, value=places[1].name, fix=fix)]


def check_part(path: Path, place: Source, flavour: Flavour) -> list[Problem]:
    """What is wrong with a part's file or folder: not there, not readable, incomplete, or of another model."""
    try:
        wrong = _file_fault(path, place) if path.is_file() else _folder_fault(path, place)
        if wrong is not None:
            return [Problem("model", wrong[0], key=place.key, value=place.name, fix=wrong[1])]
        if place.part in _CONFIG_NAMES:
            return []
        found = recognise(path)
    except (OSError, ValueError) as error:
        message = str(error) if str(error).startswith("has a") else f"cannot be read: {error}"
        return [Problem("model", message, key=place.key, value=place.name, fix="copy or download it again")]
    if found is not None:
        return _mismatch(found, place, flavour)
    if path.is_dir() or path.suffix in PICKLED:
        return []  # the rehearsal will tell
    fix = f"its tensors have to be named as in Wan's repositories, ComfyUI's files or diffusers' {place.part}"
    return [Problem("model", f"is no {_wanted(place)[0][2:]}", key=place.key, value=place.name, fix=fix)]


def _file_fault(file: Path, place: Source) -> tuple[str, str] | None:
    """What is wrong with a file whatever is in it, and the fix."""
    if file.suffix not in WEIGHT_ENDINGS:
        what = "is a GGUF file, whose quantised weights are" if file.suffix == ".gguf" else "is a file that is"
        return f"{what} not read", "give a .safetensors or .pth file, or a folder"
    if place.part == "tokenizer" and not embeds_tokenizer(file):
        return "is a file without a tokenizer", "let pretrained_tokenizer_model_name_or_path name google/umt5-xxl"
    return None


def _folder_fault(folder: Path, place: Source) -> tuple[str, str] | None:
    config_name = _CONFIG_NAMES.get(place.part, "config.json")
    where = "" if place.subfolder is None else place.subfolder + "/"
    bare = _KINDS.get(place.part) == TRANSFORMER and folder.is_dir() and len(_models_in(folder)) == 1
    if not (folder / config_name).is_file() and not bare:
        several = folder.is_dir() and len(_models_in(folder)) > 1
        layout = "the folder must be in diffusers' layout (as save_pretrained writes it), or an original repository's"
        return f"has no {where}{config_name}", "name one file of it" if several else layout
    if place.part == "tokenizer":
        return None
    try:
        read_config(folder, config_name)
    except ValueError as error:
        return str(error), "copy the model again"
    missing = missing_weights(folder) if place.part not in _CONFIG_NAMES else None
    return (f"lacks {missing} in {folder.name}/", "copy or download the model again") if missing else None


def _models_in(folder: Path) -> set[str]:
    """The models in a folder, by their files' names; all shards of one count once."""
    names = (file.name for file in weight_files(folder))
    return {match[1] if (match := _SHARD.fullmatch(name)) else name for name in names}


def missing_weights(folder: Path) -> str | None:
    """The first weight file that should be in `folder` and is not, or None."""
    files = weight_files(folder)
    if not files:
        return "weights (*.safetensors)"
    expected = list(files)
    if shard := _SHARD.fullmatch(files[0].name):
        count = int(shard[3])
        expected += [folder / f"{shard[1]}{number:05d}-of-{count:05d}{shard[4]}" for number in range(1, count + 1)]
    return next((file.name for file in expected if not file.is_file()), None)


def _wanted(place: Source) -> tuple[str, str]:
    return KINDS[_KINDS.get(place.part, place.part)]


def _mismatch(found: Found, place: Source, flavour: Flavour) -> list[Problem]:
    """What was found against what the flavour needs; what is not known is not compared."""
    fitting = " or ".join(_fitting(found)) or "of this model"
    fix = f'choose the model_flavour {fitting}, or a model of flavour "{flavour.name}"'

    def problem(message: str, fix: str = fix) -> Problem:
        return Problem("model", message, place.key, place.name, fix)

    if found.kind != _KINDS.get(place.part, place.part):
        name, belongs = KINDS[found.kind]
        return [problem(f"is {name}, expected {_wanted(place)[0]}", belongs)]
    if found.kind == TRANSFORMER and (what := not_trained(found.task, found.in_channels)) is not None:
        return [problem(f"is {what}, which is not trained here", "give a T2V, I2V or TI2V model")]
    problems = []
    if found.quantised not in _READABLE:
        problems.append(problem(f"holds weights as {found.quantised}", "give bf16, fp16, fp32 or fp8 weights"))
    if found.kind == TRANSFORMER:
        problems += [problem(message) for message in _transformer_differences(found, flavour)]
        if found.misfit is not None:
            fix_of_time = _TI2V_TIME if flavour.holds_first_frame else _TIME
            problems.append(problem(f"has another time embedding: {found.misfit}", fix_of_time))
        if (message := _wrong_expert(found, place, flavour)) is not None:
            where = fix
            if flavour.boundary is not None and found.expert is not None and not place.is_base:
                where = f"name it with {OTHER_PLACES[EXPERT_SUBFOLDER[found.expert]]}"
            problems.append(problem(message, f"{where}; a file is known by its name"))
    latents = flavour.vae.latent_channels
    if found.kind == VAE and found.latent_channels not in (None, latents):
        problems.append(problem(f"has another VAE: z_dim {found.latent_channels}, expected {latents}"))
    return problems


def _fitting(found: Found) -> list[str]:
    """The models, by their flavours' names, that a transformer of a published size may be of."""
    if found.kind != TRANSFORMER or found.size is None or found.image_dim is None:
        return []
    rows = [
        row
        for row in FLAVOURS.values()
        if expected_transformer_size(row) == found.size
        and row.in_channels == found.in_channels
        and row.clip_conditioning == bool(found.image_dim)
        and (found.expert is None or row.boundary is not None)
    ]
    return list(dict.fromkeys(row.model_name for row in rows))


def _transformer_differences(found: Found, flavour: Flavour) -> list[str]:
    differences = []
    if found.in_channels not in (None, flavour.in_channels):
        kind = f" ({found.task.upper()})" if found.task and found.task != flavour.task else ""
        differences.append(f"has other inputs{kind}: in_channels {found.in_channels}, expected {flavour.in_channels}")
    if found.image_dim is not None and bool(found.image_dim) != needs_image_embeds(flavour):
        wanted = "1280" if needs_image_embeds(flavour) else "none"
        differences.append(f"has other inputs: image_dim {found.image_dim or 'none'}, expected {wanted}")
    expected = expected_transformer_size(flavour)
    # Other sizes are the user's own.
    names = {(each.width, each.blocks): _described(each) for each in SIZES.values()}
    if expected and found.size in names and found.size != expected:
        differences.append(f"is another size of Wan: {names[found.size]}, expected {names[expected]}")
    return differences


def _wrong_expert(found: Found, place: Source, flavour: Flavour) -> str | None:
    """That a file's name (or metadata) speaks of the other expert, or of one where there are none."""
    if found.expert is None:
        return None
    if flavour.boundary is not None:
        expected = HIGH if place.part == "transformer" else LOW
        wrong = found.expert != expected
        return f"is the {found.expert}-noise expert, expected the {expected}-noise one" if wrong else None
    if flavour.size != SIZES["14b"]:
        return None
    return f"is the {found.expert}-noise expert of Wan 2.2, expected a model with one transformer"


def size_remark(model: ModelSource, flavour: Flavour) -> str | None:
    """What to say of a local transformer that has none of the published sizes, though the flavour has one."""
    place = source(model, flavour, EXPERT_SUBFOLDER[flavour.trained_experts[0]])
    expected = expected_transformer_size(flavour)
    found = recognise(part_path(place)) if expected is not None and place.is_local else None
    if expected is None or found is None or found.size in (None, expected):
        return None
    width, wanted = (f"{width} wide, {blocks} blocks" for width, blocks in (found.size or expected, expected))
    return f"the transformer in {place.name} is {width}; {flavour.name} is {wanted}: is this the model that you mean?"


def expected_transformer_size(flavour: Flavour) -> tuple[int, int] | None:
    """(width, blocks) of a published flavour; None for the miniature."""
    return None if flavour.size is None else (flavour.size.width, flavour.size.blocks)


def _described(size: Size) -> str:
    return f"{size.name} ({size.width} wide, {size.blocks} blocks)"
