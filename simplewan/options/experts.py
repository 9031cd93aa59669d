"""What the options mean for one expert of Wan 2.2: its own value where it has one, else the common one.

An expert's own values count whether it is trained alone or with the other, so that one configuration serves all three
ways. Imports the catalogue and the flavours; no torch.
"""

from __future__ import annotations

from simplewan.flavours import Flavour
from simplewan.options.catalogue import Options
from simplewan.options.declare import BOTH_EXPERTS, HOLDS_FIRST_FRAME, OF_EXPERT
from simplewan.options.groups.adapter import AdapterOptions

ADAPTER_KEYS = ("lora_rank", "lora_alpha", "init_lora")


def has_own(flavour: Flavour, expert: str) -> bool:
    """Whether `expert` is trained, as one of two, so that options of its own are read."""
    return flavour.boundary is not None and expert in flavour.trained_experts


def facts_of(flavour: Flavour) -> dict[str, bool]:
    """What the conditions of options ask of the flavour (declare.FACTS)."""
    return {
        BOTH_EXPERTS: flavour.trains_both,
        **{fact: has_own(flavour, expert) for expert, fact in OF_EXPERT.items()},
        HOLDS_FIRST_FRAME: flavour.holds_first_frame,
    }


def key_of(options: Options, flavour: Flavour, expert: str, key: str) -> str:
    """The option that says `key` of `expert`: its own where it is set, else the common one."""
    own = f"{key}_{expert}"
    return own if has_own(flavour, expert) and getattr(options.experts, own) is not None else key


def adapter_of(options: Options, flavour: Flavour, expert: str) -> AdapterOptions:
    """The adapter options of `expert`."""
    told = {key: key_of(options, flavour, expert, key) for key in ADAPTER_KEYS}
    own = {key: getattr(options.experts, name) for key, name in told.items() if name != key}
    return options.adapter.model_copy(update=own)


def learning_rate_of(options: Options, flavour: Flavour, expert: str) -> float:
    """The peak learning rate of `expert`."""
    key = key_of(options, flavour, expert, "learning_rate")
    rate: float = getattr(options.optimizer if key == "learning_rate" else options.experts, key)
    return rate


def budgets_of(options: Options, flavour: Flavour) -> dict[str, int]:
    """The most steps of each trained expert, of those that have such a limit."""
    trained = [expert for expert in flavour.trained_experts if has_own(flavour, expert)]
    found = {expert: getattr(options.experts, f"max_train_steps_{expert}") for expert in trained}
    return {expert: steps for expert, steps in found.items() if steps}
