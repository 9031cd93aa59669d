"""`simpletuner export`, and its way with the transformers of full fine-tunes: a file each, in Wan's own names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from simplewan.app.context import DTYPES
from simplewan.app.exporting import FOLDER, Exported, Job, Request, contradiction, lora_jobs, named_file
from simplewan.app.lora_files import LORA_FILES, loras_in, wholes
from simplewan.app.merging import MERGED, counting, merge, tell_fp8
from simplewan.app.targets import check_targets, writing
from simplewan.checkpoints.files import read_record
from simplewan.checkpoints.store import RESOLVED
from simplewan.errors import Problem, UserError
from simplewan.events import Emit, Emitter, Stage
from simplewan.flavours import EXPERT_SUBFOLDER, HIGH, Flavour, recorded_flavour
from simplewan.models.lora.merge import Base, merge_files, open_base
from simplewan.options.sources import COMMAND_LINE
from simplewan.recognition import LORA, TRANSFORMER, of_config, read_config, recognise
from simplewan.reporting.console import Console
from simplewan.reporting.quiet import quiet_loading_bars

COMFYUI = "comfyui"


@dataclass(frozen=True)
class Whole:
    """A transformer to be written, with `path` as people wrote it. `expert` None: it is of a model of one."""

    path: Path
    base: Base
    expert: str | None
    flavour: Flavour | None


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
    whole = {place: whole_transformers(place) if request.to == COMFYUI else [] for place in request.places}
    others = [place for place, paths in whole.items() if not paths]
    paths = {_named(path).absolute(): path for paths in whole.values() for path in paths}.values()
    problems = _without_meaning(request) if paths else []
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


def whole_transformers(place: Path) -> Sequence[Path]:
    """The transformers that a folder stands for: itself, or those in it; none where LoRAs lie."""
    if not place.is_dir() or any(place.glob(LORA_FILES)):
        return []
    try:
        found = of_config(read_config(place))
    except ValueError:  # what is damaged is told by whoever opens it
        found = None
    if found is not None and found.kind == TRANSFORMER:
        return [place]
    return [] if any(map(_may_be_lora, loras_in(place))) else [place / part for part in wholes(place)]


def _may_be_lora(file: Path) -> bool:
    """Whether a file is not known to be something else, such as a transformer that was written there before."""
    try:
        found = recognise(file)
    except (OSError, ValueError):  # what is damaged is told by whoever opens it
        return True
    return found is None or found.kind == LORA


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
    folder = _named(path)
    try:
        found = recognise(folder)
        if found is None or found.kind != TRANSFORMER:
            raise ValueError("it holds no Wan transformer")
        base = open_base(folder)
    except (OSError, ValueError) as error:
        raise UserError(Problem(str(path), f"cannot be written as one file: {error}")) from error
    flavour = request.flavour or recorded_flavour(read_record(folder.parent / RESOLVED))
    whole = Whole(path, base, _expert(path, found.expert, flavour, request), flavour)
    target = named_file(request.output or folder.parent / FOLDER, EXPERT_SUBFOLDER[HIGH], whole.expert, request.to)
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


def _named(path: Path) -> Path:
    """A folder by a name of its own, which "." has not: names tell experts, and what lies beside."""
    return path if path.name not in ("", "..") else path.resolve()


def _convert(whole: Whole, target: Path, request: Request, *, emit: Emit) -> Exported:
    """Write it as one file, read back to the byte (but for the dtype asked for). Raises UserError."""
    path, base, flavour, expert = whole.path, whole.base, whole.flavour, whole.expert
    emit(Stage("convert", f"Writing {path} as one file"))
    tell_fp8(base, path, request, emit=emit)
    metadata = {
        **({"model_flavour": flavour.name, "task": flavour.task} if flavour is not None else {}),
        **({"expert": f"{expert}_noise"} if expert is not None else {}),
    }
    dtype = None if request.dtype is None else DTYPES[request.dtype]
    progress = counting(2 * len(base.tensors), target.name, emit)
    try:
        with writing(target):
            merge_files(base, [], target, config=None, dtype=dtype, metadata=metadata, progress=progress)
    except UserError:
        raise
    except ValueError as error:
        raise UserError(Problem(str(path), f"was not written as one file: {error}")) from error
    count = len(base.tensors)
    return Exported(str(path), str(target), request.to, expert, count, count, {}, unit="weights")
