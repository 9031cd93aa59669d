"""`simpletuner export`, and its way with the transformers of full fine-tunes: a file each, in Wan's own names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from simplewan.app.context import DTYPES
from simplewan.app.exporting import FOLDER, Exported, Request, export, named_file
from simplewan.app.lora_files import LORA_FILES, wholes
from simplewan.app.merging import MERGED, counting, merge
from simplewan.app.targets import check_targets, writing
from simplewan.checkpoints.files import read_record
from simplewan.checkpoints.store import RESOLVED
from simplewan.errors import Problem, UserError
from simplewan.events import Emit, Emitter, Stage
from simplewan.flavours import EXPERT_SUBFOLDER, HIGH, LOW, Flavour, find_flavour
from simplewan.models.lora.merge import merge_files, open_base
from simplewan.recognition import recognise
from simplewan.reporting.console import Console
from simplewan.reporting.quiet import quiet_loading_bars

COMFYUI = "comfyui"


def run_export(request: Request) -> list[Exported]:
    """Export, merge or convert, progress on standard error. Raises UserError."""
    quiet_loading_bars()
    console, emit = Console(), Emitter()
    emit.add(console)
    try:
        if request.to == MERGED:
            return merge(request, emit=emit)
        whole = {place: whole_transformers(place) if request.to == COMFYUI else [] for place in request.places}
        written = convert([path for paths in whole.values() for path in paths], request, emit=emit)
        others = [place for place, paths in whole.items() if not paths]
        return [*written, *(export(replace(request, places=others), emit=emit) if others else [])]
    finally:
        console.close()


def whole_transformers(place: Path) -> list[Path]:
    """The transformers in diffusers' layout that a folder stands for: those in it, or itself; none where LoRAs lie."""
    if not place.is_dir() or any(place.glob(LORA_FILES)):
        return []
    if parts := wholes(place):
        return [place / part for part in parts]
    if not (place / "config.json").is_file():
        return []
    try:
        found = recognise(place)
    except (OSError, ValueError):  # what is damaged is told by whoever opens it
        return []
    return [place] if found is not None and found.kind == "transformer" else []


def convert(transformers: Sequence[Path], request: Request, *, emit: Emit) -> list[Exported]:
    """Write each as one file, read back to the byte (but for the dtype asked for). Raises UserError."""
    experts = {path: _expert(path, request) for path in transformers}
    targets = {
        path: named_file(request.output or path.parent / FOLDER, EXPERT_SUBFOLDER[HIGH], experts[path], request.to)
        for path in transformers
    }
    check_targets(list(targets.values()), transformers, overwrite=request.overwrite)
    return [_convert(path, targets[path], experts[path], request, emit=emit) for path in transformers]


def _convert(path: Path, target: Path, expert: str | None, request: Request, *, emit: Emit) -> Exported:
    emit(Stage("convert", f"Writing {path} as one file"))
    flavour = request.flavour or _flavour(path.parent)
    metadata = {
        **({"model_flavour": flavour.name, "task": flavour.task} if flavour is not None else {}),
        **({"expert": f"{expert}_noise"} if expert is not None else {}),
    }
    try:
        base = open_base(path)
        dtype = None if request.dtype is None else DTYPES[request.dtype]
        progress = counting(2 * len(base.tensors), path.name, emit)
        with writing(target):
            merge_files(base, [], target, config=None, dtype=dtype, metadata=metadata, progress=progress)
    except UserError:
        raise
    except ValueError as error:
        raise UserError(Problem(str(path), f"was not written as one file: {error}")) from error
    count = len(base.tensors)
    return Exported(str(path), str(target), request.to, expert, count, count, {}, unit="weights")


def _expert(path: Path, request: Request) -> str | None:
    """The expert that a transformer is: by its folder, else by the run that left it there, else the one asked for."""
    if path.name == EXPERT_SUBFOLDER[LOW]:
        return LOW
    flavour = request.flavour or _flavour(path.parent)
    if flavour is not None:
        return None if flavour.boundary is None else flavour.stage or HIGH
    return request.expert or (HIGH if len(wholes(path.parent)) > 1 else None)


def _flavour(folder: Path) -> Flavour | None:
    """The flavour of the run in a folder, if there is one and it says."""
    name = read_record(folder / RESOLVED).get("model_flavour")
    return None if name is None else find_flavour(name)
