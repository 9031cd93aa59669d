"""`simpletuner export`: LoRA and LyCORIS files in another tool's format, verified, or merged into the base model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from simplewan.app.context import DTYPES
from simplewan.app.lora_files import find_loras, read_all, without_expert
from simplewan.app.targets import writing
from simplewan.data.atomic import atomic_path
from simplewan.errors import Problem, UserError, shorten, some
from simplewan.events import Emit, Notice
from simplewan.flavours import DEFAULT_FLAVOUR, EXPERT_SUBFOLDER, HIGH, Flavour, find_flavour, recorded_flavour
from simplewan.models.lora.approximate import as_lora
from simplewan.models.lora.change import UNTRAINED, Change, untrained
from simplewan.models.lora.doctor import LOADS, verdicts
from simplewan.models.lora.formats import CONVENTIONS
from simplewan.models.lora.read import LoraFile, examine_file, read_file
from simplewan.models.lora.skeleton import Shapes, shapes_of, shapes_told
from simplewan.models.lora.verify import read_as_diffusers, verify_export
from simplewan.models.lora.write import describe, fitted, tensors_of, write_tensors
from simplewan.models.wan.loading import base_config
from simplewan.models.wan.original import described_config
from simplewan.models.wan.sources import ModelSource, Source, part_path, source
from simplewan.recognition import told_by

FOLDER = "export"
# The tools that a format is for, by the names that the doctor gives them.
_READERS = {
    "universal": ("diffusers", "ComfyUI", "DiffSynth", "LightX2V"),
    "comfyui": ("ComfyUI",),
    "musubi": ("musubi",),
}


@dataclass(frozen=True)
class Request:
    """What is asked for. `output` None: a folder beside the files. `model` names the base, where one is named.

    `scale` multiplies the effect, `alpha` replaces the files' own, `as_lora` is the rank of LoRAs that approximate.
    `drop` leaves out what the format (or, merging, the base) has no place for. `expert` is that of files which do not
    tell. `flavour` is the one that was written, `inferred` the one that the named model tells of. `base` is the word
    that named a base, which `model` holds too.
    """

    places: Sequence[Path]
    to: str
    output: Path | None = None
    dtype: str | None = None
    scale: float = 1.0
    alpha: float | None = None
    as_lora: int | None = None
    drop: bool = False
    overwrite: bool = False
    expert: str | None = None
    layout: str | None = None
    flavour: Flavour | None = None
    inferred: Flavour | None = None
    base: str | None = None
    model: ModelSource | None = None

    @property
    def original(self) -> bool:
        """Whether a merge writes one file of Wan's own names."""
        return self.layout == "original"


@dataclass(frozen=True)
class Ready:
    """A file's changes with everything that was asked for done to them."""

    file: LoraFile
    changes: tuple[Change, ...]
    expert: str | None
    flavour: Flavour | None
    errors: dict[str, float]


@dataclass(frozen=True)
class Job:
    """A file to be written: what is read for it, its place, and what writes it there and reads it back."""

    source: Path
    target: Path
    write: Callable[[], Exported]


@dataclass(frozen=True)
class Exported:
    """A file that was written and read back: `modules` of the `modules_of_source` that the source has.

    `dtype` is told of whole models, whose size it doubles.
    """

    source: str
    path: str
    format: str
    expert: str | None
    modules: int
    modules_of_source: int
    errors: dict[str, float]
    unit: str = "modules"
    dtype: str | None = None

    def __str__(self) -> str:
        which = f", {self.expert}-noise expert" if self.expert else ""
        which += f", in {self.dtype}" if self.dtype else ""
        return f"{self.path}: {self.modules} of {self.modules_of_source} {self.unit}{which}, read back and equal"


def ready_files(request: Request, *, emit: Emit) -> list[Ready]:
    """Read all files and do what was asked to their changes. Raises UserError."""
    files = read_all(find_loras(request.places), partial(read_file, drop=request.drop))
    problems = [
        contradiction(file, f"contradicts the file, which is for {told} noise", request)
        for file in files
        if request.expert is not None and (told := told_by(file.metadata, file.path)) not in (None, request.expert)
    ]
    if problems:
        raise UserError(*problems)
    for file in files:
        if untrained(file.changes):
            emit(Notice(f"{file} {UNTRAINED}", severity="warning"))
    return [_ready(file, request, emit=emit) for file in files]


def contradiction(source: object, message: str, request: Request) -> Problem:
    """That an expert was asked for which a file, or a model, is not of."""
    fix = "leave expert= out, or name the files that are meant"
    return Problem(str(source), message, "expert", request.expert, fix)


def _ready(file: LoraFile, request: Request, *, emit: Emit) -> Ready:
    expert = told_by(file.metadata, file.path) or request.expert
    flavour = request.flavour or recorded_flavour(file.metadata)
    if flavour is not None and flavour.boundary is None:
        expert = request.expert  # a LoRA of Wan 2.1 may be meant for an expert of 2.2
    elif flavour is not None:
        expert = expert or flavour.stage
    changes, errors = list(file.changes), {}
    try:
        if request.alpha is not None:
            changes = [change if change.rank is None else replace(change, alpha=request.alpha) for change in changes]
        changes = [change.times(request.scale) for change in changes]
        if request.as_lora is not None:
            changes, errors = _approximate(changes, request.as_lora)
    except ValueError as error:
        fix = "leave scale and as_lora out, or merge it into the base: --to merged"
        raise UserError(Problem(str(file), str(error), fix=fix)) from error
    if errors:
        worst = max(errors, key=lambda module: errors[module])
        text = f"{file}: {len(errors)} modules approximated by rank {request.as_lora}; relative error up to"
        emit(Notice(f"{text} {errors[worst]:.2g} ({worst})", severity="warning" if errors[worst] > 0.1 else "info"))
    return Ready(file, tuple(changes), expert, flavour, errors)


def _approximate(changes: Sequence[Change], rank: int) -> tuple[list[Change], dict[str, float]]:
    """Every matrix as a LoRA of at most `rank`, and the relative errors; norms and biases stay as they are."""
    near, errors = [], {}
    for change in changes:
        shape = change.shape
        if shape is None or len(shape) != 2:
            near.append(change)
            continue
        lora, error = as_lora(change, rank)
        near.append(lora)
        if lora is not change:
            errors[change.module] = error
    return near, errors


def lora_jobs(request: Request, *, emit: Emit) -> list[Job]:
    """What is to be done for every file, to have it in the format `request.to`. Raises UserError."""
    jobs = []
    for each in ready_files(request, emit=emit):
        folder, stem = request.output or each.file.path.parent / FOLDER, without_expert(each.file.path.stem)
        target = named_file(folder, stem, each.expert, request.to)
        jobs.append(Job(each.file.path, target, partial(_export, each, target, request, emit=emit)))
    return jobs


def named_file(output: Path, stem: str, expert: str | None, to: str) -> Path:
    """`output` if it names a file, else one in that folder by a name, the format and the expert."""
    if output.suffix == ".safetensors":
        return output
    ending = f"_{expert}_noise" if expert else ""
    return output / f"{stem}_{to}{ending}.safetensors"


def _export(ready: Ready, target: Path, request: Request, *, emit: Emit) -> Exported:
    convention = CONVENTIONS[request.to]
    changes, lost = fitted(ready.changes, convention)
    if lost and (not request.drop or not changes):
        raise UserError(_unsaid(ready.file, lost, request.to))
    if lost:
        emit(Notice(f"{ready.file}: left out: {shorten(some(lost), 300)}", severity="warning"))
    dtype = dtype_of(ready.file, request)
    metadata = describe(
        ready.file.metadata,
        changes,
        text=convention.text,
        expert=ready.expert,
        flavour=ready.flavour,
    )
    try:
        shapes = _shapes(ready, request)
        tensors = tensors_of(changes, convention, dtype)
        with writing(target), atomic_path(target) as temporary:
            write_tensors(temporary, tensors, metadata)
            verify_export(temporary, changes, convention=request.to, shapes=shapes, dtype=dtype)
            if request.to == "diffusers":
                _check_diffusers(temporary, changes)
            _tell_of_tools(temporary, target, request, emit=emit)
    except UserError:
        raise
    except ValueError as error:
        message = f"was not exported to {request.to}: {error}"
        fix = "`simpletuner lora doctor` shows what is in it"
        raise UserError(Problem(str(ready.file), message, fix=fix)) from error
    return Exported(
        str(ready.file), str(target), request.to, ready.expert, len(changes), len(ready.file.changes), ready.errors
    )


def _unsaid(file: LoraFile, lost: Sequence[str], to: str) -> Problem:
    fix = "merge it (--to merged), approximate it (--as-lora RANK), or leave that out (--drop)"
    return Problem(str(file), f"cannot be told to {to} as a whole: {some(list(lost))}", fix=fix)


def _tell_of_tools(path: Path, target: Path, request: Request, *, emit: Emit) -> None:
    """Say which tools, of those that the format is for, will not take all of the file."""
    for verdict in verdicts(examine_file(path)):
        if verdict.tool in _READERS.get(request.to, ()) and verdict.outcome != LOADS:
            reason = f": {verdict.reason}" if verdict.reason else ""
            emit(Notice(f"{target}: {verdict.tool} {verdict.outcome}{reason}", severity="warning"))


def _check_diffusers(path: Path, changes: Sequence[Change]) -> None:
    """That diffusers' own loader takes all of a file in its format. Raises ValueError."""
    found = read_as_diffusers(path)
    lost = [change.module for change in changes if change.module not in found]
    if lost:
        raise ValueError(f"diffusers passes over {some(lost)}")


def _shapes(ready: Ready, request: Request) -> Shapes:
    """The weights of the base where one is named and local, else those of the model that the file tells of."""
    place = base_place(request, ready)
    if place is not None and place.is_local and (path := part_path(place)).exists():
        return shapes_of(described_config(path, configs=base_configs(request, place)))
    return shapes_told(ready.changes)


def base_configs(request: Request, place: Source) -> list[Mapping[str, Any]]:
    """What may tell of a base's transformer more than its shapes do, as where it is loaded."""
    return [] if request.model is None else [base_config(request.model, place.part)]


def base_place(request: Request, ready: Ready) -> Source | None:
    """Where the base's transformer is to be taken from; None if neither the options nor the file name a base."""
    if request.model is None:
        return None
    named = request.model.pretrained_model_name_or_path or request.model.pretrained_transformer_model_name_or_path
    flavour = request.flavour or ready.flavour
    if flavour is None and not named:
        return None
    part = EXPERT_SUBFOLDER[ready.expert or HIGH]
    return source(request.model, flavour or find_flavour(DEFAULT_FLAVOUR), part)


def dtype_of(file: LoraFile, request: Request) -> torch.dtype:
    """The dtype asked for, else the file's own when it is one of those that are written, else float32."""
    if request.dtype is not None:
        return DTYPES[request.dtype]
    own = {dtype for dtype in file.dtypes if dtype.is_floating_point}
    large = own - {torch.float32} or own
    return large.pop() if len(large) == 1 and large <= set(DTYPES.values()) else torch.float32
