"""Options of the adapter that is trained beside a frozen base (model_type lora)."""

from __future__ import annotations

from pathlib import Path

from pydantic import field_validator

from simplewan.options.declare import Group, Mistake, option
from simplewan.options.values import Words

_LORA = "model_type=lora"


class AdapterOptions(Group):
    lora_type: str = option(
        "standard",
        choices=("standard",),
        later_choices={"lycoris": "LyCORIS adapters (LoKr, LoHa, LoCon ...)"},
        applies=_LORA,
        help="Kind of adapter: standard is PEFT's LoRA.",
    )
    lora_rank: int = option(16, minimum=1, applies=_LORA, help="Rank of the adapter: more learns more and weighs more.")
    lora_alpha: float | None = option(
        None, minimum=1e-3, applies=_LORA, help="Scale is alpha / rank; none means alpha = rank, a scale of 1."
    )
    lora_dropout: float = option(
        0.0, minimum=0, maximum=1, applies=_LORA, help="Share of the adapter's inputs that are dropped in training."
    )
    lora_targets: Words = option(
        ("attention",),
        applies=_LORA,
        help='Linears that get an adapter: "attention" (q, k, v and out of both attentions), "all" (these and the '
        "feed-forward, ten a block), or names such as to_q, ffn.net.2.",
    )
    lora_init_type: str = option(
        "default",
        choices=("default", "gaussian"),
        later_choices={
            "pissa": "PiSSA initialisation",
            "olora": "OLoRA initialisation",
            "loftq": "LoftQ initialisation",
        },
        applies=_LORA,
        help="How the adapter's first matrix starts; the second starts at zero.",
    )
    use_dora: bool = option(
        False, later="DoRA adapters", applies=_LORA, help="Decompose weights in magnitude and direction (DoRA)."
    )
    use_rslora: bool = option(
        False, later="rank-stabilised LoRA", applies=_LORA, help="Scale by alpha / sqrt(rank) (rsLoRA)."
    )
    init_lora: Path | None = option(
        None, applies=_LORA, help="A LoRA file (.safetensors) to start from; none starts from nothing."
    )
    lycoris_config: Path | None = option(
        None,
        applies="lora_type=lycoris",
        help="JSON file of the LyCORIS adapter: algo, multiplier, linear_dim, linear_alpha, factor, full_matrix, "
        "apply_preset.",
    )

    @field_validator("lora_targets", mode="after")
    @classmethod
    def _named(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value or not all(name.strip() for name in value):
            fix = "leave it out (attention is taken), or write attention, all, or names of linears"
            raise Mistake("holds an empty name" if value else "is empty", fix=fix)
        return value
