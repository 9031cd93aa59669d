"""A configuration with its dataset file, loaded as commands load it, for tests of options."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from simplewan.errors import UserError
from simplewan.options import Loaded, load

DATASET = {
    "id": "clips",
    "type": "local",
    "dataset_type": "video",
    "instance_data_dir": "clips",
    "video": {"num_frames": 75},
}


def write(folder: Path, config: dict[str, Any] | None = None, datasets: Any = None) -> Path:
    """A configuration in `folder`, with a folder of clips; returns config.json."""
    (folder / "clips").mkdir(exist_ok=True)
    (folder / "data.json").write_text(json.dumps([DATASET] if datasets is None else datasets))
    path = folder / "config.json"
    path.write_text(json.dumps({"max_train_steps": 10, "data_backend_config": "data.json", **(config or {})}))
    return path


def load_in(folder: Path, *overrides: tuple[str, Any], environ: dict[str, str] | None = None, **config: Any) -> Loaded:
    datasets = config.pop("datasets", None)
    return load(write(folder, config, datasets), overrides, environ=environ or {}, base=folder)


def problems(folder: Path, *overrides: tuple[str, Any], environ: dict[str, str] | None = None, **config: Any) -> str:
    with pytest.raises(UserError) as caught:
        load_in(folder, *overrides, environ=environ, **config)
    return str(caught.value)
