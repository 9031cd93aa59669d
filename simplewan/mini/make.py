"""Makes the miniature's trained weights from nothing: `python -m simplewan.mini.make FOLDER`.

Imports the makers of this room; the transformers are trained by `simpletuner train` in a process of its own, from the
JSON files in `recipes/`, like anybody's model. A part that is there is not made again, and one that was stopped goes on
from its last checkpoint (the text encoder, a matter of minutes, begins anew), so the command can be killed and given
again. What belongs into the package comes to lie in FOLDER/model and FOLDER/vae-2.2, weights in bfloat16.
docs/miniature.md tells more.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from transformers import AutoTokenizer, UMT5EncoderModel

from simplewan.data.atomic import atomic_folder
from simplewan.flavours import EXPERT_SUBFOLDER, HIGH
from simplewan.mini.clips import write_dataset
from simplewan.mini.model import save_model, untrained_transformer

SEED = 42
DATASETS = {"long": (SEED, 6000), "short": (SEED + 1, 3000)}  # seed and number of clips
RECIPE = Path(__file__).with_name("recipes") / "config.json"
# Small products: a second thread gains little, and page faults cost more than the arithmetic.
QUICKER = {"OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": str(2**32), "MALLOC_TRIM_THRESHOLD_": str(2**33)}


def make(folder: Path, *, jobs: int) -> Path:
    """Make whatever is missing in `folder`, `jobs` parts at a time; returns the finished model's folder.

    Raises BlockingIOError while another process, or a part that outlived it, is at work there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.set_inheritable(lock.fileno(), True)
        _all(
            jobs,
            partial(_script, "train_vae", folder / "vae"),
            partial(_script, "train_text", folder / "text"),
            *(
                partial(_once, folder / "clips" / name, partial(write_dataset, seed=seed, count=count))
                for name, (seed, count) in DATASETS.items()
            ),
        )
        _once(folder / "untrained", partial(_assemble, folder, trained=False))
        # One step alone fills the caches, which the experts then share.
        _train(folder, "cached", HIGH, "max_train_steps=1", "lr_warmup_steps=0")
        _all(
            jobs,
            *(partial(_train, folder, expert, expert) for expert in EXPERT_SUBFOLDER),
            partial(_script, "train_vae", folder / "decoder", "--refine", str(folder / "vae")),
            partial(_script, "train_vae", folder / "vae-2.2", "--kind", "2.2"),
        )
        _once(folder / "model", partial(_assemble, folder, trained=True))
    return folder / "model"


def _train(folder: Path, name: str, expert: str, *overrides: str) -> None:
    """Trains an expert from nothing on its side of the boundary, into `folder`/`name`; goes on where it was stopped."""
    if (folder / name / EXPERT_SUBFOLDER[expert]).exists():
        return
    wanted = [f"model_flavour=t2v-mini-{expert}", f"output_dir={folder / name}", *overrides]
    _run("simplewan.cli", "train", "--config", str(RECIPE), *wanted, MINIATURE=str(folder.resolve()))


def _script(name: str, folder: Path, *arguments: str) -> None:
    """Runs one of this room's scripts unless its folder is there; the script writes it whole."""
    if not folder.exists():
        _run(f"simplewan.mini.{name}", str(folder), *arguments, "--threads", "1")


def _run(module: str, *arguments: str, **environment: str) -> None:
    """Runs a module in a process of its own, which holds the lock as well: it may outlive this one."""
    command = [sys.executable, "-m", module, *arguments]
    subprocess.run(command, env={**os.environ, **QUICKER, **environment}, check=True, close_fds=False)


def _once(folder: Path, write: Callable[[Path], object]) -> None:
    """Lets `write` fill a folder, unless it is there; it gets its name only when all is in it."""
    if not folder.exists():
        with atomic_folder(folder) as temporary:
            write(temporary)


def _all(jobs: int, *parts: Callable[[], None]) -> None:
    """Runs the parts, so many at a time, in this order. After an error, or Ctrl-C, none is begun any more."""
    pool = ThreadPoolExecutor(jobs)
    try:
        for done in as_completed([pool.submit(part) for part in parts]):
            done.result()
    finally:
        pool.shutdown(cancel_futures=True)


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
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="parts to make at a time, a core each")
    arguments = parser.parse_args()
    print(make(arguments.folder, jobs=arguments.jobs))


if __name__ == "__main__":
    main()
