"""Options of Wan 2.2's two experts: what each has of its own, and where both are trained, turns and waiting."""

from __future__ import annotations

from pathlib import Path

from simplewan.options.declare import BOTH_EXPERTS, OF_EXPERT, Group, option

_HIGH, _LOW = OF_EXPERT["high"], OF_EXPERT["low"]
_LORA_HIGH, _LORA_LOW = f"{_HIGH}&model_type=lora", f"{_LOW}&model_type=lora"
_EXPERTS = {"high": "high-noise", "low": "low-noise"}


def _own(key: str, expert: str) -> str:
    return f"{key} of the {_EXPERTS[expert]} expert; none takes {key}."


def _budget(expert: str) -> str:
    return f"Most steps of the {_EXPERTS[expert]} expert, after which the other, if trained, goes on alone; 0 is off."


def _start(expert: str) -> str:
    return f"A LoRA file (.safetensors) that the {_EXPERTS[expert]} expert starts from; none starts from nothing."


class ExpertOptions(Group):
    expert_share: float | None = option(
        None,
        minimum=0,
        maximum=1,
        applies=BOTH_EXPERTS,
        restart_safe=True,
        help="Share of the steps that the high-noise expert takes; none takes the share of the training timesteps that "
        "lie at or above the boundary.",
    )
    expert_run_steps: int = option(
        8,
        minimum=1,
        unit="steps",
        applies=BOTH_EXPERTS,
        restart_safe=True,
        help="Steps that an expert takes in a row before the other may take over: more spend less time on the change.",
    )
    idle_expert: str = option(
        "auto",
        choices=("auto", "stay", "cpu", "disk"),
        aliases={"gpu": "stay", "cuda": "stay", "device": "stay", "ram": "cpu"},
        applies=BOTH_EXPERTS,
        restart_safe=True,
        help="Where the expert waits whose turn it is not: it may stay on the device, or wait in the machine's memory "
        "or in a file below output_dir. auto looks at what there is room for. The result is the same.",
    )
    max_train_steps_high: int = option(
        0, minimum=0, unit="steps", applies=_HIGH, restart_safe=True, help=_budget("high")
    )
    max_train_steps_low: int = option(0, minimum=0, unit="steps", applies=_LOW, restart_safe=True, help=_budget("low"))
    learning_rate_high: float | None = option(
        None, minimum=0, applies=_HIGH, restart_safe=True, help=_own("learning_rate", "high")
    )
    learning_rate_low: float | None = option(
        None, minimum=0, applies=_LOW, restart_safe=True, help=_own("learning_rate", "low")
    )
    lora_rank_high: int | None = option(None, minimum=1, applies=_LORA_HIGH, help=_own("lora_rank", "high"))
    lora_rank_low: int | None = option(None, minimum=1, applies=_LORA_LOW, help=_own("lora_rank", "low"))
    lora_alpha_high: float | None = option(None, minimum=1e-3, applies=_LORA_HIGH, help=_own("lora_alpha", "high"))
    lora_alpha_low: float | None = option(None, minimum=1e-3, applies=_LORA_LOW, help=_own("lora_alpha", "low"))
    init_lora_high: Path | None = option(None, applies=_LORA_HIGH, help=_start("high"))
    init_lora_low: Path | None = option(None, applies=_LORA_LOW, help=_start("low"))
