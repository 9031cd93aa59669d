"""One part of a checkpoint as a file, and files that appear whole or not at all.

A part is a state dict. Flat dicts of tensors become safetensors, plain numbers and text become JSON, and what mixes
both (optimisers) becomes a .pt file, which is read back with weights_only=True: no code in a checkpoint is ever run.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from simplewan.data.atomic import atomic_path, share_with_folder


def write_json(path: Path, content: Any) -> None:
    """Write JSON so that `path` holds the old or the new content, whole, whenever the process is killed."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")


def read_record(path: Path) -> dict[str, Any]:
    """What a file that `write_json` wrote tells; {} where it is not there or cannot be read."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def remove_leftovers(output: Path) -> list[str]:
    """Remove what killed writers left half done in an output folder, and return the names. The lock must be held.

    Writers there use names that begin with `.tmp-`, or with a dot and end in `.tmp`; checkpoints are their store's.
    """
    removed = []
    for folder in (output, *output.glob("validation/step-*")):
        for path in (*folder.glob(".*.tmp"), *folder.glob(".tmp-*")):
            if path.name.startswith(".checkpoint-"):
                continue
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()
            removed.append(path.name)
    return sorted(removed)


def sha256(path: Path) -> str:
    """Hex digest of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _is_json(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(isinstance(key, str) and _is_json(item) for key, item in value.items())
    if isinstance(value, list | tuple):
        return all(_is_json(item) for item in value)
    return value is None or isinstance(value, bool | int | float | str)


def write_part(folder: Path, name: str, state: Mapping[str, Any]) -> None:
    """Write one state dict as `name`.safetensors, .json or .pt, whichever holds it exactly."""
    if state and all(isinstance(value, torch.Tensor) for value in state.values()):
        tensors = {key: value.detach().cpu().contiguous() for key, value in state.items()}
        save_file(tensors, folder / f"{name}.safetensors")
        share_with_folder(folder / f"{name}.safetensors")
    elif _is_json(state):
        write_json(folder / f"{name}.json", state)
    else:
        torch.save(state, folder / f"{name}.pt")


def read_part(folder: Path, name: str) -> Mapping[str, Any]:
    """The state dict that `write_part` wrote. Raises FileNotFoundError when the checkpoint lacks it."""
    if (path := folder / f"{name}.safetensors").exists():
        return load_file(path)
    if (path := folder / f"{name}.json").exists():
        return json.loads(path.read_text(encoding="utf-8"))
    return torch.load(folder / f"{name}.pt", map_location="cpu", weights_only=True)
