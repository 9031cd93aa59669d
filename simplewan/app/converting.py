"""`simpletuner export`, and its way with the transformers of full fine-tunes: a file each, in Wan's own names.

Which transformers a place stands for is found in wholes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from simplewan.app.context import DTYPES
from simplewan.app.exporting import FOLDER, Exported, Job, Request, contradiction, lora_jobs, named_file
from simplewan.app.lora_files import read_each
from simplewan.app.merging import MERGED, counting, merge, tell_fp8
from simplewan.app.targets import check_targets, writing
from simplewan.app.wholes import dtype_name, final_dtype, named, stored_expert, stored_step, whole_transformers
from simplewan.checkpoints.files import read_record
from simplewan.checkpoints.store import RESOLVED
from simplewan.errors import Problem, UserError
from simplewan.events import Emit, Emitter, Stage
from simplewan.flavours import EXPERT_SUBFOLDER, HIGH, Flavour, recorded_flavour
from simplewan.models.lora.merge import Base, merge_files, open_base
from simplewan.options.sources import COMMAND_LINE
from simplewan.recognition import TRANSFORMER, recognise
from simplewan.reporting.console import Console
from simplewan.reporting.quiet import quiet_loading_bars

COMFYUI = "comfyui"


@dataclass(frozen=True)
class Whole:
    """A transformer to be written, with `path` as people wrote it. `expert` None: it is of a model of one.

    `step` is that of the checkpoint which it lies in, if it does.
    """

    path: Path
    base: Base
    expert: str | None
    flavour: Flavour | None
    step: int | None


def run_export(request: Request) -> list[Exported]:
    """Export, merge or convert, progress on standard error. Raises UserError."""
    quiet_loading_bars()
    console, emit = Console(), Emitter()
    emit.add(console)
    try:
        if request.to == MERGED:
            return merge(request, emit=emit)
        jobs = _jobs(request, emit=emit)
        check_targets([job.target for job in jobs], [job.source for job in jobs], overwrite=request.overwrite)
        return [job.write() for job in jobs]
    finally:
        console.close()


def _jobs(request: Request, *, emit: Emit) -> list[Job]:
    """What is to be done for all places; the LoRAs first, which are quick and may yet be refused. Raises UserError."""

    def transformers(place: Path) -> tuple[Path, Sequence[Path]]:
        return place, whole_transformers(place, emit=emit) if request.to == COMFYUI else []

    found, problems = read_each(dict.fromkeys(request.places), transformers)
    whole = dict(found)
    others = [place for place, paths in whole.items() if not paths]
    paths = {named(path).absolute(): path for paths in whole.values() for path in paths}.values()
    problems += _without_meaning(request) if paths else []
    jobs: list[Job] = []
    steps = [partial(lora_jobs, replace(request, places=others), emit=emit)] if others else []
    for step in (*steps, *(partial(_whole_job, path, request, emit=emit) for path in paths)):
        try:
            jobs += step()
        except UserError as error:
            problems += error.problems
    if problems:
        raise UserError(*problems)
    return jobs


def _without_meaning(request: Request) -> list[Problem]:
    """What was asked for and cannot be done to whole models."""
    asked = {
        "scale": None if request.scale == 1 else request.scale,
        "alpha": request.alpha,
        "as_lora": request.as_lora,
        "base": request.base,
        "layout": request.layout,
    }
    found = [(key, value) for key, value in asked.items() if value is not None]
    found += [("--drop", None)] if request.drop else []
    fix = "leave it out, or export LoRAs by themselves"
    return [Problem(COMMAND_LINE, "has no meaning for whole models", key, value, fix) for key, value in found]


def _whole_job(path: Path, request: Request, *, emit: Emit) -> list[Job]:
    """What is to be done for a transformer's folder, or for a file of a checkpoint. Raises UserError."""
    stored = path.is_file()
    folder = named(path.parent if stored else path)
    place = folder / path.name if stored else folder
    try:
        found = recognise(place)
        if found is None or found.kind != TRANSFORMER:
            raise ValueError("it holds no Wan transformer")
        base, step = open_base(place), stored_step(folder) if stored else None
    except (OSError, ValueError) as error:
        raise UserError(Problem(str(path), f"cannot be written as one file: {error}")) from error
    record = read_record((folder if stored else folder.parent) / RESOLVED)
    flavour = request.flavour or recorded_flavour(record)
    told = stored_expert(place, flavour) if stored else found.expert
    if stored and request.dtype is None:
        request = replace(request, dtype=final_dtype(path, record))
    whole = Whole(path, base, _expert(path, told, flavour, request), flavour, step)
    # Steps do not collide beside their run.
    kind = request.to if step is None else f"{request.to}_step-{step}"
    target = named_file(request.output or folder.parent / FOLDER, EXPERT_SUBFOLDER[HIGH], whole.expert, kind)
    return [Job(folder, target, partial(_convert, whole, target, request, emit=emit))]


def _expert(path: Path, told: str | None, flavour: Flavour | None, request: Request) -> str | None:
    """The expert that a transformer is: told by its folder, else by the run that left it there, else the one asked for.

    Raises UserError where another one was asked for.
    """
    if flavour is not None and flavour.boundary is None:
        return request.expert  # as a LoRA, a model of Wan 2.1 may be meant for an expert of 2.2
    if told is None and flavour is not None:
        told = flavour.stage or HIGH
    if request.expert is not None and told not in (None, request.expert):
        raise UserError(contradiction(path, f"contradicts the model, which is the {told}-noise expert", request))
    return told or request.expert


def _convert(whole: Whole, target: Path, request: Request, *, emit: Emit) -> Exported:
    """Write it as one file, read back to the byte (but for the dtype asked for). Raises UserError."""
    path, base, flavour, expert = whole.path, whole.base, whole.flavour, whole.expert
    emit(Stage("convert", f"Writing {path} as one file"))
    tell_fp8(base, path, request, emit=emit)
    metadata = {
        **({"model_flavour": flavour.name, "task": flavour.task} if flavour is not None else {}),
        **({"expert": f"{expert}_noise"} if expert is not None else {}),
        **({"step": str(whole.step)} if whole.step is not None else {}),
    }
    dtype = None if request.dtype is None else DTYPES[request.dtype]
    progress = counting(2 * len(base.tensors), target.name, emit)
    try:
        with writing(target):
            merge_files(base, [], target, config=None, dtype=dtype, metadata=metadata, progress=progress)
    except UserError as error:
        if path.exists():
            raise
        message, fix = "was removed while it was read: a run keeps its newest checkpoints", "name another checkpoint"
        raise UserError(Problem(str(path), message, fix=fix)) from error
    except ValueError as error:
        raise UserError(Problem(str(path), f"was not written as one file: {error}")) from error
    count = len(base.tensors)
    written = dtype_name(base.dtype if dtype is None else dtype)
    return Exported(str(path), str(target), request.to, expert, count, count, {}, unit="weights", dtype=written)
