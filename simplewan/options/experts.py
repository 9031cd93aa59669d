"""What the options mean for one expert: its own value where both are trained and it has one, else the common one.

Imports the catalogue and the flavours; no torch.
"""

from __future__ import annotations

from simplewan.flavours import Flavour
from simplewan.options.catalogue import Options
from simplewan.options.groups.adapter import AdapterOptions

ADAPTER_KEYS = ("lora_rank", "lora_alpha", "init_lora")


def adapter_of(options: Options, flavour: Flavour, expert: str) -> AdapterOptions:
    """The adapter options of `expert`."""
    if not flavour.trains_both:
        return options.adapter
    own = {key: getattr(options.experts, f"{key}_{expert}") for key in ADAPTER_KEYS}
    return options.adapter.model_copy(update={key: value for key, value in own.items() if value is not None})


def learning_rate_of(options: Options, flavour: Flavour, expert: str) -> float:
    """The peak learning rate of `expert`."""
    own: float | None = getattr(options.experts, f"learning_rate_{expert}") if flavour.trains_both else None
    return options.optimizer.learning_rate if own is None else own


def budgets_of(options: Options, flavour: Flavour) -> dict[str, int]:
    """The most steps of each trained expert, of those that have such a limit."""
    if not flavour.trains_both:
        return {}
    found = {expert: getattr(options.experts, f"max_train_steps_{expert}") for expert in flavour.trained_experts}
    return {expert: steps for expert, steps in found.items() if steps}
