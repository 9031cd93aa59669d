"""Options of the run itself: where it writes, how long it lasts, how it is resumed."""

from __future__ import annotations

from pathlib import Path

from simplewan.options.declare import Group, option

# Half of what torch's generators take, so that the seeds which are made of it by adding fit, too.
MAX_SEED = 2**63 - 1


class RunOptions(Group):
    model_family: str = option(
        "wan",
        choices=("wan",),
        help="The family of models; this program trains Wan, and the key is kept for old files.",
    )
    output_dir: Path = option(
        Path("output"),
        restart_safe=True,
        help="Folder of the run: checkpoints, validation clips, events, final weights.",
    )
    seed: int = option(
        42, minimum=0, maximum=MAX_SEED, help="Seed of every random draw; the same seed gives the same run."
    )
    resume_from_checkpoint: str = option(
        "latest",
        restart_safe=True,
        help='"latest" goes on from the newest checkpoint, "none" starts anew (where there is none), "checkpoint-N" '
        "or a path names one.",
    )
    max_train_steps: int = option(
        0,
        minimum=0,
        maximum=10_000_000,
        unit="steps",
        restart_safe=True,
        help="Optimiser steps of the run, all experts together; 0 is off.",
    )
    num_train_epochs: int = option(
        0,
        minimum=0,
        maximum=100_000,
        unit="epochs",
        restart_safe=True,
        help="Passes over the data, by all experts together; 0 is off. The earlier end counts.",
    )
    ignore_final_epochs: bool = option(
        False, restart_safe=True, help="Only max_train_steps ends the run, however many epochs that takes."
    )
    max_train_seconds: float | None = option(
        None,
        minimum=1,
        unit="seconds",
        restart_safe=True,
        help="Save and leave in time, so that this attempt lasts no longer than this; none means no limit.",
    )
    deterministic: bool = option(
        False, help="Use only kernels that give the same bits each time (slower on a GPU; a CPU always does)."
    )
    disable_benchmark: bool = option(
        False, restart_safe=True, help="Do not render the untrained base model before the first step."
    )
    num_processes: int = option(
        1, minimum=1, later="training on several GPUs", help="Processes that train together, one a GPU."
    )
