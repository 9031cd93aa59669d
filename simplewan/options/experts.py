"""What the options mean for one expert of Wan 2.2: its own value where it has one, else the common one.

An expert's own values count whether it is trained alone or with the other, so that one configuration serves all three
ways. Imports the catalogue and the flavours; no torch.
"""

from __future__ import annotations

from simplewan.flavours import Flavour
from simplewan.options.catalogue import Options
from simplewan.options.groups.adapter import AdapterOptions

ADAPTER_KEYS = ("lora_rank", "lora_alpha", "init_lora")


def has_own(flavour: Flavour, expert: str) -> bool:
    """Whether `expert` is trained, as one of two, so that options of its own are read."""
    return flavour.boundary is not None and expert in flavour.trained_experts


def adapter_of(options: Options, flavour: Flavour, expert: str) -> AdapterOptions:
    """The adapter options of `expert`."""
    if not has_own(flavour, expert):
        return options.adapter
    own = {key: getattr(options.experts, f"{key}_{expert}") for key in ADAPTER_KEYS}
    return options.adapter.model_copy(update={key: value for key, value in own.items() if value is not None})


def learning_rate_of(options: Options, flavour: Flavour, expert: str) -> float:
    """The peak learning rate of `expert`."""
    own: float | None = getattr(options.experts, f"learning_rate_{expert}") if has_own(flavour, expert) else None
    return options.optimizer.learning_rate if own is None else own


def budgets_of(options: Options, flavour: Flavour) -> dict[str, int]:
    """The most steps of each trained expert, of those that have such a limit."""
    trained = [expert for expert in flavour.trained_experts if has_own(flavour, expert)]
    found = {expert: getattr(options.experts, f"max_train_steps_{expert}") for expert in trained}
    return {expert: steps for expert, steps in found.items() if steps}
