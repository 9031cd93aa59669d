"""`simpletuner export --to merged`: the weights of a transformer with the LoRAs in them, file to file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from simplewan.app.exporting import DTYPES, Exported, Ready, Request, base_place, check_targets, export, ready_files
from simplewan.app.lora_files import without_expert
from simplewan.errors import Problem, UserError
from simplewan.events import Emit, Emitter, Progress, Stage
from simplewan.flavours import DEFAULT_FLAVOUR, EXPERT_SUBFOLDER, FLAVOURS, HIGH
from simplewan.models.lora.merge import merge_files, open_base
from simplewan.models.wan.hub import download
from simplewan.models.wan.sources import Source, part_path
from simplewan.options.sources import COMMAND_LINE
from simplewan.reporting.console import Console
from simplewan.reporting.quiet import quiet_loading_bars

MERGED = "merged"
_BASE_FIX = "name the base: base=FOLDER in diffusers' layout, or a .safetensors file with Wan's own names"


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
    sources = [*(each.file.path for each in ready), *paths.values()]
    check_targets(list(targets.values()), sources, overwrite=request.overwrite)
    return [
        _merge(group, places[expert], paths[expert], targets[expert], request, emit=emit)
        for expert, group in by_expert.items()
    ]


def _base(request: Request, ready: Ready) -> Source:
    place = base_place(request, ready)
    if place is None:
        raise UserError(Problem(str(ready.file), "does not tell what it is to be merged into", fix=_BASE_FIX))
    flavour = request.flavour or ready.flavour
    # A model of two experts, and a file that speaks of neither.
    other = place.is_local and (Path(place.name).expanduser() / EXPERT_SUBFOLDER["low"]).is_dir()
    if ready.expert is None and (other if flavour is None else flavour.boundary is not None):
        fix = "say expert=high or expert=low"
        raise UserError(Problem(str(ready.file), "does not tell which expert it is for", fix=fix))
    return place


def _target(request: Request, ready: Ready) -> Path:
    """A folder transformer (or transformer_2), or one file, in the folder that was named."""
    output = request.output or ready.file.path.parent / MERGED
    if not request.original:
        return output / EXPERT_SUBFOLDER[ready.expert or HIGH]
    if output.suffix == ".safetensors":
        return output
    ending = f"_{ready.expert}_noise" if ready.expert else ""
    return output / f"{without_expert(ready.file.path.stem)}_merged{ending}.safetensors"


def _merge(group: list[Ready], place: Source, path: Path, target: Path, request: Request, *, emit: Emit) -> Exported:
    first = group[0]
    label = EXPERT_SUBFOLDER[first.expert or HIGH]
    names = ", ".join(str(each.file) for each in group)
    emit(Stage("merge", f"Merging {names} into {place.name}"))
    try:
        base = open_base(path, config=_config(request, first, path))
        merged = merge_files(
            base,
            [change for each in group for change in each.changes],
            target,
            original=request.original,
            dtype=None if request.dtype is None else DTYPES[request.dtype],
            metadata={"merged": ", ".join(each.file.path.name for each in group)},
            progress=_counting(len(base.tensors), label, emit),
        )
    except ValueError as error:
        fix = "the file and the base must be of one model; `simpletuner lora doctor` tells which a file is for"
        raise UserError(Problem(names, f"was not merged into {path}: {error}", fix=fix)) from error
    errors = {module: error for each in group for module, error in each.errors.items()}
    return Exported(names, str(target), "merged", first.expert, merged.modules, errors)


def _counting(total: int, label: str, emit: Emit) -> Callable[[str], None]:
    done = 0

    def progress(_key: str) -> None:
        nonlocal done
        done += 1
        emit(Progress(key="merge", label=f"Writing {label}", current=done, total=total, unit="weights"))

    return progress


def _config(request: Request, ready: Ready, path: Path) -> Path | None:
    """The configuration for a single file that becomes a folder: beside it, or that of the base model."""
    if path.is_dir() or request.original:
        return None
    beside = path.with_name("config.json")
    if beside.is_file():
        return beside
    model, flavour = request.model, request.flavour or ready.flavour or FLAVOURS[DEFAULT_FLAVOUR]
    part = EXPERT_SUBFOLDER[ready.expert or HIGH]
    assert model is not None, "a base was named"
    name = model.pretrained_model_name_or_path or flavour.repository
    folder = download(name, [f"{part}/config.json"], key="pretrained_model_name_or_path") if name else None
    if folder is None or not (folder / part / "config.json").is_file():
        fix = "put its config.json beside it, let pretrained_model_name_or_path name the model, or --layout original"
        raise UserError(Problem(str(path), "has no configuration", fix=fix))
    return folder / part / "config.json"


def run_export(request: Request) -> list[Exported]:
    """Export or merge, progress on standard error. Raises UserError."""
    quiet_loading_bars()
    console, emit = Console(), Emitter()
    emit.add(console)
    try:
        return merge(request, emit=emit) if request.to == MERGED else export(request, emit=emit)
    finally:
        console.close()
