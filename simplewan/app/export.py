"""The trained weights in the format that others load: a LoRA in the universal keys, or a transformer's folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from simplewan.app.context import Context
from simplewan.app.roles import Expert, boundary, training_shift
from simplewan.data.atomic import atomic_folder
from simplewan.errors import TrainingFailure
from simplewan.flavours import EXPERT_SUBFOLDER
from simplewan.models.adapters import adapter_alpha, adapter_scale, adapter_state, cast_for_saving
from simplewan.models.lora.change import UNTRAINED
from simplewan.models.lora.write import lora_file_name, lora_metadata, save_lora
from simplewan.options.experts import adapter_of
from simplewan.options.hashing import config_hash

# What is said of a LoRA that changes a weight by more than the weight itself, and what to do about it.
EXCESSIVE = (
    ": more than a weight itself, which is most likely spoilt; train anew with a lower learning_rate, or take the LoRA "
    "of an earlier checkpoint"
)


def export_loras(
    context: Context, experts: Mapping[str, Expert], folder: Path, *, step: int, announce: bool = False
) -> list[Path]:
    """Write the LoRA of every trained expert into `folder`, verified; returns the files."""
    return [_export_lora(context, expert, folder, step=step, announce=announce) for expert in experts.values()]


def export_transformers(context: Context, experts: Mapping[str, Expert], folder: Path) -> list[Path]:
    """Write every fully trained transformer as a diffusers folder in the dtype of mixed precision.

    The float32 masters are cast in place, since a copy may not fit: training must be over.
    """
    return [_export_transformer(context, expert, folder) for expert in experts.values()]


def _export_lora(context: Context, expert: Expert, folder: Path, *, step: int, announce: bool) -> Path:
    flavour = context.flavour
    adapter = adapter_of(context.options, flavour, expert.name)
    path = folder / lora_file_name(flavour, expert.name)
    metadata = lora_metadata(
        flavour,
        expert.name,
        rank=adapter.lora_rank,
        alpha=adapter_alpha(adapter),
        base_model=_base_name(context.options.model.pretrained_model_name_or_path or flavour.repository),
        shift=None if context.options.flow.flow_schedule_auto_shift else training_shift(context),
        boundary=boundary(context),
        step=step,
        targets=list(adapter.lora_targets),
        config_hash=config_hash(context.loaded),
    )
    try:
        report = save_lora(
            path,
            adapter_state(expert.transformer),
            scale=adapter_scale(expert.transformer),
            metadata=metadata,
            transformer=expert.transformer,
        )
    except ValueError as error:
        raise TrainingFailure(f"the LoRA of step {step} was not written: {error}") from error
    if announce:
        said = f"{path.name}: the {flavour.called(expert.name)} {UNTRAINED}" if report.untrained else str(report)
        said += EXCESSIVE if report.is_excessive else ""
        context.say(said, warning=report.zero_modules > 0 or report.is_excessive)
    return path


def _base_name(name: str) -> str:
    """The base model's name as others may read it: a hub repository, or a local folder without the way to it."""
    path = Path(name).expanduser()
    return path.name if path.exists() else name


def _export_transformer(context: Context, expert: Expert, folder: Path) -> Path:
    cast_for_saving(expert.transformer, context.weight_dtype)
    final = folder / EXPERT_SUBFOLDER[expert.name]
    with atomic_folder(final) as temporary:
        expert.transformer.save_pretrained(temporary)
    return final
