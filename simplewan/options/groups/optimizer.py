"""Options of the optimiser, the learning rate, clipping, precision, and the averaged weights (EMA)."""

from __future__ import annotations

from simplewan.options.declare import Group, option

LATER_OPTIMIZERS = dict.fromkeys(
    (
        "adamw_bf16",
        "adamw_schedulefree",
        "ao-adamw8bit",
        "ao-adamw4bit",
        "ao-adamfp8",
        "bnb-adamw8bit-paged",
        "bnb-lion8bit",
        "bnb-lion8bit-paged",
        "optimi-adamw",
        "optimi-adam",
        "optimi-radam",
        "optimi-ranger",
        "optimi-adan",
        "optimi-sgd",
        "optimi-stableadamw",
        "lion",
        "adafactor",
        "prodigy",
        "sgd",
        "came",
        "soap",
    ),
    "this optimiser",
)
LATER_SCHEDULES = dict.fromkeys(
    ("cosine_with_restarts", "cosine_with_min_lr", "cosine_annealing", "sine", "rex"), "this schedule"
)
_FALLS = "lr_scheduler=linear|cosine|polynomial|cosine_with_restarts|cosine_with_min_lr|sine|rex"
_ADAM = "optimizer=adamw|bnb-adamw8bit"
_EMA = "use_ema"
_BELOW_1 = 0.999999  # the optimisers refuse 1, but only when they are made, after all caching


class OptimizerOptions(Group):
    optimizer: str = option(
        "adamw",
        choices=("adamw", "bnb-adamw8bit", "muon", "optimi-lion"),
        later_choices=LATER_OPTIMIZERS,
        aliases={"adamw8bit": "bnb-adamw8bit", "adamw-8bit": "bnb-adamw8bit", "torch-adamw": "adamw"},
        help="The optimiser. muon takes orthogonal steps for matrices, of AdamW's size, and AdamW's for the rest.",
    )
    learning_rate: float = option(1e-4, minimum=0, restart_safe=True, help="Peak learning rate.")
    lr_scheduler: str = option(
        "constant",
        choices=("constant", "constant_with_warmup", "linear", "cosine", "polynomial"),
        later_choices=LATER_SCHEDULES,
        restart_safe=True,
        help="How the learning rate changes over the run.",
    )
    lr_warmup_steps: int = option(
        0, minimum=0, unit="steps", restart_safe=True, help="Steps in which the rate grows from 0."
    )
    lr_end: float = option(1e-7, minimum=0, applies=_FALLS, restart_safe=True, help="Learning rate at the end.")
    lr_power: float = option(
        1.0,
        minimum=0,
        applies="lr_scheduler=polynomial",
        restart_safe=True,
        help="Power of the polynomial; 1 is a line.",
    )
    lr_num_cycles: int = option(
        1,
        minimum=1,
        applies="lr_scheduler=cosine_with_restarts",
        restart_safe=True,
        help="Number of cycles of cosine_with_restarts.",
    )
    adam_beta1: float = option(0.9, minimum=0, maximum=_BELOW_1, applies=_ADAM, help="Decay of AdamW's first moment.")
    adam_beta2: float = option(
        0.999, minimum=0, maximum=_BELOW_1, applies=_ADAM, help="Decay of AdamW's second moment."
    )
    adam_weight_decay: float = option(0.01, minimum=0, help="Weight decay, of every optimiser.")
    adam_epsilon: float = option(1e-8, minimum=0, applies=_ADAM, help="Added to AdamW's denominator.")
    optimizer_beta1: float | None = option(
        None,
        minimum=0,
        maximum=_BELOW_1,
        help="First beta of any optimiser; none takes adam_beta1, 0.9 for Lion, 0.95 for Muon.",
    )
    optimizer_beta2: float | None = option(
        None,
        minimum=0,
        maximum=_BELOW_1,
        help="Second beta of any optimiser; none takes adam_beta2, 0.99 for Lion, 0.95 for Muon.",
    )
    max_grad_norm: float = option(
        1.0, minimum=0, help="Clip the gradient to this norm (or this value, see grad_clip_method); 0 leaves it alone."
    )
    grad_clip_method: str = option(
        "norm", choices=("norm", "value"), help="norm scales the whole gradient, value clips each of its elements."
    )
    gradient_accumulation_steps: int = option(
        1, minimum=1, unit="batches", help="Batches whose gradients are added up before the optimiser steps."
    )
    mixed_precision: str = option(
        "bf16", choices=("no", "fp16", "bf16"), help="Number format of the computation; no means float32."
    )
    use_ema: bool = option(
        False, later="averaged weights (EMA)", help="Keep an exponential moving average of the trained weights."
    )
    ema_decay: float = option(0.995, minimum=0, maximum=1, applies=_EMA, help="Decay of the average.")
    ema_update_interval: int = option(1, minimum=1, unit="steps", applies=_EMA, help="Steps between two updates of it.")
    ema_warmup_steps: int = option(0, minimum=0, unit="steps", applies=_EMA, help="Steps before it starts.")
    ema_device: str = option("accelerator", choices=("accelerator", "cpu"), applies=_EMA, help="Where it is held.")
    ema_cpu_only: bool = option(False, applies=_EMA, help="Hold and update it on the CPU.")
    ema_validation: str = option(
        "comparison",
        choices=("none", "ema_only", "comparison"),
        applies=_EMA,
        restart_safe=True,
        help="Which weights validation renders: the trained ones, the average, or both side by side.",
    )
