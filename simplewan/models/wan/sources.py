"""Where the parts of a model lie: options to a folder on this machine, checked without torch. Imports flavours, errors.

A part (transformer, transformer_2, vae, text_encoder, tokenizer) comes from the base model or from a place of its own;
image_encoder and image_processor, which only Wan 2.1 I2V has, come from the base model.
A name is a local folder (or, for the transformers and the VAE, a single file) or a hub repository, of which only the
part's files are downloaded. huggingface_hub is imported only when a repository is really asked for.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from simplewan.errors import Problem, UserError
from simplewan.flavours import EXPERT_SUBFOLDER, Flavour

WHOLE_FILE_BYTES = 64 * 2**20
_SAMPLE_BYTES = 2**20
_CONFIG_NAMES = {"tokenizer": "tokenizer_config.json", "image_processor": "preprocessor_config.json"}
_WEIGHT_ENDINGS = (".safetensors", ".bin")
# The norm over CLIP's embeddings, as wide as they are, in Wan's own names and in diffusers'.
_IMAGE_NORMS = ("img_emb.proj.0.weight", "image_embedder.norm1.weight")
# Width and blocks of the published transformers, by the word in the flavour's name. Other sizes are the user's own.
KNOWN_SIZES = {"1.3b": (1536, 30), "5b": (3072, 30), "14b": (5120, 40)}


class ModelSource(Protocol):
    """The options that are read here (the model group)."""

    pretrained_model_name_or_path: str | None
    pretrained_transformer_model_name_or_path: str | None
    pretrained_transformer_subfolder: str | None
    pretrained_transformer_2_model_name_or_path: str | None
    pretrained_transformer_2_subfolder: str | None
    pretrained_vae_model_name_or_path: str | None
    pretrained_t5_model_name_or_path: str | None
    pretrained_tokenizer_model_name_or_path: str | None
    revision: str | None
    variant: str | None


@dataclass(frozen=True)
class Source:
    """A part's place: the option that names it, what it says, and the subfolder there (None: at the top)."""

    part: str
    key: str
    name: str
    subfolder: str | None
    revision: str | None = None
    variant: str | None = None

    @property
    def is_local(self) -> bool:
        """A name that exists, or can be no repository's, is a path."""
        looks_like_path = self.name.startswith(("/", ".", "~")) or self.name.count("/") != 1
        return looks_like_path or Path(self.name).expanduser().exists()


def needs_image_embeds(flavour: Flavour) -> bool:
    """Whether the model takes CLIP's embeddings of the first frame: I2V of Wan 2.1 does; I2V of 2.2, TI2V do not."""
    return flavour.clip_conditioning


def source(model: ModelSource, flavour: Flavour, part: str) -> Source:
    """Where `part` is to be taken from. Raises UserError when neither the options nor the flavour name a place."""
    own = {
        "transformer": ("pretrained_transformer_model_name_or_path", model.pretrained_transformer_model_name_or_path),
        "transformer_2": (
            "pretrained_transformer_2_model_name_or_path",
            model.pretrained_transformer_2_model_name_or_path,
        ),
        "vae": ("pretrained_vae_model_name_or_path", model.pretrained_vae_model_name_or_path),
        "text_encoder": ("pretrained_t5_model_name_or_path", model.pretrained_t5_model_name_or_path),
        "tokenizer": (
            "pretrained_tokenizer_model_name_or_path",
            model.pretrained_tokenizer_model_name_or_path or model.pretrained_t5_model_name_or_path,
        ),
        "image_encoder": ("pretrained_model_name_or_path", None),  # of the base model alone
        "image_processor": ("pretrained_model_name_or_path", None),
    }
    subfolders = {
        "transformer": model.pretrained_transformer_subfolder,
        "transformer_2": model.pretrained_transformer_2_subfolder,
    }
    key, name = own[part]
    if name is None:
        key, name = "pretrained_model_name_or_path", model.pretrained_model_name_or_path or flavour.repository
    if not name:
        fix = f"name the folder of a {flavour.name} model in diffusers' layout"
        raise UserError(Problem("model", "is needed: this flavour has no repository", key=key, fix=fix))
    subfolder = subfolders.get(part) or part
    return Source(part, key, name, None if subfolder == "none" else subfolder, model.revision, model.variant)


def resolve_folder(name_or_path: str, patterns: Sequence[str], *, key: str, revision: str | None = None) -> Path:
    """The local folder of a path or a hub repository, of which only files that match `patterns` are downloaded.

    Raises UserError, naming the local alternative, when it cannot be had.
    """
    place = Source("", key, name_or_path, None, revision)
    if not place.is_local:
        return _download(place, patterns)
    path = Path(name_or_path).expanduser()
    if not path.exists():
        fix = "give the path of a folder in diffusers' layout, or a hub repository as owner/name"
        raise UserError(Problem("model", "is not there", key=key, value=name_or_path, fix=fix))
    return path


def part_folder(place: Source) -> Path:
    """The folder (or single file) with the part's files, downloaded if need be. Raises UserError."""
    folder = "" if place.subfolder is None else f"{place.subfolder}/"
    patterns = ["model_index.json", *(f"{folder}{name}" for name in ("*.json", "*.model", "*.safetensors"))]
    path = resolve_folder(place.name, patterns, key=place.key, revision=place.revision)
    return path if path.is_file() or place.subfolder is None else path / place.subfolder


def _download(place: Source, patterns: Sequence[str]) -> Path:
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError, RepositoryNotFoundError

    wanted: dict[str, Any] = {"repo_id": place.name, "revision": place.revision, "allow_patterns": list(patterns)}
    alternative = f"give {place.key} the path of a local copy in diffusers' layout"
    try:
        files = snapshot_download(**wanted, dry_run=True)
        needed = sum(file.file_size or 0 for file in files if file.will_download)
        room = shutil.disk_usage(_existing(Path(constants.HF_HUB_CACHE))).free
        if needed > room:
            message = f"needs {needed / 2**30:.1f} GiB, and {constants.HF_HUB_CACHE} has {room / 2**30:.1f} GiB free"
            raise UserError(Problem("model", message, key=place.key, value=place.name, fix="make room or set HF_HOME"))
        return Path(snapshot_download(**wanted))
    except (RepositoryNotFoundError, HFValidationError) as error:
        message = f"is neither a local folder nor a repository that can be read ({_first_line(error)})"
        raise UserError(Problem("model", message, key=place.key, value=place.name, fix=alternative)) from error
    except (LocalEntryNotFoundError, OSError):
        return _cached(wanted, place, alternative)


def _cached(wanted: dict[str, Any], place: Source, alternative: str) -> Path:
    """The copy in the hub's cache, for when the hub is out of reach."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(snapshot_download(**wanted, local_files_only=True))
    except LocalEntryNotFoundError as error:
        message = "is not on this machine, and the hub is out of reach"
        raise UserError(Problem("model", message, key=place.key, value=place.name, fix=alternative)) from error


def _existing(path: Path) -> Path:
    return path if path.exists() else _existing(path.parent)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def check_files(
    model: ModelSource, flavour: Flavour, *, experts: Sequence[str] | None = None, with_other_stage: bool = False
) -> None:
    """Look at every part that is needed, as far as it is local, and whether the others can be had.

    Needed are the transformers of `experts`, by default those that `flavour` trains, the VAE and the text encoder, for
    Wan 2.1 I2V the image encoder; and the other stage's transformer when validation renders with it. Raises UserError
    with all problems.
    """
    wanted = [EXPERT_SUBFOLDER[expert] for expert in (flavour.trained_experts if experts is None else experts)]
    clip = ("image_encoder", "image_processor") if needs_image_embeds(flavour) else ()
    problems = [
        problem
        for part in (*wanted, "vae", "text_encoder", "tokenizer", *clip)
        for problem in _problems_of(model, flavour, part)
    ]
    if clip and not problems:
        problems = [problem for part in wanted for problem in _other_clip(model, flavour, part)]
    other = flavour.other_stage
    if with_other_stage and other is not None:
        for problem in _problems_of(model, flavour, EXPERT_SUBFOLDER[other]):
            fix = "give the model that part, or set wan_validation_load_other_stage, which needs it, to false"
            if problem not in problems:  # a model that is not there at all is told once
                problems.append(replace(problem, fix=fix))
    unique = list({str(problem): problem for problem in problems}.values())
    if unique:
        raise UserError(*unique)


def _problems_of(model: ModelSource, flavour: Flavour, part: str) -> Sequence[Problem]:
    try:
        place = source(model, flavour, part)
        if place.is_local:
            return check_part(part_folder(place), place, flavour)
        # a few kilobytes: whether the repository can be had at all
        resolve_folder(place.name, ["model_index.json"], key=place.key, revision=place.revision)
    except UserError as error:
        return error.problems
    return []


def _other_clip(model: ModelSource, flavour: Flavour, transformer: str) -> list[Problem]:
    """That the image encoder's embeddings do not fit into the transformer, as far as both are local."""
    place, encoder = source(model, flavour, transformer), source(model, flavour, "image_encoder")
    if not (place.is_local and encoder.is_local):
        return []
    width, wanted = _config_of(part_folder(encoder)).get("hidden_size"), _config_of(part_folder(place)).get("image_dim")
    if None in (width, wanted) or width == wanted:
        return []
    message = f"has an image_encoder {width} wide, and a {transformer} that takes {wanted}"
    return [Problem("model", message, key=encoder.key, value=encoder.name, fix="take both from one model")]


def present_experts(model: ModelSource, flavour: Flavour) -> tuple[str, ...]:
    """The experts whose transformers the model has: what is local is looked for, a repository is taken to have all.

    Where none is there, those that `flavour` trains, so that `check_files` says what is missing.
    """
    present = tuple(
        expert for expert in flavour.experts if _is_present(source(model, flavour, EXPERT_SUBFOLDER[expert]))
    )
    return present or flavour.trained_experts


def _is_present(place: Source) -> bool:
    path = Path(place.name).expanduser()
    return (
        not place.is_local or (path if path.is_file() or place.subfolder is None else path / place.subfolder).exists()
    )


def check_part(folder: Path, place: Source, flavour: Flavour) -> list[Problem]:
    """What is wrong with a part's folder: not there, no configuration, no weights, or another model's sizes.

    Of a single file the names and shapes in its header are looked at.
    """

    def problem(message: str, fix: str) -> list[Problem]:
        return [Problem("model", message, key=place.key, value=place.name, fix=fix)]

    config_name = _CONFIG_NAMES.get(place.part, "config.json")
    if folder.is_file():
        return _mismatch(_header_config(folder), place, flavour)
    if not (folder / config_name).is_file():
        layout = "the folder must be in diffusers' layout (as save_pretrained writes it)"
        return problem(f"has no {'' if place.subfolder is None else place.subfolder + '/'}{config_name}", layout)
    try:
        config = json.loads((folder / config_name).read_text(encoding="utf-8"))
    except ValueError as error:
        return problem(f"has a {config_name} that is no JSON ({error})", "copy the model again")
    if place.part in ("tokenizer", "image_processor"):
        return []
    missing = missing_weights(folder)
    if missing:
        return problem(f"lacks {missing} in {folder.name}/", "copy or download the model again")
    return _mismatch(config, place, flavour)


def size_remark(model: ModelSource, flavour: Flavour) -> str | None:
    """What to say of a local transformer that has none of the published sizes, though the flavour has one."""
    place = source(model, flavour, EXPERT_SUBFOLDER[flavour.trained_experts[0]])
    expected = expected_transformer_size(flavour)
    if expected is None or not place.is_local:
        return None
    size = _size(_config_of(part_folder(place)))
    if size == expected or 0 in size:
        return None
    found, wanted = (f"{width} wide, {blocks} blocks" for width, blocks in (size, expected))
    return f"the transformer in {place.name} is {found}; {flavour.name} is {wanted}: is this the model that you mean?"


def _size(config: dict[str, Any]) -> tuple[int, int]:
    """(width, blocks) of a transformer's configuration; 0 where it does not say."""
    return config.get("num_attention_heads", 0) * config.get("attention_head_dim", 0), config.get("num_layers", 0)


def _mismatch(config: dict[str, Any], place: Source, flavour: Flavour) -> list[Problem]:
    """Sizes of a configuration (what it does not say is not compared) against those of the flavour."""
    differences: list[tuple[str, Any, Any]] = []
    if place.part == "vae" and config.get("z_dim", flavour.vae.latent_channels) != flavour.vae.latent_channels:
        differences.append(("has another VAE: z_dim", config["z_dim"], flavour.vae.latent_channels))
    if place.part.startswith("transformer") and config.get("in_channels", flavour.in_channels) != flavour.in_channels:
        differences.append(("has other inputs: in_channels", config["in_channels"], flavour.in_channels))
    clip = config.get("image_dim")
    if place.part.startswith("transformer") and "image_dim" in config and bool(clip) != needs_image_embeds(flavour):
        wanted = "1280" if needs_image_embeds(flavour) else "none"
        differences.append(("has other inputs: image_dim", clip or "none", wanted))
    size = _size(config)
    expected = expected_transformer_size(flavour)
    names = {size: f"{name.upper()} ({size[0]} wide, {size[1]} blocks)" for name, size in KNOWN_SIZES.items()}
    if place.part.startswith("transformer") and expected and size in names and size != expected:
        differences.append(("is another size of Wan:", names[size], names[expected]))
    fix = f'choose the model_flavour of this model, or a model of flavour "{flavour.name}"'
    return [
        Problem("model", f"{message} {found}, expected {wanted}", place.key, place.name, fix)
        for message, found, wanted in differences
    ]


def _config_of(path: Path) -> dict[str, Any]:
    """The configuration of a part in a folder, or what the header of a single file tells of it."""
    return _header_config(path) if path.is_file() else json.loads((path / "config.json").read_text(encoding="utf-8"))


def _header_config(file: Path) -> dict[str, Any]:
    """Inputs, width and blocks of a transformer in one safetensors file, from its header; {} when it has no such part.

    The header is JSON behind eight bytes of length (the safetensors format).
    """
    if file.suffix != ".safetensors":
        return {}
    with file.open("rb") as stream:
        header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
    blocks = {key.split("blocks.")[1].split(".")[0] for key in header if "blocks." in key}
    patch = next((value["shape"] for key, value in header.items() if key.endswith("patch_embedding.weight")), None)
    if patch is None:
        return {}
    clip = [value["shape"][0] for key, value in header.items() if key.endswith(_IMAGE_NORMS)]
    return {
        "in_channels": patch[1],
        "image_dim": clip[0] if clip else None,
        "num_attention_heads": 1,
        "attention_head_dim": patch[0],
        "num_layers": len(blocks),
    }


def expected_transformer_size(flavour: Flavour) -> tuple[int, int] | None:
    """(width, blocks) of a published flavour; None for the miniature."""
    return next((size for name, size in KNOWN_SIZES.items() if name in flavour.name), None)


def missing_weights(folder: Path) -> str | None:
    """The first weight file that should be in `folder` and is not, or None."""
    indexes = sorted(folder.glob("*.index.json")) + sorted(folder.glob("*.index.*.json"))
    if indexes:
        shards = sorted(set(json.loads(indexes[0].read_text(encoding="utf-8"))["weight_map"].values()))
        return next((shard for shard in shards if not (folder / shard).is_file()), None)
    files = [path for path in folder.iterdir() if path.suffix in _WEIGHT_ENDINGS and path.stat().st_size]
    return None if files else "weights (*.safetensors)"


def fingerprint(path: Path) -> str:
    """16 hex digits that name the contents of a part's folder (or single file), for cache keys.

    Hashed are names, configurations, and weights: files up to 64 MiB whole, larger ones by size, first and last MiB.
    Where the folder lies and when it was written play no role, so a copy keeps its caches.
    """
    files = [path] if path.is_file() else sorted(file for file in path.iterdir() if file.suffix in _HASHED_ENDINGS)
    digest = hashlib.sha256()
    for file in files:
        # A symbolic link of the hub's cache has its target's size.
        size = file.stat().st_size
        digest.update(f"{'' if path.is_file() else file.name}\0{size}\0".encode())
        with file.open("rb") as stream:
            if size <= WHOLE_FILE_BYTES:
                for block in iter(lambda: stream.read(_SAMPLE_BYTES), b""):
                    digest.update(block)
            else:
                digest.update(stream.read(_SAMPLE_BYTES))
                stream.seek(-_SAMPLE_BYTES, 2)
                digest.update(stream.read(_SAMPLE_BYTES))
    return digest.hexdigest()[:16]


_HASHED_ENDINGS = frozenset({".json", ".safetensors", ".bin", ".model", ".pth"})
