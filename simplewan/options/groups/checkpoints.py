"""Options of saving: checkpoints, and what is pushed to a hub."""

from __future__ import annotations

from simplewan.options.declare import Group, option

_PUSH = "push_to_hub"
_HUB = "pushing to a hub"


class CheckpointOptions(Group):
    checkpoint_step_interval: int = option(
        500,
        minimum=0,
        unit="steps",
        restart_safe=True,
        help="Save every so many steps; 0 is off (the end still saves).",
    )
    checkpoint_epoch_interval: int = option(
        0, minimum=0, unit="epochs", restart_safe=True, help="Save every so many epochs; 0 is off."
    )
    checkpoints_total_limit: int | None = option(
        None, minimum=1, restart_safe=True, help="Keep this many checkpoints, the newest; none keeps all."
    )
    push_to_hub: bool = option(False, later=_HUB, restart_safe=True, help="Upload the final weights to the hub.")
    push_checkpoints_to_hub: bool = option(False, later=_HUB, restart_safe=True, help="Upload each checkpoint too.")
    push_to_hub_background: bool = option(
        False, applies=_PUSH, restart_safe=True, help="Upload beside the training instead of pausing it."
    )
    hub_model_id: str | None = option(
        None, applies=_PUSH, restart_safe=True, help="Name of the repository: user/name, or name."
    )
    model_card_private: bool = option(False, applies=_PUSH, restart_safe=True, help="Make the repository private.")
    model_card_note: str | None = option(None, applies=_PUSH, restart_safe=True, help="A note for the model card.")
    model_card_safe_for_work: bool = option(
        False, applies=_PUSH, restart_safe=True, help="State in the model card that the samples are safe for work."
    )
