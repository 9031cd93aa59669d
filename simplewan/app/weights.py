"""What `sample` puts on the base model: LoRA files that are named, or what a run has trained so far.

Nothing is written: a run may be under way in the folder that is looked at.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open

from simplewan.app.context import Context
from simplewan.app.resume import finished_step
from simplewan.app.roles import Expert, frozen_expert, load_base, load_full_state
from simplewan.checkpoints import CheckpointStore
from simplewan.checkpoints.files import read_part
from simplewan.errors import Problem, UserError
from simplewan.events import Emit
from simplewan.flavours import EXPERT_SUBFOLDER, HIGH, LOW, Flavour
from simplewan.models.adapters import attach_lora
from simplewan.models.export import lora_file_name, read_lora
from simplewan.models.wan.loading import load_transformer
from simplewan.options.groups.model import ModelOptions

COMMAND_LINE = "command line"
LORA_FILES = "pytorch_lora_weights*.safetensors"


@dataclass(frozen=True)
class Weights:
    """What an expert gets: LoRA files, or all of its weights (a transformer's folder, or a checkpoint's)."""

    loras: tuple[Path, ...] = ()
    transformer: Path | None = None
    checkpoint: Path | None = None
    step: int | None = None

    def __str__(self) -> str:
        places = [str(place) for place in (*self.loras, self.transformer, self.checkpoint) if place is not None]
        return ", ".join(places) + ("" if self.step is None else f" (step {self.step})")


def experts_of(flavour: Flavour) -> tuple[str, ...]:
    """All experts of the model, the first to act first."""
    return (HIGH, LOW) if flavour.boundary is not None else flavour.trained_experts


def find_trained(output: Path, flavour: Flavour, *, full: bool, emit: Emit) -> dict[str, Weights]:
    """For each expert the newest that the run in `output` has trained: its final weights, or a checkpoint's.

    Empty when there are none. Damaged checkpoints are passed over, which is said.
    """
    finals = {expert: _final(output, flavour, expert, full=full) for expert in experts_of(flavour)}
    found = {expert: weights for expert, weights in finals.items() if weights is not None}
    store = CheckpointStore(output, limit=0, emit=emit, read_only=True)
    newest_final = max((-1 if weights.step is None else weights.step for weights in found.values()), default=-1)
    if not store.steps() or store.steps()[-1] <= newest_final:
        return found  # without reading gigabytes to verify what is not needed
    path = store.find("latest")
    step = int(path.name.rpartition("-")[2]) if path is not None else -1
    if path is None or step <= newest_final:
        return found
    for expert in experts_of(flavour):
        file = path / (f"{expert}.weights.safetensors" if full else lora_file_name(flavour, expert))
        if file.is_file():
            found[expert] = Weights(checkpoint=file, step=step) if full else Weights(loras=(file,), step=step)
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
    return Weights(loras=(file,), step=int(recorded) if recorded.isdecimal() else step)


def assign_loras(flavour: Flavour, named: Mapping[str, Sequence[Path]]) -> dict[str, Weights]:
    """Which expert gets which of the LoRA files that are `named` under "adapter", "adapter_high" and "adapter_low".

    A folder stands for the LoRAs in it. A file tells its expert by its metadata, else by its name. Raises UserError
    with all that are not there, or do not tell.
    """
    problems: list[Problem] = []
    loras: dict[str, list[Path]] = {expert: [] for expert in experts_of(flavour)}
    for key, paths in named.items():
        for path in paths:
            files = sorted(path.glob(LORA_FILES)) if path.is_dir() else [path]
            if not files or not all(file.is_file() for file in files):
                what = f"holds no {LORA_FILES}" if path.is_dir() else "is not there"
                problems.append(Problem(COMMAND_LINE, what, key=key, value=str(path)))
                continue
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
    return {expert: Weights(loras=tuple(files)) for expert, files in loras.items() if files}


def _expert_of(file: Path, key: str, flavour: Flavour) -> str | None:
    if key != "adapter":
        return key.removeprefix("adapter_")
    if flavour.boundary is None:
        return flavour.trained_experts[0]
    name = re.sub(r"[^a-z]", "", file.stem.lower())
    for text in (_metadata(file).get("expert", ""), name):
        told = [expert for expert in (HIGH, LOW) if f"{expert}noise" in text.replace("_", "")]
        if len(told) == 1:
            return told[0]
    return None


def _metadata(file: Path) -> Mapping[str, str]:
    try:
        with safe_open(file, framework="pt") as opened:
            return opened.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise UserError(Problem(str(file), f"cannot be read as safetensors ({error})")) from error


def load_weighted(context: Context, name: str, weights: Weights, *, scale: float) -> Expert:
    """The expert with its weights, to render with: frozen, in eval mode, on the CPU. LoRAs act times `scale`."""
    if weights.transformer is not None:
        place = ModelOptions(
            pretrained_transformer_model_name_or_path=str(weights.transformer.parent),
            pretrained_transformer_2_model_name_or_path=str(weights.transformer.parent),
        )
        return frozen_expert(context, name, load_transformer(place, context.flavour, name, context.weight_dtype))
    expert = load_base(context, name)
    if weights.checkpoint is not None:
        file = weights.checkpoint
        load_full_state(expert.transformer, read_part(file.parent, file.name.removesuffix(".safetensors")))
    for number, file in enumerate(weights.loras):
        _attach(context, expert, file, scale=scale, adapter_name=f"lora_{number}")
    return expert


def _attach(context: Context, expert: Expert, file: Path, *, scale: float, adapter_name: str) -> None:
    state, _ = read_lora(file)
    try:
        absent = attach_lora(expert.transformer, state, scale=scale, name=adapter_name)
    except ValueError as error:
        fix = f"it was made for another model than {context.flavour.name}, or is no LoRA of a Wan transformer"
        raise UserError(Problem(str(file), f"does not fit: {error}", fix=fix)) from error
    if absent:
        message = f"{file}: {len(absent)} of its modules are not in the model and have no effect ({absent[0]} ...)"
        context.say(message, warning=True)
