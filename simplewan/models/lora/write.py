"""Changes as a file for a tool, written atomically; what is trained is written here too, and verified.

Keys of the universal format are `diffusion_model.` + Wan's own names + lora_A / lora_B; alpha is folded into B, so the
scale is 1 and a reader that knows no alpha is right too. Imports torch and safetensors.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from simplewan.data.atomic import atomic_path
from simplewan.errors import some
from simplewan.flavours import Flavour
from simplewan.models.keys import is_parameter, to_original
from simplewan.models.lora.change import LORA, WHOLE, Change, pairs_of
from simplewan.models.lora.formats import CONVENTIONS, ORIGINAL, Convention
from simplewan.models.lora.read import ADAPTER_METADATA
from simplewan.models.lora.verify import LoraReport, convert_as_diffusers, verify_lora_file

UNIVERSAL = CONVENTIONS["universal"]


def lora_file_name(flavour: Flavour, expert: str) -> str:
    """The file's name: of Wan 2.2 A14B one a expert, of the other models the one that everybody looks for."""
    ending = f"_{expert}_noise" if flavour.boundary is not None else ""
    return f"pytorch_lora_weights{ending}.safetensors"


def lora_metadata(
    flavour: Flavour,
    expert: str,
    *,
    rank: int,
    alpha: float,
    base_model: str,
    shift: float | None,
    boundary: float | None = None,
    **more: Any,
) -> dict[str, str]:
    """The file's metadata, all text; what is None is left out. `boundary` None is the flavour's."""
    values: dict[str, Any] = {
        "format": "pt",
        "lora_format": UNIVERSAL.text,
        "base_model": base_model,
        "model_flavour": flavour.name,
        "task": flavour.task,
        "expert": f"{expert}_noise" if flavour.boundary is not None else None,
        "boundary": flavour.boundary if boundary is None else boundary,
        "shift": shift,
        "rank": rank,
        "alpha": alpha,
        **more,
    }
    return _as_text(values)


def describe(
    metadata: Mapping[str, str], changes: Sequence[Change], *, text: str, expert: str | None, flavour: Flavour | None
) -> dict[str, str]:
    """The metadata of a file that is written anew: what is known of the source, the expert and the model.

    What speaks of the source's own format or of its configuration in PEFT is left out. How it was trained the source
    knows better than its flavour: boundary and shift are its own, and no shift is added to one that tells its flavour.
    """
    ranks = sorted({change.rank for change in changes} - {None})
    known: dict[str, Any] = {}
    model: dict[str, Any] = {}
    if flavour is not None:
        known = {"base_model": flavour.repository or None, "boundary": flavour.boundary}
        if "model_flavour" not in metadata:  # else a run with a shift for each resolution, which is no one shift
            known["shift"] = flavour.training_shift
        model = {"model_flavour": flavour.name, "task": flavour.task}
    old = {key: value for key, value in metadata.items() if key not in (ADAPTER_METADATA, "alpha", "rank")}
    fresh = {
        "format": "pt",
        "lora_format": text,
        "expert": None if expert is None else f"{expert}_noise",
        "rank": (ranks[0] if len(ranks) == 1 else ranks) if ranks else None,
        **model,
    }
    return {**_as_text(known), **old, **_as_text(fresh)}


def _as_text(values: Mapping[str, Any]) -> dict[str, str]:
    return {
        key: value if isinstance(value, str) else json.dumps(value)
        for key, value in values.items()
        if value is not None
    }


def save_lora(
    path: Path,
    state: Mapping[str, Tensor],
    *,
    scale: float,
    metadata: Mapping[str, str],
    transformer: nn.Module,
    dtype: torch.dtype = torch.float32,
) -> LoraReport:
    """Write `adapter_state` to `path` in the universal format, and verify what is read back.

    `transformer` is the base it was trained on. Raises ValueError, and leaves the old file, when a weight is not
    finite or the file does not read back.
    """
    modules = list(dict.fromkeys(key.rsplit(".", 2)[0] for key in state))
    if lost := unwritable(modules):
        beside = "" if any(module.startswith("blocks.") for module in modules) else " without one of a block beside it"
        raise ValueError(f"diffusers reads no LoRA of {some(lost)}{beside}")
    tensors = tensors_of(pairs_of(state, scale=scale), UNIVERSAL, dtype)
    with atomic_path(path) as temporary:
        write_tensors(temporary, tensors, metadata)
        report = verify_lora_file(temporary, transformer)
        if report.modules != len(tensors) // 2:
            raise ValueError(f"{path.name} reads back {report.modules} of {len(tensors) // 2} modules")
    return replace(report, path=path)


def unwritable(modules: Sequence[str]) -> list[str]:
    """Which of these modules diffusers' reader does not take from a LoRA of exactly these; empty when it takes all.

    Names are diffusers'; no weights are needed. Its reader wants a linear of a block in every file, the image keys only
    with the image values, and does not know all that a LoRA can be trained on: a file with one of those it refuses.
    """
    if _taken(modules):
        return []
    # Alike in all blocks, so that each is tried once: in company of which nothing can be wrong.
    kinds = dict.fromkeys(_in_first_block(module) for module in modules)
    alone = [kind for kind in kinds if not _taken([_WELCOME, kind])]
    refused = {kind for kind in alone if not any(_taken([_WELCOME, kind, other]) for other in alone)}
    lost = [module for module in modules if _in_first_block(module) in refused]
    rest = [module for module in modules if module not in lost]
    return lost if rest and _taken(rest) else list(modules)


_WELCOME = "blocks.0.attn1.to_q"


def _in_first_block(module: str) -> str:
    return re.sub(r"^blocks\.\d+\.", "blocks.0.", module)


def _taken(modules: Sequence[str]) -> bool:
    """Whether diffusers' reader finds a pair of each of the modules in a file of them."""
    one = torch.zeros(1, 1)
    changes = [Change(module, LORA, {"down": one, "up": one}) for module in modules]
    try:
        found = convert_as_diffusers(tensors_of(changes, UNIVERSAL, torch.float32))
    except (ValueError, KeyError):  # of names that no Wan transformer has, too
        return False
    return all(found.get(module, {}).keys() >= {"lora_A", "lora_B"} for module in modules)


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """A safetensors file; the same tensors and metadata are the same bytes."""
    save_file(dict(tensors), path, metadata=dict(metadata))
    sort_metadata(path)


def tensors_of(changes: Iterable[Change], convention: Convention, dtype: torch.dtype) -> dict[str, Tensor]:
    """The file's tensors. Raises ValueError for what is not finite (in `dtype`), or what the convention cannot say."""
    tensors: dict[str, Tensor] = {}
    changes = list(changes)
    if convention.name == "diffusers" and any(change.bias is not None for change in changes):
        changes = [_with_bias(change) for change in changes]
    for change in changes:
        problem = unknown_to(change, convention)
        if problem is not None:
            raise ValueError(problem)
        for ending, value in _endings(change, convention):
            # The name of a modulation table stands in its ending.
            name = _name(change.module, convention, keep_last=not ending.startswith("diff_m"))
            cast = value.to("cpu", torch.float32 if ending == "alpha" else dtype).contiguous()
            key = f"{convention.prefix}{name}.{ending}"
            if not torch.isfinite(cast).all():
                raise ValueError(f"{key} is not finite: not written")
            tensors[key] = cast
    return tensors


def _with_bias(change: Change) -> Change:
    """The change with a bias of zeros if it has none: diffusers' loader wants one for all modules or for none."""
    if change.bias is not None or change.kind != LORA:
        return change
    return replace(change, bias=torch.zeros(change.factors["up"].shape[0]))


def fitted(changes: Sequence[Change], convention: Convention) -> tuple[list[Change], list[str]]:
    """What of the changes the convention can say, and what it cannot (the reasons)."""
    kept, lost = [], []
    for change in changes:
        reason = unknown_to(change, convention)
        if reason is not None and change.bias is not None and change.factors:
            bare = replace(change, bias=None)
            lost.append(reason)
            change, reason = bare, unknown_to(bare, convention)
        if reason is None:
            kept.append(change)
        else:
            lost.append(reason)
    return kept, list(dict.fromkeys(lost))


def unknown_to(change: Change, convention: Convention) -> str | None:
    """What of a change the convention has no words for; None when it has."""
    name, module = convention.name, change.module
    if change.kind == WHOLE:
        if not convention.whole or (convention.modulation is None and is_parameter(module)):
            return f"{module} is changed as a whole, which {name} files cannot say"
        if not change.factors and name == "lycoris":
            return f"{module} has a change of its bias alone, which lycoris files cannot say"
        return None
    if not convention.lycoris and (change.kind != LORA or "mid" in change.factors):
        return f"{module} is a {change.kind} of LyCORIS, which {name} files cannot say"
    if change.dora is not None and not convention.dora:
        return f"{module} has a dora_scale, which {name} files cannot say"
    if change.bias is not None and convention.bias is None:
        return f"{module} has a change of its bias, which {name} files cannot say"
    return None


def _name(module: str, convention: Convention, *, keep_last: bool) -> str:
    name = to_original(module) if convention.naming == ORIGINAL else module
    if not keep_last:
        name = name.rpartition(".")[0]
    return name.replace(".", "_") if convention.flat else name


def _endings(change: Change, convention: Convention) -> list[tuple[str, Tensor]]:
    """The tensors of one module by the end of their key."""
    words: list[tuple[str, Tensor]] = []
    alpha = change.scale * (change.rank or 1)
    if change.kind == WHOLE:
        return _whole(change, convention)
    if change.kind != LORA:
        words = [*change.factors.items(), ("alpha", torch.tensor(alpha))]
    elif "mid" in change.factors:  # lora_mid stands beside lora_down and lora_up only
        words = [(f"lora_{name}.weight", value) for name, value in change.factors.items()]
        words.append(("alpha", torch.tensor(alpha)))
    else:
        down, up = change.factors["down"], change.factors["up"]
        if convention.fold:
            words = [(convention.down, down), (convention.up, up if change.scale == 1 else up.float() * change.scale)]
        else:
            words = [(convention.down, down), (convention.up, up), ("alpha", torch.tensor(alpha))]
    if change.dora is not None:
        words.append(("dora_scale", change.dora))
    if change.bias is not None:
        assert convention.bias is not None, "unknown_to was asked"
        words.append((convention.bias, change.bias))
    return words


def _whole(change: Change, convention: Convention) -> list[tuple[str, Tensor]]:
    weight, bias = "diff", "diff_b"
    if change.module.endswith("scale_shift_table") and convention.modulation == "diff_m":
        weight = "diff_m"
    elif convention.name == "lycoris" and all(value.ndim == 1 for value in change.factors.values()):
        weight, bias = "w_norm", "b_norm"
    words = [(weight, value) for value in change.factors.values()]
    return words if change.bias is None else [*words, (bias, change.bias)]


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
