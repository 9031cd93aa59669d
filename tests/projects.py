"""A folder with clips and the JSON files of a run over them, for tests through the real command."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from accelerate.state import AcceleratorState

from simplewan.app import encoders
from simplewan.app.fetching import Fetch
from simplewan.batches.sampler import BatchSpec
from simplewan.caches.keys import Item
from simplewan.caches.shards import digest
from simplewan.caches.store import Store
from simplewan.cli import main
from simplewan.data import inspection
from simplewan.data.backends import LocalBackend

# All of one shape class, so that they may be encoded together; one more is kept for later.
CLIPS = {"wide": ("clip-001", "clip-004", "clip-007", "clip-010", "clip-013"), "other": ("clip-016", "clip-019")}
SPARE = "clip-022"
EXAMPLE = Path(encoders.__file__).resolve().parents[1] / "examples" / "mini"
SETTINGS = {
    "train_batch_size": 1,
    "vae_batch_size": 1,
    "max_train_steps": 1,
    "checkpoint_step_interval": 100,
    "eval_steps_interval": 0,
    "validation_disable": True,
}


@dataclass
class Work:
    """What a start did: items encoded, files probed and read, batches drawn (two more than were trained on)."""

    texts: list[list[Item]] = field(default_factory=list)
    latents: list[list[Item]] = field(default_factory=list)
    probed: list[str] = field(default_factory=list)
    opened: list[str] = field(default_factory=list)
    drawn: list[BatchSpec] = field(default_factory=list)
    exit_code: int = 0
    notices: list[str] = field(default_factory=list)

    @property
    def latent_names(self) -> list[str]:
        return sorted(item.name for group in self.latents for item in group)

    @property
    def text_names(self) -> list[str]:
        return sorted(item.name for group in self.texts for item in group)

    def notice(self, *words: str) -> str:
        """The one notice that has all these words."""
        found = [text for text in self.notices if all(word in text for word in words)]
        assert len(found) == 1, (words, self.notices)
        return found[0]


class Project:
    """A folder with clips, captions, a model, and the JSON files of a run over them."""

    def __init__(self, folder: Path, model: Path) -> None:
        self.folder = folder
        self.settings: dict[str, Any] = {**json.loads((EXAMPLE / "config.json").read_text()), **SETTINGS}
        self.settings["pretrained_model_name_or_path"] = str(model)
        self.settings["user_prompt_library"] = str(EXAMPLE / "user_prompt_library.json")
        self.settings["cache_dir"] = str(folder / "cache")
        self.settings["data_backend_config"] = str(folder / "data.json")
        video, texts = json.loads((EXAMPLE / "multidatabackend.json").read_text())
        self.datasets: list[dict[str, Any]] = []
        for name in CLIPS:
            place = {"instance_data_dir": str(folder / name), "cache_dir_vae": str(folder / "cache" / "vae" / name)}
            self.datasets.append({**video, "id": name, "video": {"num_frames": 5}, **place})
        self.datasets.append({**texts, "cache_dir": str(folder / "cache" / "text")})
        self.starts = 0

    def file(self, dataset: str, name: str) -> Path:
        return self.folder / dataset / name

    def add(self, source: Path, dataset: str, clip: str) -> None:
        """Put a clip of the example with its caption into a dataset."""
        self.file(dataset, "").mkdir(parents=True, exist_ok=True)
        for ending in (".mp4", ".txt"):
            shutil.copy2(source / f"{clip}{ending}", self.file(dataset, f"{clip}{ending}"))

    def forget(self) -> None:
        """Empty the caches."""
        shutil.rmtree(self.folder / "cache")

    def start(self, *overrides: str, anew: bool = True) -> Work:
        """`simpletuner train` into a new output folder (or that of the last start), watched."""
        self.starts += anew
        output = self.folder / f"out-{self.starts}"
        self.write()
        work = Work()
        with pytest.MonkeyPatch.context() as patch:
            watch(patch, work)
            AcceleratorState._reset_state(reset_partial_state=True)
            arguments = ["train", "--config", str(self.folder / "config.json"), f"output_dir={output}"]
            work.exit_code = main([*arguments, *overrides])
        self.events = [json.loads(line) for line in (output / "events.jsonl").read_text().splitlines()]
        work.notices = [record["message"] for record in self.events if record["type"] == "notice"]
        assert work.exit_code == 0
        assert (output / "pytorch_lora_weights_high_noise.safetensors").exists()
        return work

    def write(self) -> None:
        """Write the JSON files."""
        (self.folder / "data.json").write_text(json.dumps(self.datasets))
        (self.folder / "config.json").write_text(json.dumps(self.settings))

    def cache(self, *arguments: str) -> int:
        """`simpletuner cache`."""
        self.write()
        AcceleratorState._reset_state(reset_partial_state=True)
        return main(["cache", "--config", str(self.folder / "config.json"), *arguments])

    def records(self, part: str) -> dict[str, str]:
        """The digests of the records of a cache ("text", "vae/wide"), by key."""
        store = Store(self.folder / "cache" / part)
        return {key: digest(store.get(key).contiguous()) for key in store.keys()}  # noqa: SIM118


def watch(patch: pytest.MonkeyPatch, work: Work) -> None:
    """Record in `work` what is encoded, probed and read."""

    def before(owner: Any, name: str, note: Callable[..., None]) -> None:
        original = getattr(owner, name)

        def noting(*arguments: Any) -> Any:
            note(*arguments)
            return original(*arguments)

        patch.setattr(owner, name, noting)

    before(encoders.TextEncoder, "__call__", lambda _self, items: work.texts.append(list(items)))
    before(encoders.VaeEncoder, "__call__", lambda _self, items: work.latents.append(list(items)))
    before(Fetch, "__call__", lambda _self, spec: work.drawn.append(spec))
    before(inspection, "probe", lambda source: work.probed.append(source.name))
    for name in ("open", "read"):
        before(LocalBackend, name, lambda _self, path: work.opened.append(path))
