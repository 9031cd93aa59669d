"""What `sample` puts on the base model: LoRA files that are named, or what a run has trained so far.

Nothing is written: a run may be under way in the folder that is looked at.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from simplewan.app.context import Context
from simplewan.app.lora_files import LORA_FILES, name_a_checkpoint
from simplewan.app.resume import finished_step
from simplewan.app.roles import Expert, frozen_expert, load_base, load_full_state
from simplewan.checkpoints import CheckpointStore
from simplewan.checkpoints.files import read_part
from simplewan.errors import Problem, UserError
from simplewan.events import Emit, Notice
from simplewan.flavours import EXPERT_SUBFOLDER, Flavour, other_model
from simplewan.models.lora.attach import attach_changes
from simplewan.models.lora.read import LoraFile, read_file
from simplewan.models.lora.write import lora_file_name
from simplewan.models.wan.loading import load_transformer
from simplewan.options.groups.model import ModelOptions
from simplewan.options.sources import COMMAND_LINE
from simplewan.recognition import told_by, told_expert


@dataclass(frozen=True)
class Stored:
    """A checkpoint's file and what it holds. A run may remove it before the model is loaded, so it is read now."""

    file: Path
    state: Mapping[str, Tensor] = field(repr=False)

    def __str__(self) -> str:
        return str(self.file)


@dataclass(frozen=True)
class Weights:
    """What an expert gets: LoRA files, or all of its weights (a transformer's folder, or a checkpoint's)."""

    loras: tuple[LoraFile, ...] = ()
    transformer: Path | None = None
    checkpoint: Stored | None = None
    step: int | None = None

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
            return _find_trained(output, flavour, full=full, emit=emit)
    fix = "run it again"
    raise UserError(Problem(str(output), "its checkpoints are removed faster than they can be read", fix=fix))


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
        file = path / (f"{expert}.weights.safetensors" if full else lora_file_name(flavour, expert))
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
    recorded = _metadata(file).get("step", "")
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
            files = _loras_in(path, key) if path.is_dir() else [path]
            if not files:
                problems.append(
                    Problem(COMMAND_LINE, f"holds no {LORA_FILES}", key, str(path), name_a_checkpoint(path))
                )
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
                    if (doubt := _doubt(file, expert, flavour)) is not None:
                        emit(Notice(doubt, severity="warning"))
    if problems:
        raise UserError(*problems)
    return {expert: Weights(loras=tuple(read_file(file) for file in files)) for expert, files in loras.items() if files}


def _loras_in(folder: Path, key: str) -> list[Path]:
    """The LoRAs in a folder; where an expert is named, without those that tell that they are the other's."""
    files = sorted(folder.glob(LORA_FILES))
    if key == "adapter":
        return files
    return [file for file in files if told_by(_metadata(file), file) in (None, key.removeprefix("adapter_"))]


def _expert_of(file: Path, key: str, flavour: Flavour) -> str | None:
    if key != "adapter":
        return key.removeprefix("adapter_")
    if flavour.boundary is None:
        return flavour.trained_experts[0]
    return told_by(_metadata(file), file)


def _doubt(file: Path, expert: str, flavour: Flavour) -> str | None:
    """What to say of a LoRA whose metadata speak of another model, or of the other expert; None if they do not."""
    metadata = _metadata(file)
    made_for = told_expert(metadata.get("expert", ""))
    doubts = []
    if (other := other_model(metadata, flavour)) is not None:
        doubts.append(f"for {other.name}, and is put on {flavour.name}")
    if made_for is not None and flavour.boundary is not None and made_for != expert:
        doubts.append(f"for the {made_for}-noise expert, and is put on the {expert}-noise one")
    if made_for is not None and flavour.boundary is None and other is None:
        doubts.append(f"for the {made_for}-noise expert, and is put on {flavour.name}, which has one expert")
    return f"{file} was trained {'; '.join(doubts)}" if doubts else None


def _metadata(file: Path) -> Mapping[str, str]:
    try:
        with safe_open(file, framework="pt") as opened:
            return opened.metadata() or {}
    except (OSError, SafetensorError) as error:
        fix = "name a LoRA in a .safetensors file"
        raise UserError(Problem(str(file), f"cannot be read as safetensors ({error})", fix=fix)) from error


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
        absent = attach_changes(expert.transformer, lora.changes, strength=scale, name=adapter_name)
    except ValueError as error:
        fix = f"it was made for another model than {context.flavour.name}, or is no LoRA of a Wan transformer"
        raise UserError(Problem(str(lora), f"does not fit: {error}", fix=fix)) from error
    if absent:
        message = f"{lora}: {len(absent)} of its modules are not in the model and have no effect ({absent[0]} ...)"
        context.say(message, warning=True)
