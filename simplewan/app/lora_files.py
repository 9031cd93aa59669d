"""Which LoRA files a command means: files, or the LoRAs in a run's or a checkpoint's folder."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

from simplewan.checkpoints.files import read_record
from simplewan.checkpoints.store import MANIFEST, RESOLVED, CheckpointStore
from simplewan.errors import Problem, UserError
from simplewan.flavours import EXPERT_SUBFOLDER, HIGH, Flavour, other_model
from simplewan.models.lora.read import LoraFile
from simplewan.models.wan.sources import OTHER_PLACES
from simplewan.recognition import told_expert

_Read = TypeVar("_Read")
# What to do about a file that is of another model than the base.
FIT_FIX = "name the base that the file is for; `simpletuner lora doctor` tells which that is"
LORA_STEM = "pytorch_lora_weights"
LORA_FILES = f"{LORA_STEM}*.safetensors"
_EXPERT_ENDING = re.compile(r"[^A-Za-z0-9]?(high|low)[^A-Za-z0-9]?noise$", re.IGNORECASE)


def find_loras(places: Iterable[Path]) -> list[Path]:
    """The files among `places`, and the LoRAs in its folders. Raises UserError for what is not there, or empty."""
    problems, found = [], []
    for place in places:
        files = loras_in(place) if place.is_dir() else [place]
        if not place.exists():
            fix = "name a LoRA file, or a folder with some"
            problems.append(Problem(str(place), "there is no such file", fix=fix))
        elif not files:
            message, fix = no_lora_in(place)
            fix += "; ComfyUI's are made by `export --to comfyui`" if holds_whole(place) else ""
            problems.append(Problem(str(place), message, fix=fix))
        found += files
    if problems:
        raise UserError(*problems)
    return list(dict.fromkeys(found))


def read_each(files: Iterable[Path], read: Callable[[Path], _Read]) -> tuple[list[_Read], list[Problem]]:
    """What `read` makes of each file, and the problems with the others."""
    problems: list[Problem] = []
    found = []
    for file in files:
        try:
            found.append(read(file))
        except UserError as error:
            problems += error.problems
    return found, problems


def read_all(files: Iterable[Path], read: Callable[[Path], _Read]) -> list[_Read]:
    """What `read` makes of each file. Raises UserError with the problems of all."""
    found, problems = read_each(files, read)
    if problems:
        raise UserError(*problems)
    return found


def doubt(lora: LoraFile, expert: str | None, flavour: Flavour) -> str | None:
    """What to say of a file whose metadata speak of another model, or of the other expert; None if they do not."""
    made_for = told_expert(lora.metadata.get("expert", ""))
    doubts = []
    if (other := other_model(lora.metadata, flavour)) is not None:
        doubts.append(f"for {other.name}, and is put on {flavour.name}")
    if made_for is not None and flavour.boundary is not None and made_for != expert:
        doubts.append(f"for the {made_for}-noise expert, and is put on the {expert}-noise one")
    if made_for is not None and flavour.boundary is None and other is None:
        doubts.append(f"for the {made_for}-noise expert, and is put on {flavour.name}, which has one expert")
    return f"{lora} was trained {'; '.join(doubts)}" if doubts else None


def loras_in(folder: Path) -> list[Path]:
    """The LoRAs of a run or a checkpoint, else, in a folder of the user's own, all safetensors files."""
    files = sorted(folder.glob(LORA_FILES))
    of_a_run = (folder / MANIFEST).exists() or (folder / RESOLVED).exists()
    return files if files or of_a_run else sorted(folder.glob("*.safetensors"))


def no_lora_in(folder: Path) -> tuple[str, str]:
    """What to say of a folder without LoRAs, and the fix: until a run has ended, they lie in its checkpoints."""
    store = CheckpointStore(folder, limit=0, emit=lambda _event: None, read_only=True)
    holding = [store.path(step) for step in store.steps() if loras_in(store.path(step))]
    if not holding and ((full := _trained_fully(folder)) or wholes(folder)):
        return _whole_model(folder, "a whole model, by a full fine-tune" if full else "a whole model")
    fix = f"name a checkpoint in it: {holding[-1]}" if holding else "name the file"
    return "holds no LoRA (.safetensors)", fix


def _whole_model(folder: Path, what: str) -> tuple[str, str]:
    """The same of a run that trained all weights, of a checkpoint of one, or of a model."""
    run = folder.parent if (folder / MANIFEST).exists() else folder
    parts = wholes(run)
    places = f" ({', '.join(f'{part}/' for part in parts)})" if parts and run == folder else ""
    message = f"is no LoRA but {what}{places}"
    if not parts:
        place = run / EXPERT_SUBFOLDER[HIGH]
        return message, f"in diffusers' layout it is written to {place} or ..._2 when the run ends"
    options = " ".join(f"{OTHER_PLACES[part]}={run}" for part in parts)
    which = "it with" if run == folder else "what the run ended with:"
    folders = " and ".join(str(run / part) for part in parts)
    return message, f"name {which} {options}, or load {folders} with diffusers, in whose layout it is already"


def wholes(folder: Path) -> list[str]:
    """The subfolders of a folder that hold whole transformers."""
    return [part for part in EXPERT_SUBFOLDER.values() if (folder / part / "config.json").is_file()]


def holds_whole(folder: Path) -> bool:
    """Whether there are whole transformers in a folder, or all weights of one in a checkpoint there."""
    return bool(wholes(folder) or stored_wholes(folder) or any(map(stored_wholes, folder.glob("checkpoint-*"))))


def stored_name(expert: str) -> str:
    """The file of a checkpoint with what was trained of an expert: all weights, or (to resume from) a LoRA's."""
    return f"{expert}.weights.safetensors"


def stored_wholes(folder: Path) -> list[Path]:
    """The files with all weights of an expert in the checkpoint of a full fine-tune."""
    of_a_run = (folder / MANIFEST).exists() or (folder / RESOLVED).exists()
    if not of_a_run or any(folder.glob(LORA_FILES)):
        return []
    return [file for expert in EXPERT_SUBFOLDER if (file := folder / stored_name(expert)).is_file()]


def _trained_fully(folder: Path) -> bool:
    """Whether a run, or the run of a checkpoint, was a full fine-tune, by its own record."""
    return read_record(folder / RESOLVED).get("model_type") == "full"


def without_expert(stem: str) -> str:
    """A file's name without the ending that tells its expert."""
    return _EXPERT_ENDING.sub("", stem) or stem
