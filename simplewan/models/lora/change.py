"""What a LoRA or LyCORIS file does to one weight: its factors, their scale, the difference they make. Imports torch.

The arithmetic is our own, in float32: lycoris-lora's `get_diff_weight` and `get_merged_weight` apply the scale of LoKr
and LoHa twice, unlike its forward pass, which the tests compare with. Papers: LoRA arXiv 2106.09685, LoHa 2108.06098,
LyCORIS 2309.14859, DoRA 2402.09353.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

LORA, LOKR, LOHA, WHOLE = "lora", "lokr", "loha", "whole"
# What is said of a file, or an expert, that changes nothing.
UNTRAINED = "has not been trained: all its changes are zero, as at the start; no step was taken, or it had no effect"


@dataclass(frozen=True)
class Change:
    """What is added to the weight (and bias) of `module`, diffusers' name.

    `factors`: down (R, I) and up (O, R) of a LoRA, `mid` of a Tucker one; lokr_w1 ... or hada_w1_a ... of LyCORIS; diff
    of a whole weight, or nothing when only the bias changes. `alpha` None means a scale of 1. `dora` is the magnitude
    of each row (O, 1) or column (1, I) that the changed weight is given.
    """

    module: str
    kind: str
    factors: Mapping[str, Tensor] = field(repr=False)
    alpha: float | None = None
    bias: Tensor | None = field(default=None, repr=False)
    dora: Tensor | None = field(default=None, repr=False)

    @property
    def rank(self) -> int | None:
        """The rank that alpha is divided by; None where there is none (whole factors, whole weights)."""
        names = {LORA: ("down",), LOHA: ("hada_w1_b",), LOKR: ("lokr_w2_b", "lokr_w1_b")}.get(self.kind, ())
        return next((int(self.factors[name].shape[0]) for name in names if name in self.factors), None)

    @property
    def scale(self) -> float:
        """alpha / rank; 1 without either."""
        return 1.0 if self.alpha is None or self.rank is None else self.alpha / self.rank

    @property
    def shape(self) -> tuple[int, ...] | None:
        """The shape of `delta`, without making it; None when only the bias changes."""
        meta = {name: value.to("meta") for name, value in self.factors.items()}
        delta = Change(self.module, self.kind, meta).delta()
        return None if delta is None else tuple(delta.shape)

    @property
    def is_linear_pair(self) -> bool:
        """Whether it is a plain LoRA of a linear: two matrices and nothing else but a bias."""
        return self.kind == LORA and self.dora is None and all(value.ndim == 2 for value in self.factors.values())

    @property
    def tensors(self) -> list[Tensor]:
        """All that is stored of it, but alpha."""
        return [*self.factors.values(), *(value for value in (self.bias, self.dora) if value is not None)]

    def times(self, strength: float) -> Change:
        """The same change, `strength` times as strong. Raises ValueError for DoRA, whose strength is not linear."""
        if strength == 1:
            return self
        if self.dora is not None:
            raise ValueError(f"{self.module} has a dora_scale: its strength is not a factor")
        bias = None if self.bias is None else self.bias.float() * strength
        if self.rank is not None:
            alpha = (self.rank if self.alpha is None else self.alpha) * strength
            return replace(self, alpha=alpha, bias=bias)
        first = next(iter(self.factors), None)
        factors = {name: value.float() * strength if name == first else value for name, value in self.factors.items()}
        return replace(self, factors=factors, bias=bias)

    def pair(self) -> tuple[Tensor, Tensor]:
        """(down (R, I), up (O, R)) of a plain LoRA, float32, the scale multiplied into up."""
        assert self.is_linear_pair, f"{self.module} is no plain LoRA"
        up = self.factors["up"].float()
        return self.factors["down"].float(), up if self.scale == 1 else up * self.scale

    def delta(self) -> Tensor | None:
        """What is added to the weight, float32; of a convolution with its kernel flat or not. None: the bias alone.

        Of DoRA this is the part before the magnitudes are set.
        """
        values = {name: value.float() for name, value in self.factors.items()}
        if not values:
            return None
        return _DELTAS[self.kind](values) * self.scale

    def changed(self, weight: Tensor) -> Tensor:
        """`weight` with the change, float32, in its shape."""
        delta = self.delta()
        if delta is None:
            return weight.float()
        merged = weight.float() + delta.reshape(weight.shape)
        return merged if self.dora is None else _with_magnitude(merged, self.dora.float())

    def norm(self) -> float:
        """Frobenius norm of `delta` (of the bias where that is all there is); nan when something is not finite."""
        if self.kind == LORA and "mid" not in self.factors:
            down, up = (self.factors[name].float().flatten(1) for name in ("down", "up"))
            return product_norm(down, up) * abs(self.scale)
        if self.kind == LOKR and "lokr_t2" not in self.factors:
            first, second = _lokr_factors({name: value.float() for name, value in self.factors.items()})
            return float(first.norm() * second.norm()) * abs(self.scale)
        delta = self.delta()
        value = self.bias if delta is None else delta
        assert value is not None, f"the change of {self.module} is empty"
        return float(value.float().norm())

    @property
    def acts(self) -> bool:
        """Whether it may have an effect. A DoRA may though its pair is zero: it sets the norms of the weight's rows."""
        return self.dora is not None or (self.bias is not None and bool(self.bias.any())) or self.norm() != 0


def product_norm(down_RI: Tensor, up_OR: Tensor) -> float:
    """Frobenius norm of up @ down without the product: tr((up' up)(down down')), (R, I), (O, R) -> float."""
    down, up = down_RI.double(), up_OR.double()
    squared = ((up.T @ up) * (down @ down.T)).sum().item()
    return squared if squared != squared else max(squared, 0.0) ** 0.5


def pairs_of(state: Mapping[str, Tensor], *, scale: float) -> list[Change]:
    """`adapter_state` as changes; their scale is `scale`."""
    modules: Sequence[str] = list(dict.fromkeys(key.rsplit(".", 2)[0] for key in state))
    changes = []
    for module in modules:
        down, up = (state[f"{module}.{side}.weight"] for side in ("lora_A", "lora_B"))
        changes.append(Change(module, LORA, {"down": down, "up": up}, alpha=scale * down.shape[0]))
    return changes


def untrained(changes: Sequence[Change]) -> bool:
    """Whether they are LoRAs (or LoKr, LoHa) none of which changes anything, as before the first step."""
    return any(change.kind != WHOLE for change in changes) and not any(change.acts for change in changes)


def _lora(factors: Mapping[str, Tensor]) -> Tensor:
    down, up = factors["down"], factors["up"].flatten(1)
    if "mid" in factors:
        return torch.einsum("ij...,pi,jr->pr...", factors["mid"], up, down.flatten(1))
    return (up @ down.flatten(1)).reshape(-1, *down.shape[1:])


def _loha(factors: Mapping[str, Tensor]) -> Tensor:
    halves = []
    for half in ("1", "2"):
        a, b, core = factors[f"hada_w{half}_a"], factors[f"hada_w{half}_b"], factors.get(f"hada_t{half}")
        halves.append(a @ b if core is None else _tucker(core, a, b))
    return halves[0] * halves[1]


def _lokr(factors: Mapping[str, Tensor]) -> Tensor:
    first, second = _lokr_factors(factors)
    return torch.kron(first.reshape(*first.shape, *[1] * (second.ndim - 2)), second.contiguous())


def _lokr_factors(factors: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    first = factors["lokr_w1"] if "lokr_w1" in factors else factors["lokr_w1_a"] @ factors["lokr_w1_b"]
    if "lokr_w2" in factors:
        return first, factors["lokr_w2"]
    a, b = factors["lokr_w2_a"], factors["lokr_w2_b"]
    if "lokr_t2" in factors:
        return first, _tucker(factors["lokr_t2"], a, b)
    return first, (a @ b.flatten(1)).reshape(-1, *b.shape[1:])


def _tucker(core: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """(R, R, ...), (R, O), (R, I) -> (O, I, ...)."""
    return torch.einsum("ij...,ip,jr->pr...", core, left, right)


_DELTAS = {LORA: _lora, LOKR: _lokr, LOHA: _loha, WHOLE: lambda factors: factors["diff"]}


def _with_magnitude(weight: Tensor, magnitude: Tensor) -> Tensor:
    """`weight` with the norm of each row (or column, told by the shape of `magnitude`) set to `magnitude`."""
    flat = weight.flatten(1)
    if magnitude.numel() == weight.shape[0] and magnitude.shape[0] == weight.shape[0]:
        norm = flat.norm(dim=1)
        return weight * (magnitude.flatten() / norm).reshape(-1, *[1] * (weight.ndim - 1))
    norm = weight.transpose(0, 1).flatten(1).norm(dim=1)
    return weight * (magnitude.flatten() / norm).reshape(1, -1, *[1] * (weight.ndim - 2))
