"""Which LoRA files a command means: files, or the LoRAs in a run's or a checkpoint's folder."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from simplewan.checkpoints import CheckpointStore
from simplewan.errors import Problem, UserError

LORA_FILES = "pytorch_lora_weights*.safetensors"
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
            problems.append(Problem(str(place), f"holds no {LORA_FILES}", fix=name_a_checkpoint(place)))
        found += files
    if problems:
        raise UserError(*problems)
    return list(dict.fromkeys(found))


def loras_in(folder: Path) -> list[Path]:
    """The LoRAs of a run or a checkpoint, else, in a folder of the user's own, all safetensors files."""
    files = sorted(folder.glob(LORA_FILES))
    of_a_run = (folder / "manifest.json").exists() or (folder / "config.resolved.json").exists()
    return files if files or of_a_run else sorted(folder.glob("*.safetensors"))


def name_a_checkpoint(folder: Path) -> str:
    """What to do about a folder without LoRAs: until a run has ended, they lie in its checkpoints."""
    steps = CheckpointStore(folder, limit=0, emit=lambda _event: None, read_only=True).steps()
    return f"name a checkpoint in it: {folder / f'checkpoint-{steps[-1]}'}" if steps else "name the file"


def without_expert(stem: str) -> str:
    """A file's name without the ending that tells its expert."""
    return _EXPERT_ENDING.sub("", stem) or stem
