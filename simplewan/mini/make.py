"""Makes the miniature's trained weights from nothing: `python -m simplewan.mini.make FOLDER`.

Imports the makers of this room; the transformers are trained by `simpletuner train` in a process of its own, from the
JSON files in `recipes/`, like anybody's model. A part that is there is not made again, and one that was stopped goes on
from its last checkpoint (the text encoder, a matter of minutes, begins anew), so the command can be killed and given
again. What belongs into the package comes to lie in FOLDER/model, weights in bfloat16. docs/miniature.md tells more.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from transformers import AutoTokenizer, UMT5EncoderModel

from simplewan.flavours import EXPERT_SUBFOLDER
from simplewan.mini.clips import write_dataset
from simplewan.mini.model import save_model, untrained_transformer

SEED = 42
DATASETS = {"long": (SEED, 6000), "short": (SEED + 1, 3000)}  # seed and number of clips
RECIPE = Path(__file__).with_name("recipes") / "config.json"
# Small products: a second thread gains little, and page faults cost more than the arithmetic.
QUICKER = {"OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": str(2**32), "MALLOC_TRIM_THRESHOLD_": str(2**33)}


def make(folder: Path) -> Path:
    """Make whatever is missing in `folder`; returns the finished model's folder."""
    for name, (seed, count) in DATASETS.items():
        _once(folder / "clips" / name, partial(write_dataset, seed=seed, count=count))
    _once(folder / "text", partial(_script, "train_text"))
    _once(folder / "vae", partial(_script, "train_vae"))
    _once(folder / "decoder", partial(_script, "train_vae", refine=folder / "vae"))
    _once(folder / "untrained", partial(_assemble, folder, trained=False))
    for expert, part in EXPERT_SUBFOLDER.items():
        if not (folder / expert / part).exists():
            train_expert(folder, expert)
    _once(folder / "model", partial(_assemble, folder, trained=True))
    return folder / "model"


def train_expert(folder: Path, expert: str) -> None:
    """Train the expert "high" or "low" from nothing on its side of the boundary; goes on where it was stopped."""
    overrides = [f"model_flavour=t2v-mini-{expert}", f"output_dir={folder / expert}"]
    command = [sys.executable, "-m", "simplewan.cli", "train", "--config", str(RECIPE), *overrides]
    environment = {**os.environ, **QUICKER, "MINIATURE": str(folder.resolve())}
    subprocess.run(command, env=environment, check=True)


def _script(name: str, folder: Path, *, refine: Path | None = None) -> None:
    command = [sys.executable, "-m", f"simplewan.mini.{name}", str(folder), "--threads", "1"]
    command += ["--refine", str(refine)] if refine else []
    subprocess.run(command, env={**os.environ, **QUICKER}, check=True)


def _once(folder: Path, write: Callable[[Path], object]) -> None:
    """Lets `write` fill a folder, unless it is there; it gets its name only when all is in it."""
    if folder.exists():
        return
    temporary = folder.with_name(f"{folder.name}.unfinished")
    shutil.rmtree(temporary, ignore_errors=True)
    write(temporary)
    temporary.rename(folder)


def _assemble(folder: Path, target: Path, *, trained: bool) -> None:
    """Writes the model folder from its parts; the transformers fresh from the seed, or as trained, in bfloat16."""
    transformer: Any = WanTransformer3DModel
    experts = {
        expert: transformer.from_pretrained(folder / expert / part) if trained else untrained_transformer(SEED + number)
        for number, (expert, part) in enumerate(EXPERT_SUBFOLDER.items())
    }
    vae: Any = AutoencoderKLWan
    text_encoder: Any = UMT5EncoderModel
    dtype = torch.bfloat16 if trained else torch.float32
    save_model(
        target,
        vae=vae.from_pretrained(folder / ("decoder" if trained else "vae")).to(dtype),
        tokenizer=AutoTokenizer.from_pretrained(folder / "text" / "tokenizer"),
        text_encoder=text_encoder.from_pretrained(folder / "text" / "text_encoder").to(dtype),
        experts={name: model.to(dtype) for name, model in experts.items()},
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the miniature from nothing. Goes on where it was stopped.")
    parser.add_argument("folder", type=Path)
    print(make(parser.parse_args().folder))


if __name__ == "__main__":
    main()
