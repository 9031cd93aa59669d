"""`simpletuner export --to merged`: the weights of a transformer with the LoRAs in them, file to file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from simplewan.app.context import DTYPES
from simplewan.app.exporting import Exported, Ready, Request, base_configs, base_place, named_file, ready_files
from simplewan.app.lora_files import FIT_FIX, LORA_STEM, doubt, without_expert
from simplewan.app.targets import MERGED_FROM, check_targets, writing
from simplewan.errors import Problem, UserError
from simplewan.events import Emit, Notice, Progress, Stage
from simplewan.flavours import EXPERT_SUBFOLDER, HIGH, LOW
from simplewan.models.lora.fit import Fit, Misfit, fit
from simplewan.models.lora.merge import Base, merge_files, open_base
from simplewan.models.wan.original import described_config
from simplewan.models.wan.sources import NAME_CONFIGURATION, Source, part_path
from simplewan.options.sources import COMMAND_LINE
from simplewan.recognition import part_in, recognise

MERGED = "merged"
_BASE_FIX = (
    "name the base with base=PLACE: a folder in diffusers' layout or Wan's own, or a .safetensors file; or with the "
    f"options of the model, {NAME_CONFIGURATION}"
)


def merge(request: Request, *, emit: Emit) -> list[Exported]:
    """Merge the files, those of one expert together, into the base. Raises UserError."""
    ready = ready_files(request, emit=emit)
    by_expert: dict[str | None, list[Ready]] = {}
    for each in ready:
        by_expert.setdefault(each.expert, []).append(each)
    places = {expert: _base(request, group[0]) for expert, group in by_expert.items()}
    targets = {expert: _target(request, group[0]) for expert, group in by_expert.items()}
    paths = {expert: part_path(place) for expert, place in places.items()}
    if len(set(paths.values())) < len(paths):
        message = "is one transformer, and the files are for two experts"
        raise UserError(Problem(COMMAND_LINE, message, "base", str(paths.popitem()[1]), "merge one file at a time"))
    wrong = [_wrong_expert(group, places[expert], paths[expert], request) for expert, group in by_expert.items()]
    if problems := [problem for problem in wrong if problem is not None]:
        raise UserError(*problems)
    sources = [*(each.file.path for each in ready), *paths.values()]
    check_targets(list(targets.values()), sources, overwrite=request.overwrite, folders=not request.original)
    return [
        _merge(group, places[expert], paths[expert], targets[expert], request, emit=emit)
        for expert, group in by_expert.items()
    ]


def _base(request: Request, ready: Ready) -> Source:
    place = base_place(request, ready)
    if place is None:
        raise UserError(Problem(str(ready.file), "does not tell what it is to be merged into", fix=_BASE_FIX))
    if ready.expert is None and _has_two_experts(place, request, ready):
        fix = "say expert=high or expert=low"
        raise UserError(Problem(str(ready.file), "does not tell which expert it is for", fix=fix))
    return place


def _wrong_expert(group: list[Ready], place: Source, path: Path, request: Request) -> Problem | None:
    """That the base is the transformer of the other expert, as its files or their names tell: shapes are the same."""
    expert, told = group[0].expert, _told_expert(path)
    if expert is None or told in (None, expert):
        return None
    model = request.model
    assert model is not None, "a base was named"
    both = model.pretrained_transformer_model_name_or_path == model.pretrained_transformer_2_model_name_or_path
    where, key = (COMMAND_LINE, "base") if both and not place.is_base else ("model", place.key)
    names = ", ".join(str(each.file) for each in group)
    message = f"is the {told}-noise expert, expected the {expert}-noise one, which {names} is for"
    fix = f"name the {expert}-noise transformer, or a LoRA of the {told}-noise expert; a file is known by its name"
    return Problem(where, message, key, place.name, fix)


def _told_expert(path: Path) -> str | None:
    """The expert that a transformer tells to be."""
    try:
        found = recognise(path.absolute())  # "." has no name
    except (OSError, ValueError):  # what is not there or damaged is told where it is opened
        return None
    return None if found is None else found.expert


def _has_two_experts(place: Source, request: Request, ready: Ready) -> bool:
    """Whether the base is a model of two experts: by what was written, by its files, or by its repository's name."""
    model = request.model
    if request.flavour is not None:
        return request.flavour.boundary is not None
    if ready.flavour is not None and ready.flavour.boundary is not None:
        return True
    assert model is not None, "a base was named"
    own, other = (
        (model.pretrained_transformer_model_name_or_path, model.pretrained_transformer_subfolder),
        (model.pretrained_transformer_2_model_name_or_path, model.pretrained_transformer_2_subfolder),
    )
    if other[0] is not None and other != own:
        return True
    if place.is_local:
        return part_in(Path(place.name).expanduser(), EXPERT_SUBFOLDER[LOW]) is not None
    return request.inferred is not None and request.inferred.boundary is not None


def _target(request: Request, ready: Ready) -> Path:
    """A folder transformer (or transformer_2), or one file, in the folder that was named."""
    output = request.output or ready.file.path.parent / MERGED
    if not request.original:
        return output / EXPERT_SUBFOLDER[ready.expert or HIGH]
    # A whole transformer is not to be taken for a LoRA in other tools' lists of files.
    stem = without_expert(ready.file.path.stem).replace(LORA_STEM, EXPERT_SUBFOLDER[HIGH])
    return named_file(output, stem, ready.expert, request.to)


def _merge(group: list[Ready], place: Source, path: Path, target: Path, request: Request, *, emit: Emit) -> Exported:
    first = group[0]
    label = EXPERT_SUBFOLDER[first.expert or HIGH]
    names = ", ".join(str(each.file) for each in group)
    emit(Stage("merge", f"Merging {names} into {place.name}"))
    try:
        base = open_base(path)
        found = fit([change for each in group for change in each.changes], base.shapes)
        if found.lost and not request.drop:
            raise Misfit(f"{found}; --drop leaves out what the base has no place for")
        _announce(group, names, found, request, emit=emit)
        tell_fp8(base, path, request, emit=emit)
        config = None if request.original else described_config(path, configs=base_configs(request, place))
        with writing(target):
            merge_files(
                base,
                found.kept,
                target,
                config=config,
                dtype=None if request.dtype is None else DTYPES[request.dtype],
                metadata={MERGED_FROM: ", ".join(each.file.path.name for each in group)},
                progress=counting(2 * len(base.tensors), label, emit),
            )
    except UserError:
        raise
    except ValueError as error:
        fix = FIT_FIX if isinstance(error, Misfit) else None
        raise UserError(Problem(names, f"was not merged into {path}: {error}", fix=fix)) from error
    errors = {module: error for each in group for module, error in each.errors.items()}
    return Exported(names, str(target), MERGED, first.expert, found.kept_modules, found.modules, errors)


def _announce(group: list[Ready], names: str, found: Fit, request: Request, *, emit: Emit) -> None:
    """Warn of what is left out, and of files whose metadata speak of another model."""
    if found.lost:
        emit(Notice(f"{names} is merged in part, the rest is left out: {found}", severity="warning"))
    if found.shallow is not None:
        emit(Notice(f"{names} {found.shallow}", severity="warning"))
    for each in group:
        if request.flavour is not None and (told := doubt(each.file, each.expert, request.flavour)) is not None:
            emit(Notice(told, severity="warning"))


def tell_fp8(base: Base, path: Path, request: Request, *, emit: Emit) -> None:
    """Say that weights in fp8 are written in another dtype, where there are some."""
    if base.is_fp8:
        emit(Notice(f"{path} holds weights in fp8: they are written in {request.dtype or 'bf16'}"))


def counting(total: int, label: str, emit: Emit) -> Callable[[str], None]:
    """What is to be called for each of so many weights."""
    done = 0

    def progress(_key: str) -> None:
        nonlocal done
        done += 1
        emit(Progress(key="merge", label=f"Writing and checking {label}", current=done, total=total, unit="weights"))

    return progress
