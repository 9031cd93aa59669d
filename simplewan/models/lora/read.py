"""Reading LoRA and LyCORIS files of any tool into changes of diffusers' modules; the one reader. Imports torch.

Nothing is dropped in silence: what cannot be understood or paired is listed, and only the doctor goes on with it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from simplewan.errors import Problem, UserError, shorten, some
from simplewan.headers import PICKLED, read_header, read_safetensors
from simplewan.models.keys import to_original
from simplewan.models.lora.change import LOHA, LOKR, LORA, WHOLE, Change
from simplewan.models.lora.formats import Key, naming_of, parse_key
from simplewan.recognition import KINDS, of_header
from simplewan.recognition import LORA as LORA_KIND

_FIX = "give a .safetensors file with keys such as diffusion_model.blocks.0.self_attn.q.lora_A.weight"
# Where diffusers keeps PEFT's configuration of what it saves.
ADAPTER_METADATA = "lora_adapter_metadata"
_PEFT_FILE = "adapter_model.safetensors"


@dataclass(frozen=True)
class LoraFile:
    """A file as it was read. Of what is wrong, `unknown` keys tell nothing, `unpaired` modules lack a factor.

    `spellings` are the prefixes and words that its keys use, which decide what tool reads it.
    """

    path: Path
    changes: tuple[Change, ...]
    metadata: Mapping[str, str]
    naming: str
    prefixes: frozenset[str] = frozenset()
    words: frozenset[str] = frozenset()
    dtypes: frozenset[torch.dtype] = frozenset()
    unknown: tuple[str, ...] = ()
    unpaired: tuple[str, ...] = ()
    duplicated: tuple[str, ...] = ()

    def __str__(self) -> str:
        return str(self.path)

    @property
    def besides(self) -> tuple[str, ...]:
        """What it holds that is no plain LoRA of a linear, in words, each once."""
        found = {change.kind: None for change in self.changes if change.kind != LORA}
        for change in self.changes:
            if change.kind == LORA and any(value.ndim != 2 for value in change.factors.values()):
                found["LoRAs of convolutions"] = None
            if change.dora is not None:
                found["dora_scale"] = None
            if change.bias is not None:
                found["biases"] = None
        return tuple(found)

    def faults(self) -> list[str]:
        """What keeps it from being used as a whole."""
        lists = {
            "keys that belong to no part of a Wan transformer": self.unknown,
            "incomplete modules": self.unpaired,
            "tensors that are there twice": self.duplicated,
        }
        return [f"{len(names)} {what}: {some(names)}" for what, names in lists.items() if names]


def lora_metadata_of(path: Path) -> Mapping[str, str]:
    """A file's metadata. Raises UserError, which says what it is, for one that is known to be something else."""
    pickled = path.suffix in PICKLED
    try:
        header = read_header(path) if pickled else read_safetensors(path)
        found = None if header is None else of_header(header)
    except OSError as error:
        raise UserError(Problem(str(path), f"cannot be read: {error.strerror}", fix=_FIX)) from error
    except ValueError as error:
        message = str(error).removeprefix(f"{path.name} ")
        fix = "copy or download it again" if "cut off" in message or "damaged" in message else _FIX
        raise UserError(Problem(str(path), message, fix=fix)) from error
    if found is not None and found.kind != LORA_KIND:
        what, belongs = KINDS[found.kind]
        raise UserError(Problem(str(path), f"is {what}, expected a LoRA of a Wan transformer", fix=belongs))
    if pickled or header is None:
        what = "a file of PyTorch's" if found is None else "a LoRA in PyTorch's format"
        fix = "such files are not read: give a .safetensors file, or write its tensors to one"
        raise UserError(Problem(str(path), f"is {what}, expected a .safetensors file", fix=fix))
    return header.metadata


def examine_file(path: Path) -> LoraFile:
    """Read a file, its faults noted. Raises UserError for what is no LoRA's safetensors file."""
    return _examine(path, lambda file, key: file.get_tensor(key))


def _examine(path: Path, tensor_of: Callable[[Any, str], Tensor]) -> LoraFile:
    metadata = lora_metadata_of(path)
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {key: tensor_of(file, key) for key in file.keys()}  # noqa: SIM118 (safe_open is no mapping)
    except (OSError, SafetensorError) as error:
        raise UserError(Problem(str(path), f"is damaged ({error})", fix="copy or download it again")) from error
    return gather(path, tensors, metadata, _adapter_config(path, metadata))


def _adapter_config(path: Path, metadata: Mapping[str, str]) -> Mapping[str, Any]:
    """PEFT's configuration: in the metadata, where diffusers puts it, or beside a file of PEFT's own; {} if neither."""
    try:
        if (text := metadata.get(ADAPTER_METADATA)) is not None:
            return {key.removeprefix("transformer."): value for key, value in json.loads(text).items()}
        beside = path.with_name("adapter_config.json")
        return json.loads(beside.read_text("utf-8")) if path.name == _PEFT_FILE and beside.is_file() else {}
    except ValueError as error:
        raise UserError(Problem(str(path), f"has an adapter configuration that is no JSON ({error})")) from error


def _configured(change: Change, config: Mapping[str, Any]) -> Change:
    """A LoRA whose alpha PEFT's configuration says, if the file itself does not."""
    if change.kind != LORA or change.alpha is not None or change.rank is None or config.get("lora_alpha") is None:
        return change
    patterns = config.get("alpha_pattern") or {}
    names = (change.module, to_original(change.module))  # PEFT was told the names of the model that it trained
    own = next((a for key, a in patterns.items() for name in names if re.fullmatch(rf"(.*\.)?({key})", name)), None)
    alpha = float(config["lora_alpha"] if own is None else own)
    alpha *= change.rank**0.5 if config.get("use_rslora") else 1
    bias = None if change.bias is None else change.bias.float() * (alpha / change.rank)
    return replace(change, alpha=alpha, bias=bias)


def read_file(path: Path, *, drop: bool = False) -> LoraFile:
    """Read a file that must be understood as a whole; `drop` passes over keys that are unknown. Raises UserError."""
    found = examine_file(path)
    return _understood(replace(found, unknown=()) if drop else found)


def _understood(found: LoraFile) -> LoraFile:
    faults = found.faults() or ([] if found.changes else ["it changes nothing"])
    if faults:
        why = shorten("; ".join(faults), 400)
        raise UserError(Problem(str(found), f"is no LoRA of a Wan transformer ({why})", fix=_FIX))
    return found


def read_lora(path: Path) -> tuple[dict[str, Tensor], Mapping[str, str]]:
    """A plain LoRA as `adapter_state` of scale 1 (alpha folded in), and its metadata. Raises UserError."""
    found = _plain(read_file(path))
    state: dict[str, Tensor] = {}
    for change in found.changes:
        state[f"{change.module}.lora_A.weight"], state[f"{change.module}.lora_B.weight"] = change.pair()
    return state, found.metadata


def shapes_in(path: Path) -> dict[str, tuple[int, ...]]:
    """The shapes of what `read_lora` gives, without reading the weights. Raises UserError as it does."""
    shapes: dict[str, tuple[int, ...]] = {}
    for change in _plain(_understood(_examine(path, _described))).changes:
        for side, factor in (("A", "down"), ("B", "up")):
            shapes[f"{change.module}.lora_{side}.weight"] = tuple(change.factors[factor].shape)
    return shapes


def _described(file: Any, key: str) -> Tensor:
    """A tensor without its values; a single number is read, since it may be an alpha."""
    shape = file.get_slice(key).get_shape()
    return file.get_tensor(key) if torch.Size(shape).numel() == 1 else torch.empty(shape, device="meta")


def _plain(found: LoraFile) -> LoraFile:
    if found.besides:
        fix = "merge it into the base model: simpletuner export FILE --to merged"
        raise UserError(Problem(str(found), f"holds more than a LoRA ({', '.join(found.besides)})", fix=fix))
    return found


def gather(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str], config: Mapping[str, Any]
) -> LoraFile:
    """Tensors by key as a file; `config` is PEFT's."""
    naming = naming_of(tensors)
    modules: dict[str, dict[str, Tensor]] = {}
    unknown, duplicated = [], []
    keys: list[Key] = []
    for name, value in tensors.items():
        key = parse_key(name, naming=naming)
        if key is None:
            unknown.append(name)
            continue
        keys.append(key)
        parts = modules.setdefault(key.module, {})
        if key.part in parts:
            duplicated.append(name)
        parts[key.part] = value
    changes, unpaired = [], []
    for module, parts in modules.items():
        change = _change(module, parts)
        if change is None:
            unpaired.append(f"{module} ({', '.join(sorted(parts))})")
        else:
            changes.append(_configured(change, config))
    return LoraFile(
        path=path,
        changes=tuple(sorted(changes, key=lambda change: _order(change.module))),
        metadata=metadata,
        naming=naming,
        prefixes=frozenset(key.prefix for key in keys),
        words=frozenset(key.word for key in keys),
        dtypes=frozenset(value.dtype for value in tensors.values()),
        unknown=tuple(unknown),
        unpaired=tuple(unpaired),
        duplicated=tuple(duplicated),
    )


def _order(module: str) -> tuple[int, int, str]:
    """In the order of the model's blocks; what is outside of them first."""
    words = module.split(".")
    return (1, int(words[1]), module) if words[0] == "blocks" else (0, 0, module)


def _change(module: str, parts: Mapping[str, Tensor]) -> Change | None:
    """The change that a module's tensors make; None when they are not exactly those of one kind, shapes included."""
    factors = {name: value for name, value in parts.items() if name not in _BESIDE}
    kind = next((kind for kind, fits in _KINDS.items() if fits(set(factors))), None)
    if kind is None or not parts.keys() - {"alpha"} or any(value.numel() == 0 for value in parts.values()):
        return None
    if kind == WHOLE and (parts.keys() & {"alpha", "dora_scale", "magnitude", "up_bias"}):
        return None
    alpha = parts.get("alpha")
    if alpha is not None and alpha.numel() != 1:
        return None
    change = Change(module, kind, factors, alpha=None if alpha is None else float(alpha.item()))
    bias = parts.get("diff_b")
    if (own := parts.get("up_bias")) is not None:
        # PEFT's bias stands behind lora_B and is scaled with it.
        bias = own.float() * change.scale if bias is None else None
        if bias is None:
            return None
    dora = parts.get("dora_scale")
    if (magnitude := parts.get("magnitude")) is not None:
        dora = magnitude.reshape(-1, 1)
    change = replace(change, bias=bias, dora=dora)
    return change if _fits(change) else None


_BESIDE = ("alpha", "diff_b", "up_bias", "dora_scale", "magnitude")
_KINDS = {
    LORA: lambda names: names in ({"down", "up"}, {"down", "up", "mid"}),
    WHOLE: lambda names: names in ({"diff"}, set()),
    LOHA: lambda names: (
        names - {"hada_t1", "hada_t2"} == {"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"}
        and len(names & {"hada_t1", "hada_t2"}) != 1
    ),
    LOKR: lambda names: (
        names & {"lokr_w1", "lokr_w1_a", "lokr_w1_b"} in ({"lokr_w1"}, {"lokr_w1_a", "lokr_w1_b"})
        and names - {"lokr_w1", "lokr_w1_a", "lokr_w1_b"}
        in ({"lokr_w2"}, {"lokr_w2_a", "lokr_w2_b"}, {"lokr_w2_a", "lokr_w2_b", "lokr_t2"})
    ),
}


def _fits(change: Change) -> bool:
    """Whether the factors can be multiplied, and the magnitudes tell what they are of."""
    if change.kind == WHOLE:
        return True
    if any(value.ndim < 2 for value in (*change.factors.values(), *(() if change.dora is None else (change.dora,)))):
        return False
    try:
        return change.shape is not None
    except RuntimeError:
        return False
