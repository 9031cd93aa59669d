"""A trained LoRA as one file that ComfyUI, diffusers, DiffSynth and LightX2V load, written atomically and verified.

Keys are `diffusion_model.` + Wan's own names + lora_A / lora_B; alpha is folded into B, so the scale is 1 and a reader
that knows no alpha is right too. After writing, the file is read back through diffusers' own converter (not ours).
Imports torch, safetensors, and diffusers on use.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from simplewan.data.atomic import atomic_path
from simplewan.errors import Problem, UserError
from simplewan.flavours import Flavour
from simplewan.models.keys import UNIVERSAL_PREFIX, to_diffusers, to_original

FORMAT = "diffusion_model, lora_A and lora_B, alpha folded in (scale 1)"
_PAIR = {"lora_A": ("lora_A", "lora_down"), "lora_B": ("lora_B", "lora_up")}


@dataclass(frozen=True)
class LoraReport:
    """What is in a verified file. Norms are those of B A (Frobenius) over the norm of the weight it is added to."""

    path: Path
    modules: int
    parameters: int
    bytes: int
    ranks: tuple[int, ...]
    zero_modules: int
    smallest_norm: float
    median_norm: float
    largest_norm: float

    def __str__(self) -> str:
        changes = f"changes {self.smallest_norm:.2g} to {self.largest_norm:.2g} of the weights"
        rank = ", ".join(str(rank) for rank in self.ranks)
        idle = f", {self.zero_modules} without effect" if self.zero_modules else ""
        return f"{self.path.name}: all {self.modules} modules match, rank {rank}, scale 1, {changes}{idle}"


def lora_file_name(flavour: Flavour, expert: str) -> str:
    """The file's name: of Wan 2.2 A14B one a expert, of the other models the one that everybody looks for."""
    ending = f"_{expert}_noise" if flavour.boundary is not None else ""
    return f"pytorch_lora_weights{ending}.safetensors"


def lora_metadata(
    flavour: Flavour, expert: str, *, rank: int, alpha: float, base_model: str, shift: float | None, **more: Any
) -> dict[str, str]:
    """The file's metadata, all text; what is None is left out."""
    values: dict[str, Any] = {
        "format": "pt",
        "lora_format": FORMAT,
        "base_model": base_model,
        "model_flavour": flavour.name,
        "task": flavour.task,
        "expert": f"{expert}_noise" if flavour.boundary is not None else None,
        "boundary": flavour.boundary,
        "shift": shift,
        "rank": rank,
        "alpha": alpha,
        **more,
    }
    return {
        key: value if isinstance(value, str) else json.dumps(value)
        for key, value in values.items()
        if value is not None
    }


def universal_state(
    state: Mapping[str, Tensor], *, scale: float, dtype: torch.dtype = torch.float32
) -> dict[str, Tensor]:
    """`adapter_state` in the universal names, B times `scale`, alpha / rank. Raises ValueError if not finite."""
    universal = {}
    for key, value in state.items():
        if not torch.isfinite(value).all():
            raise ValueError(f"{key} is not finite: not written")
        module, side, _ = key.rsplit(".", 2)
        scaled = value.float() * scale if side == "lora_B" and scale != 1 else value
        universal[f"{UNIVERSAL_PREFIX}{to_original(module)}.{side}.weight"] = scaled.to("cpu", dtype).contiguous()
    return universal


def save_lora(
    path: Path,
    state: Mapping[str, Tensor],
    *,
    scale: float,
    metadata: Mapping[str, str],
    transformer: nn.Module,
    dtype: torch.dtype = torch.float32,
) -> LoraReport:
    """Write `adapter_state` to `path` (temporary name, fsync, rename) and verify what is read back.

    `transformer` is the base it was trained on. Raises ValueError, and leaves the old file, when a weight is not
    finite or the file does not read back.
    """
    universal = universal_state(state, scale=scale, dtype=dtype)
    with atomic_path(path) as temporary:
        save_file(universal, temporary, metadata=dict(metadata))
        sort_metadata(temporary)
        report = verify_lora_file(temporary, transformer)
        if report.modules != len(universal) // 2:
            raise ValueError(f"{path.name} reads back {report.modules} of {len(universal) // 2} modules")
    return LoraReport(**{**vars(report), "path": path})


def sort_metadata(path: Path) -> None:
    """Put a safetensors file's metadata in order, in place.

    The library writes metadata in a random order, and then the same weights would not be the same bytes.
    """
    with path.open("rb+") as stream:
        length = int.from_bytes(stream.read(8), "little")
        header = json.loads(stream.read(length))
        header["__metadata__"] = dict(sorted(header.get("__metadata__", {}).items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode().ljust(length)
        assert len(text) == length, "the sorted header is as long as it was"
        stream.seek(8)
        stream.write(text)


def verify_lora_file(path: Path, transformer: nn.Module) -> LoraReport:
    """Read a LoRA file as WanPipeline would, and match every key and shape with a linear of `transformer`.

    Raises ValueError naming what does not match.
    """
    from diffusers.loaders import WanLoraLoaderMixin

    converted = WanLoraLoaderMixin.lora_state_dict(str(path.parent), weight_name=path.name)
    pairs: dict[str, dict[str, Tensor]] = {}
    for key, value in converted.items():
        module, side, _ = key.removeprefix("transformer.").rsplit(".", 2)
        pairs.setdefault(module, {})[side] = value
    changes = []
    for module, pair in pairs.items():
        weight = _base_weight(transformer, module)
        if pair.keys() != {"lora_A", "lora_B"}:
            raise ValueError(f"{path.name}: {module} has {sorted(pair)}, not lora_A and lora_B")
        down, up = pair["lora_A"].float(), pair["lora_B"].float()
        if (up.shape[0], down.shape[1]) != weight.shape or up.shape[1] != down.shape[0]:
            raise ValueError(f"{path.name}: {module} has shapes that do not fit {tuple(weight.shape)}")
        changes.append(product_norm(down, up) / max(weight.float().norm().item(), 1e-12))
    return LoraReport(
        path=path,
        modules=len(pairs),
        parameters=sum(value.numel() for value in converted.values()),
        bytes=path.stat().st_size,
        ranks=tuple(sorted({pair["lora_A"].shape[0] for pair in pairs.values()})),
        zero_modules=sum(change == 0 for change in changes),
        smallest_norm=min(changes),
        median_norm=statistics.median(changes),
        largest_norm=max(changes),
    )


def product_norm(down_RI: Tensor, up_OR: Tensor) -> float:
    """Frobenius norm of up @ down without the product: tr((up' up)(down down')), (R, I), (O, R) -> float."""
    squared = ((up_OR.T @ up_OR).double() * (down_RI @ down_RI.T).double()).sum().item()
    return max(squared, 0.0) ** 0.5


def read_lora(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """A LoRA file as `adapter_state` of scale 1 (alpha folded in) and its metadata.

    Understood: original names, bare or behind `diffusion_model.`; diffusers names; A/B and down/up; `.alpha`.
    Raises UserError for another file.
    """
    try:
        tensors = load_file(path)
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
        return _folded(tensors), metadata
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        fix = "give a .safetensors file with keys such as diffusion_model.blocks.0.self_attn.q.lora_A.weight"
        raise UserError(Problem(str(path), f"is no LoRA of a Wan transformer ({error})", fix=fix)) from error


def _folded(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    state: dict[str, Tensor] = {}
    for key, value in tensors.items():
        bare = key.removeprefix(UNIVERSAL_PREFIX).removeprefix("transformer.")
        if bare.endswith(".alpha"):
            continue
        name, side, _ = bare.rsplit(".", 2)
        side = next(ours for ours, names in _PAIR.items() if side in names) if "lora_" in side else side
        module = name if ".attn" in name or "ffn.net" in name or "condition_embedder" in name else to_diffusers(name)
        alpha = tensors.get(key.rsplit(".", 2)[0] + ".alpha")
        if alpha is not None and side == "lora_B":
            value = value.float() * (alpha.item() / value.shape[1])
        state[f"{module}.{side}.weight"] = value.float()
    return state


def _base_weight(transformer: nn.Module, module: str) -> Tensor:
    try:
        layer = transformer.get_submodule(module)
    except AttributeError as error:
        raise ValueError(f"the model has no module {module}") from error
    return getattr(layer, "base_layer", layer).weight
