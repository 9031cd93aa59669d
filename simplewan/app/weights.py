"""What `sample` puts on the base model: LoRA files that are named, or what a run has trained so far.

Nothing is written: a run may be under way in the folder that is looked at.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path

from torch import Tensor

from simplewan.app.context import Context
from simplewan.app.lora_files import FIT_FIX, doubt, loras_in, no_lora_in, read_all, stored_name
from simplewan.app.resume import finished_step
from simplewan.app.roles import Expert, frozen_expert, load_base, load_full_state
from simplewan.app.settled import recorded
from simplewan.checkpoints import CheckpointStore
from simplewan.checkpoints.files import read_part, read_record
from simplewan.checkpoints.store import RESOLVED
from simplewan.errors import Problem, UserError
from simplewan.events import Emit, Notice
from simplewan.flavours import EXPERT_SUBFOLDER, Flavour
from simplewan.models.lora.attach import attach_changes
from simplewan.models.lora.change import UNTRAINED, untrained
from simplewan.models.lora.fit import Misfit
from simplewan.models.lora.read import LoraFile, lora_metadata_of, read_file
from simplewan.models.lora.write import lora_file_name
from simplewan.models.wan.loading import load_transformer
from simplewan.options.groups.model import ModelOptions
from simplewan.options.sources import COMMAND_LINE
from simplewan.recognition import told_by


@dataclass(frozen=True)
class Stored:
    """A checkpoint's file and what it holds. A run may remove it before the model is loaded, so it is read now."""

    file: Path
    state: Mapping[str, Tensor] = field(repr=False)

    def __str__(self) -> str:
        return str(self.file)


@dataclass(frozen=True)
class Weights:
    """What an expert gets: LoRA files, or all of its weights (a transformer's folder, or a checkpoint's).

    `boundary` is the sigma at which the experts changed in the run that trained them, if its record tells.
    """

    loras: tuple[LoraFile, ...] = ()
    transformer: Path | None = None
    checkpoint: Stored | None = None
    step: int | None = None
    boundary: float | None = None

    def __str__(self) -> str:
        places = [str(place) for place in (*self.loras, self.transformer, self.checkpoint) if place is not None]
        return ", ".join(places) + ("" if self.step is None else f" (step {self.step})")


class _Vanished(Exception):
    """The run that is looked at has removed what was being read."""


def find_trained(output: Path, flavour: Flavour, *, full: bool, emit: Emit) -> dict[str, Weights]:
    """For each expert the newest that the run in `output` has trained: its final weights, or a checkpoint's.

    Final weights are the newest when the run ended with them and has not been gone back on or continued since. Empty
    when there are none. Damaged checkpoints are passed over, which is said. Raises UserError for what cannot be read.
    """
    for _ in range(2):
        with contextlib.suppress(_Vanished):
            found = _find_trained(output, flavour, full=full, emit=emit)
            boundary = recorded_boundary(output)
            return {expert: replace(weights, boundary=boundary) for expert, weights in found.items()}
    fix = "run it again"
    raise UserError(Problem(str(output), "its checkpoints are removed faster than they can be read", fix=fix))


def recorded_boundary(output: Path) -> float | None:
    """The sigma at which the experts of the run in `output` change, if its record tells."""
    own = recorded(output).get("boundary") or read_record(output / RESOLVED).get("timestep_boundary")
    return own / 1000 if isinstance(own, int | float) else None


def _find_trained(output: Path, flavour: Flavour, *, full: bool, emit: Emit) -> dict[str, Weights]:
    finals = {expert: _final(output, flavour, expert, full=full) for expert in flavour.experts}
    found = {expert: weights for expert, weights in finals.items() if weights is not None}
    finished = finished_step(output)
    store = CheckpointStore(output, limit=0, emit=emit, read_only=True)
    ended = finished is not None and bool(found) and all(weights.step == finished for weights in found.values())
    if ended or not store.steps():
        return found  # without reading gigabytes to verify what is not needed
    newest = store.find("latest")
    if newest is None:
        return found
    path, step = newest
    for expert in flavour.experts:
        file = path / (stored_name(expert) if full else lora_file_name(flavour, expert))
        if file.is_file() and not (expert in found and finished is not None and found[expert].step == finished):
            if full:
                found[expert] = Weights(checkpoint=_read_checkpoint(file), step=step)
            else:
                found[expert] = Weights(loras=(_read_lora(file),), step=step)
    if not path.is_dir():
        raise _Vanished
    return found


def _final(output: Path, flavour: Flavour, expert: str, *, full: bool) -> Weights | None:
    """The weights that the end of a run wrote, if they are there, and the step they are of, if that is known."""
    step = finished_step(output)
    if full:
        folder = output / EXPERT_SUBFOLDER[expert]
        return Weights(transformer=folder, step=step) if (folder / "config.json").is_file() else None
    file = output / lora_file_name(flavour, expert)
    if not file.is_file():
        return None
    recorded = lora_metadata_of(file).get("step", "")
    return Weights(loras=(_read_lora(file),), step=int(recorded) if recorded.isdecimal() else step)


def _read_lora(file: Path) -> LoraFile:
    try:
        return read_file(file)
    except UserError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            raise _Vanished from error
        raise


def _read_checkpoint(file: Path) -> Stored:
    try:  # safetensors maps the file: it is not copied into memory here, and stays readable when it is removed
        return Stored(file, read_part(file.parent, file.name.removesuffix(".safetensors")))
    except FileNotFoundError as error:
        raise _Vanished from error


def assign_loras(flavour: Flavour, named: Mapping[str, Sequence[Path]], *, emit: Emit) -> dict[str, Weights]:
    """Which expert gets which of the LoRA files that are `named` under "adapter", "adapter_high" and "adapter_low".

    A folder stands for the LoRAs in it. A file tells its expert by its metadata, else by its name; metadata that speak
    of another model or expert are warned of. Raises UserError for what is no LoRA, or with all that do not tell.
    """
    problems: list[Problem] = []
    loras: dict[str, list[Path]] = {expert: [] for expert in flavour.experts}
    for key, paths in named.items():
        for path in paths:
            files = _meant(loras_in(path), key) if path.is_dir() else [path]
            if not files:
                message, fix = no_lora_in(path)
                problems.append(Problem(COMMAND_LINE, message, key, str(path), fix))
            for file in files:
                expert = _expert_of(file, key, flavour)
                if expert is None:
                    fix = "name it with adapter_high= or adapter_low="
                    problems.append(
                        Problem(COMMAND_LINE, "does not tell which expert it is for", key, str(file), fix=fix)
                    )
                elif expert not in loras:
                    fix = "name it with adapter="
                    problems.append(
                        Problem(COMMAND_LINE, f"has no meaning: {flavour.name} has one expert", key, str(file), fix=fix)
                    )
                else:
                    loras[expert].append(file)
    if problems:
        raise UserError(*problems)
    for files in loras.values():
        for one, other in combinations(files, 2):
            if one.parent != other.parent and _run_of(one) == _run_of(other):
                told = f"{one} and {other} are of one run: what they change adds up; name one to see that one"
                emit(Notice(told, severity="warning"))
    return {
        expert: Weights(loras=tuple(_checked(lora, expert, flavour, emit=emit) for lora in read_all(files, read_file)))
        for expert, files in loras.items()
        if files
    }


def _run_of(file: Path) -> Path:
    """The folder of the run that a LoRA file, perhaps a checkpoint's, lies in."""
    folder = file.resolve().parent
    return folder.parent if folder.name.startswith("checkpoint-") else folder


def _checked(lora: LoraFile, expert: str, flavour: Flavour, *, emit: Emit) -> LoraFile:
    """The file; warns of one that is as training begins with it, or for another model or expert."""
    if untrained(lora.changes):
        emit(Notice(f"{lora} {UNTRAINED}", severity="warning"))
    if (told := doubt(lora, expert, flavour)) is not None:
        emit(Notice(told, severity="warning"))
    return lora


def _meant(files: Sequence[Path], key: str) -> Sequence[Path]:
    """The files of a folder; where an expert is named, without those that tell that they are the other's."""
    if key == "adapter":
        return files
    return [file for file in files if told_by(lora_metadata_of(file), file) in (None, key.removeprefix("adapter_"))]


def _expert_of(file: Path, key: str, flavour: Flavour) -> str | None:
    if key != "adapter":
        return key.removeprefix("adapter_")
    if flavour.boundary is None:
        return flavour.trained_experts[0]
    return told_by(lora_metadata_of(file), file)


def load_weighted(context: Context, name: str, weights: Weights, *, scale: float) -> Expert:
    """The expert with its weights, to render with: frozen, in eval mode, on the CPU. LoRAs act times `scale`."""
    context.check()
    if weights.transformer is not None:
        place = ModelOptions(
            pretrained_transformer_model_name_or_path=str(weights.transformer.parent),
            pretrained_transformer_2_model_name_or_path=str(weights.transformer.parent),
        )
        return frozen_expert(context, name, load_transformer(place, context.flavour, name, context.weight_dtype))
    expert = load_base(context, name)
    if weights.checkpoint is not None:
        load_full_state(expert.transformer, weights.checkpoint.state)
    for number, lora in enumerate(weights.loras):
        _attach(context, expert, lora, scale=scale, adapter_name=f"lora_{number}")
    return expert


def _attach(context: Context, expert: Expert, lora: LoraFile, *, scale: float, adapter_name: str) -> None:
    try:
        found = attach_changes(expert.transformer, lora.changes, strength=scale, name=adapter_name)
    except Misfit as error:
        raise UserError(Problem(str(lora), f"does not fit: {error}", fix=FIT_FIX)) from error
    except ValueError as error:
        fix = "leave adapter_scale out, or merge the file into the base: simpletuner export FILE --to merged"
        raise UserError(Problem(str(lora), str(error), fix=fix)) from error
    if found.lost:
        context.say(f"{lora} acts in part: {found}", warning=True)
    if found.shallow is not None:
        context.say(f"{lora} {found.shallow}", warning=True)
