"""Makes the miniatures' trained weights from nothing: `python -m simplewan.mini.make FOLDER`.

Imports the makers of this room; the transformers are trained by `simpletuner train` in a process of its own, from the
JSON files in `recipes/`, like anybody's model. A part that is there is not made again, and one that was stopped goes on
from its last checkpoint (the text encoder, a matter of minutes, begins anew), so the command can be killed and given
again. High-noise experts go on from low-noise ones, and image-to-video from text-to-video. What belongs into the
package comes to lie in FOLDER/model, FOLDER/i2v-model and FOLDER/ti2v-model, weights in bfloat16. docs/miniature.md
tells more.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
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
from simplewan.flavours import EXPERT_SUBFOLDER, HIGH, LOW
from simplewan.mini.clips import SIZES, write_dataset
from simplewan.mini.model import save_model, untrained_transformer, with_first_frame

SEED = 42
# Seed and number of clips, and their sizes: those of TI2V are multiples of 32.
DATASETS = {"long": (SEED, 6000, SIZES), "short": (SEED + 1, 3000, SIZES), "square": (SEED + 2, 4000, ((64, 64),))}
RECIPE = Path(__file__).with_name("recipes") / "config.json"
# What differs from the recipe. A low-noise expert learns a good way beyond its side of the boundary, so that the
# high-noise one, which goes on from it, has less to learn.
T2V = {
    LOW: ("timestep_boundary=0.875",),
    HIGH: ("max_train_steps=3000", "learning_rate=0.006", "lr_warmup_steps=50"),
}
I2V = {
    LOW: ("timestep_boundary=0.9", "max_train_steps=10500", "learning_rate=0.006", "lr_warmup_steps=100"),
    HIGH: ("max_train_steps=1500", "learning_rate=0.003", "lr_warmup_steps=50"),
}
TI2V = ("max_train_steps=4000", "data_backend_config=square.json", "i2v_probability=0.7")
VAE = {"t2v": "vae", "i2v": "vae", "ti2v": "vae-2.2"}
# Small products: a second thread gains little, and page faults cost more than the arithmetic.
QUICKER = {"OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": str(2**32), "MALLOC_TRIM_THRESHOLD_": str(2**33)}


def make(folder: Path, *, jobs: int) -> Path:
    """Make whatever is missing in `folder`, `jobs` parts at a time; returns the finished model's folder.

    Raises BlockingIOError while another process, or a part that outlived it, is at work there, and ValueError for what
    another recipe began.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.set_inheritable(lock.fileno(), True)
        _same_recipe(folder / "recipe.sha256")
        _all(
            jobs,
            partial(_script, "train_vae", folder / "vae"),
            partial(_script, "train_text", folder / "text"),
            *(
                partial(_once, folder / "clips" / name, partial(write_dataset, seed=seed, count=count, sizes=sizes))
                for name, (seed, count, sizes) in DATASETS.items()
            ),
        )
        _once(folder / "untrained", partial(_assemble, folder, "t2v", _untrained))
        # One step alone fills the caches, which the experts then share.
        _train(folder, "cached", "t2v", LOW, "max_train_steps=1", "lr_warmup_steps=0")
        _all(
            jobs,
            partial(_train, folder, LOW, "t2v", LOW, *T2V[LOW]),
            partial(_script, "train_vae", folder / "decoder", "--refine", str(folder / "vae")),
            partial(_script, "train_vae", folder / "vae-2.2", "--kind", "2.2"),
        )
        for task in ("i2v", "ti2v"):
            _once(folder / f"{task}-untrained", partial(_assemble, folder, task, _untrained))
        _once(folder / "half-trained", partial(_assemble, folder, "t2v", _low_noise))
        _all(
            jobs,
            partial(_train, folder, f"i2v-{LOW}", "i2v", LOW, *I2V[LOW]),
            partial(_train, folder, HIGH, "t2v", HIGH, *T2V[HIGH], start="half-trained"),
            partial(_train, folder, "ti2v-high", "ti2v", HIGH, *TI2V),
        )
        _once(folder / "i2v-half-trained", partial(_assemble, folder, "i2v", _low_noise))
        _train(folder, f"i2v-{HIGH}", "i2v", HIGH, *I2V[HIGH], start="half-trained")
        for task in VAE:
            _once(folder / _named(task, "model"), partial(_assemble, folder, task, _trained))
    return folder / "model"


def _same_recipe(marker: Path) -> None:
    """That the folder's parts are made by one recipe, which the marker keeps the digest of."""
    recipe = RECIPE.read_text(encoding="utf-8") + repr((DATASETS, T2V, I2V, TI2V))
    digest = hashlib.sha256(recipe.encode()).hexdigest()
    if not marker.exists():
        marker.write_text(digest, encoding="utf-8")
    elif marker.read_text(encoding="utf-8") != digest:
        raise ValueError(f"{marker.parent} was begun with another recipe; make the miniature in a new folder")


def _named(task: str, name: str) -> str:
    return name if task == "t2v" else f"{task}-{name}"


def _train(folder: Path, name: str, task: str, expert: str, *overrides: str, start: str = "untrained") -> None:
    """Trains an expert from the model `start`, into `folder`/`name`; goes on where it was stopped."""
    if (folder / name / EXPERT_SUBFOLDER[expert]).exists():
        return
    wanted = [
        f"model_flavour={task}-mini" if task == "ti2v" else f"model_flavour={task}-mini-{expert}",
        f"pretrained_model_name_or_path={(folder / _named(task, start)).resolve()}",
        f"output_dir={folder / name}",
        *overrides,
    ]
    _run("simplewan", "train", "--config", str(RECIPE), *wanted, MINIATURE=str(folder.resolve()))


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


def _assemble(folder: Path, task: str, experts: Callable[[Path, str, str], Any], target: Path) -> None:
    """Writes a model folder from its parts; the transformers are what `experts` makes of folder, task and expert.

    Trained ones in bfloat16 with the VAE's last decoder, others in float32 as training begins with them.
    """
    trained = experts is _trained
    vae: Any = AutoencoderKLWan
    text_encoder: Any = UMT5EncoderModel
    dtype = torch.bfloat16 if trained else torch.float32
    save_model(
        target,
        task=task,
        vae=vae.from_pretrained(folder / ("decoder" if trained and task != "ti2v" else VAE[task])).to(dtype),
        tokenizer=AutoTokenizer.from_pretrained(folder / "text" / "tokenizer"),
        text_encoder=text_encoder.from_pretrained(folder / "text" / "text_encoder").to(dtype),
        experts={
            expert: experts(folder, task, expert).to(dtype)
            for expert in (EXPERT_SUBFOLDER if task != "ti2v" else (HIGH,))
        },
    )


def _untrained(folder: Path, task: str, expert: str) -> Any:
    """An expert as its training begins: of chance, but those of I2V are the trained low-noise one of T2V."""
    if task == "i2v":
        return with_first_frame(_trained(folder, "t2v", LOW))
    number = len(EXPERT_SUBFOLDER) if task == "ti2v" else list(EXPERT_SUBFOLDER).index(expert)
    return untrained_transformer(SEED + number, task)


def _low_noise(folder: Path, task: str, _expert: str) -> Any:
    """The trained low-noise expert in either place: the high-noise one goes on from it."""
    return _trained(folder, task, LOW)


def _trained(folder: Path, task: str, expert: str) -> Any:
    transformer: Any = WanTransformer3DModel
    return transformer.from_pretrained(folder / _named(task, expert) / EXPERT_SUBFOLDER[expert])


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the miniature from nothing. Goes on where it was stopped.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="parts to make at a time, a core each")
    arguments = parser.parse_args()
    print(make(arguments.folder, jobs=arguments.jobs))


if __name__ == "__main__":
    main()
