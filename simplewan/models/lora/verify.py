"""Reading a written LoRA file back with other eyes than those that wrote it, and comparing.

Module names go through diffusers' own converters and must be names of diffusers' own model; the ends of the keys have
a strict grammar of their own here, one a tool. Nothing of `keys` or of the reader's grammar is used. Imports torch, and
diffusers on use.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn

from simplewan.headers import read_safetensors
from simplewan.models.lora.change import Change, product_norm
from simplewan.models.lora.fit import misfit
from simplewan.models.lora.skeleton import Shapes

# What rounding to a dtype may change of a product of two matrices.
TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
_FACTORS = r"lokr_w[12](?:_[ab])?|lokr_t2|hada_w[12]_[ab]|hada_t[12]|alpha|dora_scale"
_WHOLE = r"diff|diff_b"
_PAIR = r"lora_[AB]\.weight|lora_(?:up|down|mid)\.weight"
_GRAMMAR = {
    "universal": rf"diffusion_model\.(.+?)\.({_PAIR}|{_FACTORS}|{_WHOLE}|diff_m)",
    "comfyui": rf"diffusion_model\.(.+?)\.({_PAIR}|{_FACTORS}|{_WHOLE})",
    "diffusers": r"transformer\.(.+?)\.(lora_[AB]\.weight|lora_B\.bias)",
    "musubi": rf"lora_unet_(\w+)\.(lora_(?:up|down|mid)\.weight|{_FACTORS})",
    "lycoris": rf"lycoris_(\w+)\.(lora_(?:up|down|mid)\.weight|{_FACTORS}|{_WHOLE}|w_norm|b_norm)",
}
_FLAT_BLOCK = re.compile(r"blocks_(\d+)_(self_attn|cross_attn|ffn)_(\w+)")
_FLAT_TOP = re.compile(r"(text_embedding|time_embedding|time_projection|head|img_emb_proj)_(\w+)")


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
    largest_norm: float

    @property
    def untrained(self) -> bool:
        return self.zero_modules == self.modules

    @property
    def is_excessive(self) -> bool:
        """Whether a weight is changed by more than itself; sound training changes one by a few hundredths."""
        return self.largest_norm > 1

    def __str__(self) -> str:
        changes = f"changes {self.smallest_norm:.2g} to {self.largest_norm:.2g} of the weights"
        rank = ", ".join(str(rank) for rank in self.ranks)
        idle = f", {self.zero_modules} without effect" if self.zero_modules else ""
        return f"{self.path.name}: all {self.modules} modules match, rank {rank}, scale 1, {changes}{idle}"


def read_as_diffusers(path: Path) -> dict[str, dict[str, Tensor]]:
    """The tensors that WanPipeline.load_lora_weights would use: {module: {lora_A, lora_B}}.

    Raises ValueError for what diffusers refuses.
    """
    return _by_diffusers(str(path.parent), read_safetensors(path).tensors, weight_name=path.name)


def convert_as_diffusers(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """The same of tensors that are in no file."""
    return _by_diffusers(dict(tensors), tensors)


def _by_diffusers(source: str | dict[str, Tensor], keys: Iterable[str], **place: str) -> dict[str, dict[str, Tensor]]:
    from diffusers.loaders import WanLoraLoaderMixin

    try:
        converted = WanLoraLoaderMixin.lora_state_dict(source, **place)
    except (ValueError, KeyError, IndexError, AttributeError, RuntimeError, ArithmeticError) as error:
        if not any("blocks" in key for key in keys):  # it counts the blocks, and stumbles over none
            raise ValueError("diffusers reads no LoRA that changes nothing in the blocks") from error
        said = "" if isinstance(error, ValueError) else f"{type(error).__name__} "
        raise ValueError(f"{said}{error}") from error
    pairs: dict[str, dict[str, Tensor]] = {}
    for key, value in converted.items():
        module, _, ending = key.removeprefix("transformer.").rpartition(".lora_")
        if not key.startswith("transformer.") or ending not in ("A.weight", "B.weight", "B.bias"):
            raise ValueError(f"{key} is passed over")
        pairs.setdefault(module, {})[f"lora_{ending.removesuffix('.weight')}"] = value
    biases = [module for module, pair in pairs.items() if "lora_B.bias" in pair]
    if biases and len(biases) < len(pairs):
        raise ValueError(f"{len(biases)} of {len(pairs)} modules have a bias, and its loader wants all or none")
    return pairs


def verify_lora_file(path: Path, transformer: nn.Module) -> LoraReport:
    """Read a LoRA file as WanPipeline would, and match every key and shape with a linear of `transformer`.

    Raises ValueError naming what does not match.
    """
    pairs = read_as_diffusers(path)
    if not pairs:
        raise ValueError(f"diffusers finds no LoRA in {path.name}")
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
        parameters=sum(value.numel() for pair in pairs.values() for value in pair.values()),
        bytes=path.stat().st_size,
        ranks=tuple(sorted({pair["lora_A"].shape[0] for pair in pairs.values()})),
        zero_modules=sum(change == 0 for change in changes),
        smallest_norm=min(changes),
        largest_norm=max(changes),
    )


def _base_weight(transformer: nn.Module, module: str) -> Tensor:
    try:
        layer = transformer.get_submodule(module)
    except AttributeError as error:
        raise ValueError(f"the model has no module {module}") from error
    return getattr(layer, "base_layer", layer).weight


def verify_export(
    path: Path, changes: Sequence[Change], *, convention: str, shapes: Shapes, dtype: torch.dtype
) -> None:
    """Read an exported file back and compare names, shapes and values with the changes that it was made of.

    Products of pairs and scales must agree to what `dtype` rounds, other factors too. Raises ValueError.
    """
    found = _parse(path, convention, shapes)
    wanted = {change.module: change for change in changes}
    for module in found.keys() ^ wanted.keys():
        what = "is not in the file" if module in wanted else "was not exported"
        raise ValueError(f"{path.name}: {module} {what}")
    for module, parts in found.items():
        error = _difference(parts, wanted[module])
        if not error <= TOLERANCE[dtype]:
            raise ValueError(f"{path.name}: {module} reads back {error:.2g} off")
        if (fault := misfit(wanted[module], shapes)) is not None:
            raise ValueError(f"{path.name}: {fault}")


def _parse(path: Path, convention: str, shapes: Shapes) -> dict[str, dict[str, Tensor]]:
    """{diffusers' module: {end of the key: tensor}}. Raises ValueError for a key that is not understood."""
    grammar = re.compile(_GRAMMAR[convention])
    parts: dict[str, dict[str, Tensor]] = {}
    with safe_open(path, framework="pt") as file:
        for key in file.keys():  # noqa: SIM118 (safe_open is no mapping)
            match = grammar.fullmatch(key)
            if match is None:
                raise ValueError(f"{path.name}: {key} is no key of a {convention} file")
            name, ending = match.groups()
            if ending == "diff_m":
                name, ending = f"{name}.modulation", "diff"
            parts.setdefault(name, {})[ending] = file.get_tensor(key)
    names = _diffusers_names(list(parts), convention, shapes)
    return {names[name]: values for name, values in parts.items()}


def _diffusers_names(names: Sequence[str], convention: str, shapes: Shapes) -> dict[str, str]:
    """The file's names to diffusers'. Raises ValueError for one that diffusers' model does not have."""
    modules = {key.rpartition(".")[0] if key.endswith((".weight", ".bias")) else key for key in shapes}
    if convention == "lycoris":
        flat = {module.replace(".", "_"): module for module in modules}
        found = {name: flat.get(name, "") for name in names}
    elif convention == "diffusers":
        found = {name: name for name in names}
    else:
        found = _converted(names, flat=convention == "musubi")
    lost = [name for name, module in found.items() if module not in modules]
    if lost:
        raise ValueError(f"the model has no {lost[0]}" + (f", and {len(lost) - 1} more" if len(lost) > 1 else ""))
    return found


def _converted(names: Sequence[str], *, flat: bool) -> dict[str, str]:
    """Wan's own names to diffusers' by the converter with which diffusers loads Wan's single files."""
    from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers

    dotted = [_dotted(name) if flat else name for name in names]
    tails = ["" if name.endswith(("modulation", "emb_pos")) else ".weight" for name in dotted]
    numbers = {
        f"{name}{tail}": torch.tensor(index) for index, (name, tail) in enumerate(zip(dotted, tails, strict=True))
    }
    converted = convert_wan_transformer_to_diffusers(numbers)
    found = {int(index): name.removesuffix(".weight") for name, index in converted.items()}
    return {name: found[index].replace("img_emb.emb_pos", "condition_embedder.image_embedder.pos_embed")
            for index, name in enumerate(names)}  # fmt: skip


def _dotted(name: str) -> str:
    """A name with underscores as Wan's own with dots, for the modules that musubi trains."""
    if (block := _FLAT_BLOCK.fullmatch(name)) is not None:
        return "blocks.{}.{}.{}".format(*block.groups())
    if (top := _FLAT_TOP.fullmatch(name)) is not None:
        return f"{top[1].replace('img_emb_proj', 'img_emb.proj')}.{top[2]}"
    return name


def _difference(parts: Mapping[str, Tensor], change: Change) -> float:
    """The largest relative difference of what is read and what was meant; nan if a part lacks."""
    parts = dict(parts)
    spelled = [name for name in parts if re.fullmatch(r"lora_(A|B|down|up)\.weight", name)]
    errors = [0.0]
    if spelled and "mid" not in change.factors:
        if len(spelled) != 2:
            return float("nan")
        down, up = (parts.pop(name).float().flatten(1) for name in sorted(spelled))  # A before B, down before up
        alpha = parts.pop("alpha", None)
        scale = 1.0 if alpha is None else alpha.item() / down.shape[0]
        own_down, own_up = (change.factors[name].float().flatten(1) for name in ("down", "up"))
        if (down.shape[1], up.shape[0]) != (own_down.shape[1], own_up.shape[0]):
            return float("nan")
        apart = product_norm(torch.cat([down, own_down]), torch.cat([up * scale, -own_up * change.scale], dim=1))
        errors.append(apart / max(product_norm(own_down, own_up) * abs(change.scale), 1e-30))
    else:
        alpha = parts.pop("alpha", None)
        if alpha is not None and change.rank is not None:
            errors.append(abs(alpha.item() / change.rank - change.scale) / max(abs(change.scale), 1e-30))
        for name, value in change.factors.items():
            spelling = next((word for word in (name, f"lora_{name}.weight", "w_norm") if word in parts), None)
            errors.append(float("nan") if spelling is None else _apart(parts.pop(spelling), value))
    for value, words in ((change.bias, ("diff_b", "lora_B.bias", "b_norm")), (change.dora, ("dora_scale",))):
        spelling = next((word for word in words if word in parts), None)
        if value is not None:
            errors.append(float("nan") if spelling is None else _apart(parts.pop(spelling), value))
        elif spelling == "lora_B.bias" and not parts[spelling].any():
            parts.pop(spelling)
    return float("nan") if parts else max(errors, key=lambda error: (error != error, error))


def _apart(found: Tensor, meant: Tensor) -> float:
    if found.shape != meant.shape:
        return float("nan")
    return float((found.float() - meant.float()).norm() / meant.float().norm().clamp_min(1e-30))
