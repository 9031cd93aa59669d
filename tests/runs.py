"""Commands as a user starts them, what their runs say, and a tiny run's folder, for tests through the real command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from accelerate.state import AcceleratorState
from tiny import save_tiny_model

from simplewan.cli import main
from simplewan.mini.clips import write_dataset


def start(*arguments: str) -> int:
    """A command's exit code, with an accelerator of its own: accelerate keeps the first one of a process."""
    AcceleratorState._reset_state(reset_partial_state=True)
    return main(list(arguments))


def records(folder: Path, *kinds: str) -> list[dict[str, Any]]:
    """What the run in a folder told, of these kinds."""
    lines = (folder / "events.jsonl").read_text().splitlines()
    return [record for record in map(json.loads, lines) if record["type"] in kinds]


def losses(folder: Path) -> list[float]:
    return [record["loss"] for record in records(folder, "metric")]


def notices(folder: Path) -> list[str]:
    return [record["message"] for record in records(folder, "notice")]


def notice(folder: Path, *words: str) -> str:
    """The last notice that has all these words."""
    return [text for text in notices(folder) if all(word in text for word in words)][-1]


def clips_entry(folder: Path, *, frames: int) -> dict[str, Any]:
    """A dataset of the clips in `folder`/clips."""
    entry = {"id": "clips", "dataset_type": "video", "instance_data_dir": str(folder / "clips"), "resolution": 64}
    return {**entry, "video": {"num_frames": frames}}


def write_run(folder: Path, *, clips: int, frames: int, **settings: Any) -> Path:
    """Drawn clips, data.json and a config.json that trains on them without validation; returns config.json."""
    write_dataset(folder / "clips", seed=1, count=clips)
    (folder / "data.json").write_text(json.dumps([clips_entry(folder, frames=frames)]))
    config = {
        "data_backend_config": str(folder / "data.json"),
        "cache_dir": str(folder / "cache"),
        "mixed_precision": "no",
        "vae_dtype": "fp32",
        "lora_rank": 4,
        "validation_disable": True,
        "validation_prompt": "a red circle moves left",
        "validation_resolution": "64x64",
        "validation_num_video_frames": 5,
        "validation_num_inference_steps": 3,
        **settings,
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder / "config.json"


def write_tiny_run(folder: Path, *, two_experts: bool = False, clips: int, frames: int = 5, **settings: Any) -> Path:
    """The same, with a tiny model in `folder`/model."""
    model = save_tiny_model(folder / "model", two_experts=two_experts)
    return write_run(folder, clips=clips, frames=frames, pretrained_model_name_or_path=str(model), **settings)


def train_low(model: Path, folder: Path, *words: str, **settings: Any) -> int:
    """`train` of the low-noise expert of a tiny pair, into out; validation, where it is on, renders with both."""
    usual = {
        "model_flavour": "t2v-mini-low",
        "pretrained_model_name_or_path": str(model),
        "output_dir": "out",
        "learning_rate": 1e-2,
        "validation_resolution": "48x32",
        "validation_num_inference_steps": 6,
        "wan_validation_load_other_stage": True,
        "disable_benchmark": True,
    }
    return start("train", "--config", str(write_run(folder, clips=2, frames=5, **{**usual, **settings})), *words)
