"""Which whole transformers a place stands for: folders, or the files of a checkpoint of a full fine-tune.

A checkpoint holds the float32 weights of training, by diffusers' names and without a configuration. What the end of
the run would have made of them (expert, dtype) is told here by the checkpoint's own records. Nothing is written: the
run may be going on. Of a checkpoint only the weights are verified, since the optimizer's state is twice as large.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from simplewan.app.context import DTYPES
from simplewan.app.lora_files import LORA_FILES, loras_in, stored_name, stored_wholes, wholes
from simplewan.app.resume import finished_step
from simplewan.app.settled import recorded
from simplewan.checkpoints.store import MANIFEST, CheckpointStore, DamagedCheckpoint
from simplewan.errors import Problem, UserError
from simplewan.events import Emit, Notice, Stage
from simplewan.flavours import HIGH, LOW, Flavour
from simplewan.options.groups.optimizer import OptimizerOptions
from simplewan.recognition import LORA, TRANSFORMER, of_config, read_config, recognise


def whole_transformers(place: Path, *, emit: Emit) -> Sequence[Path]:
    """The transformers that a folder stands for: itself, or those in it; none where LoRAs lie.

    Those of a checkpoint are files; a run that has not ended stands for its newest one. Raises UserError for damage.
    """
    if not place.is_dir() or any(place.glob(LORA_FILES)):
        return []
    try:
        found = of_config(read_config(place))
    except ValueError:  # what is damaged is told by whoever opens it
        found = None
    if found is not None and found.kind == TRANSFORMER:
        return [place]
    if any(map(_may_be_lora, loras_in(place))):
        return []
    if files := stored_wholes(place):
        return _verified(place, files, emit=emit)
    if parts := wholes(place):
        _tell_of_newer(place, parts[0], emit=emit)
        return [place / part for part in parts]
    return _newest(place, emit=emit)


def _may_be_lora(file: Path) -> bool:
    """Whether a file is not known to be something else, such as a transformer that was written there before."""
    try:
        found = recognise(file)
    except (OSError, ValueError):  # what is damaged is told by whoever opens it
        return True
    return found is None or found.kind == LORA


def _verified(checkpoint: Path, files: Sequence[Path], *, emit: Emit) -> Sequence[Path]:
    emit(Stage("verify", f"Checking {checkpoint}"))
    folder = named(checkpoint)
    try:
        _store(folder.parent, emit=emit).verify(folder, only=stored_name("*"))
    except DamagedCheckpoint as error:
        fix = "name another checkpoint"
        raise UserError(Problem(str(checkpoint), f"cannot be used: {error}", fix=fix)) from error
    return files


def _newest(run: Path, *, emit: Emit) -> Sequence[Path]:
    """The files of the newest whole checkpoint of a full fine-tune; none where there are no such checkpoints."""
    store = _store(run, emit=emit)
    if not any(stored_wholes(store.path(step)) for step in store.steps()):
        return []
    emit(Stage("verify", f"Checking the checkpoints of {run}"))
    newest = store.find("latest", only=stored_name("*"))
    if newest is None:
        fix = "go on with the run until it saves another"
        raise UserError(Problem(str(run), "holds no final transformer, and no checkpoint that is whole", fix=fix))
    emit(Notice(f"{run} holds no final transformer yet: {newest[0].name} is taken, its newest checkpoint"))
    return stored_wholes(newest[0])


def _tell_of_newer(run: Path, part: str, *, emit: Emit) -> None:
    """Warn of a final transformer after which the run went on: what is meant may be a checkpoint."""
    store = _store(run, emit=emit)
    steps, finished = [step for step in store.steps() if stored_wholes(store.path(step))], finished_step(run)
    if steps and (finished is None or steps[-1] > finished):
        newest = store.path(steps[-1])
        told = f"{run / part} is what the run last ended with, and it went on since: name {newest} for its newest step"
        emit(Notice(told, severity="warning"))


def _store(run: Path, *, emit: Emit) -> CheckpointStore:
    return CheckpointStore(run, limit=0, emit=emit, read_only=True)


def stored_expert(file: Path, flavour: Flavour | None) -> str | None:
    """The expert that a file of a checkpoint is; the one of a model of one is stored by the name of high noise."""
    if file.name == stored_name(LOW):
        return LOW
    two = flavour.boundary if flavour is not None else recorded(file.parent).get("boundary")
    return None if two is None else HIGH


def stored_step(checkpoint: Path) -> int:
    """The step of a verified checkpoint. Raises OSError where it was removed since."""
    return int(json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))["step"])


def final_dtype(source: Path, record: Mapping[str, Any]) -> str:
    """The dtype that the run of a checkpoint gives its final transformer. Raises UserError where that is not told."""
    told = record.get("base_model_default_dtype") or record.get("mixed_precision", OptimizerOptions().mixed_precision)
    if told in DTYPES:
        return str(told)
    fix = "say dtype=bf16, dtype=fp16 or dtype=fp32"
    raise UserError(Problem(str(source), f"its run does not tell a dtype: mixed_precision is {told!r}", fix=fix))


def dtype_name(dtype: torch.dtype) -> str:
    """A dtype in the word that `dtype=` takes for it."""
    return next(name for name, known in DTYPES.items() if known == dtype and name != "no")


def named(path: Path) -> Path:
    """A folder by a name of its own, which "." has not: names tell experts, and what lies beside."""
    return path if path.name not in ("", "..") else path.resolve()
