"""The distributions from which noise levels are drawn, each as a cumulative distribution and its inverse.

Imports torch only. All is float64 on tensors of any shape, on [0, 1], before any shift. Every distribution is
reachable through its inverse, so that it can be cut at given bounds without rejecting draws. Where there is no closed
form it is searched for: `mode` one way by bisection, about a millisecond, `beta` the other way by Newton's method, a
few milliseconds (more far out in the tails).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

MODE_SCALE_LIMIT = 2 / (math.pi - 2)
BISECTIONS = 60
CLOSE = 1e-13


@dataclass(frozen=True)
class Sampling:
    """A distribution by name with its parameters; parameters of other distributions are ignored.

    "uniform"; "sigmoid", which is sigmoid(scale * n) with n ~ N(0, 1); "logit_normal", sigmoid(mean + std * n); "mode"
    of arXiv 2403.03206 (section 3.1), -1 <= scale <= 1.75; "beta", density x^(alpha - 1) * (1 - x)^(beta - 1) up to a
    factor. Raises ValueError.
    """

    name: str = "sigmoid"
    sigmoid_scale: float = 1.0
    logit_mean: float = 0.0
    logit_std: float = 1.0
    mode_scale: float = 1.29
    beta_alpha: float = 2.0
    beta_beta: float = 2.0

    def __post_init__(self) -> None:
        if self.name not in SAMPLINGS:
            raise ValueError(f"sampling {self.name!r} is not one of {', '.join(SAMPLINGS)}")
        if not (self.logit_std > 0 and self.sigmoid_scale > 0):
            raise ValueError(f"logit_std {self.logit_std} and sigmoid_scale {self.sigmoid_scale} are not both above 0")
        if not -1 <= self.mode_scale <= MODE_SCALE_LIMIT:
            raise ValueError(f"mode_scale = {self.mode_scale} is not within -1 and {MODE_SCALE_LIMIT:.4f}")
        if not (self.beta_alpha > 0 and self.beta_beta > 0):
            raise ValueError(f"beta exponents {self.beta_alpha} and {self.beta_beta} are not both above 0")

    @property
    def logit_parameters(self) -> tuple[float, float]:
        """Mean and standard deviation of the logit, for "sigmoid" and "logit_normal"."""
        return (0.0, self.sigmoid_scale) if self.name == "sigmoid" else (self.logit_mean, self.logit_std)


def cdf(sampling: Sampling, x: Tensor) -> Tensor:
    """P(draw <= x), float64, any shape -> same; x within 0 and 1."""
    return SAMPLINGS[sampling.name][0](sampling, x)


def mass(sampling: Sampling, low: float, high: float) -> float:
    """P(low <= draw <= high), from the tail on whose side it lies: P near 1 has no digits left for the other one."""
    ends = torch.tensor([low, high], dtype=torch.float64)
    below = cdf(sampling, ends)
    if below[0] > 0.5 and sampling.name in MIRRORED:
        below = cdf(MIRRORED[sampling.name](sampling), (1 - ends).flip(0))
    return float(below[1] - below[0])


def quantile(sampling: Sampling, p: Tensor) -> Tensor:
    """The x with P(draw <= x) = p, float64, any shape -> same; p within 0 and 1."""
    return SAMPLINGS[sampling.name][1](sampling, p)


def truncated_quantile(sampling: Sampling, p: Tensor, low: float, high: float) -> Tensor:
    """The p-quantile of the distribution given low <= draw <= high; float64, any shape -> same.

    The logit-normal is cut on the side of its median on which its tail keeps its digits: P near 1 has none left.
    """
    ends = torch.tensor([low, high], dtype=torch.float64, device=p.device)
    if sampling.name in ("sigmoid", "logit_normal"):
        mean, std = sampling.logit_parameters
        z_ends = (torch.logit(ends) - mean) / std
        if z_ends[0] > 0:
            above = _normal_cdf(-z_ends)
            z = -torch.special.ndtri(above[1] + (above[0] - above[1]) * (1 - p))
        else:
            below = _normal_cdf(z_ends)
            z = torch.special.ndtri(below[0] + (below[1] - below[0]) * p)
        return torch.sigmoid(mean + std * z)
    below = cdf(sampling, ends)
    return quantile(sampling, below[0] + (below[1] - below[0]) * p)


def _normal_cdf(z: Tensor) -> Tensor:
    """P(n <= z) by erfc, which keeps the lower tail; torch.special.ndtr is 0 from z = -9 on."""
    return torch.erfc(-z / math.sqrt(2)) / 2


def _identity(_sampling: Sampling, x: Tensor) -> Tensor:
    return x


def _logit_normal_cdf(sampling: Sampling, x: Tensor) -> Tensor:
    mean, std = sampling.logit_parameters
    return _normal_cdf((torch.logit(x) - mean) / std)


def _logit_normal_quantile(sampling: Sampling, p: Tensor) -> Tensor:
    mean, std = sampling.logit_parameters
    return torch.sigmoid(mean + std * torch.special.ndtri(p))


def _mode_quantile(sampling: Sampling, p: Tensor) -> Tensor:
    """1 - u - s * (cos^2(pi u / 2) - 1 + u) falls in u, so the p-quantile is its value at u = 1 - p."""
    u = 1 - p
    return 1 - u - sampling.mode_scale * (torch.cos(math.pi / 2 * u) ** 2 - 1 + u)


def _mode_cdf(sampling: Sampling, x: Tensor) -> Tensor:
    return _bisect(lambda p: _mode_quantile(sampling, p), x)


def _beta_cdf(sampling: Sampling, x: Tensor) -> Tensor:
    a, b = sampling.beta_alpha, sampling.beta_beta
    in_left = x < (a + 1) / (a + b + 2)
    return torch.where(in_left, _beta_left(x, a, b), 1 - _beta_left(1 - x, b, a))


def _beta_quantile(sampling: Sampling, p: Tensor) -> Tensor:
    """Newton's method from the mean; where a step leaves what is known to enclose the solution, that is halved."""
    a, b = sampling.beta_alpha, sampling.beta_beta
    low, high = torch.zeros_like(p), torch.ones_like(p)
    x = torch.full_like(p, a / (a + b))
    for _ in range(BISECTIONS):
        error = _beta_cdf(sampling, x) - p
        if (error.abs() <= CLOSE).all():
            break
        low, high = torch.where(error < 0, x, low), torch.where(error < 0, high, x)
        density = torch.exp(_beta_log_scale(a, b) + (a - 1) * torch.log(x) + (b - 1) * torch.log1p(-x))
        step = x - error / density
        x = torch.where((step > low) & (step < high), step, (low + high) / 2)
    return x


def _beta_log_scale(a: float, b: float) -> float:
    return math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)


def _beta_left(x: Tensor, a: float, b: float) -> Tensor:
    """Regularised incomplete beta function by its continued fraction (DLMF 8.17.22), evaluated from its far end.

    It needs terms in proportion to the root of the larger exponent; these leave 1e-13.
    """
    fraction = torch.ones_like(x)
    for m in range(math.ceil(16 + 4 * math.sqrt(max(a, b))), 0, -1):
        even = m * (b - m) / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m - 1) * (a + b + m - 1) / ((a + 2 * m - 2) * (a + 2 * m - 1))
        fraction = 1 + odd * x / (1 + even * x / fraction)
    return torch.exp(_beta_log_scale(a, b) + torch.xlogy(torch.full_like(x, a), x) + torch.special.xlog1py(b, -x)) / (
        a * fraction
    )


def _bisect(rising: Callable[[Tensor], Tensor], target: Tensor) -> Tensor:
    """The argument in [0, 1] at which the rising function meets `target`."""
    low, high = torch.zeros_like(target), torch.ones_like(target)
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        below = rising(middle) < target
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return (low + high) / 2


def _mirrored_logit_normal(sampling: Sampling) -> Sampling:
    mean, std = sampling.logit_parameters
    return Sampling("logit_normal", logit_mean=-mean, logit_std=std)


def _mirrored_beta(sampling: Sampling) -> Sampling:
    return Sampling("beta", beta_alpha=sampling.beta_beta, beta_beta=sampling.beta_alpha)


# The distribution of 1 - draw, where there are far tails.
MIRRORED: dict[str, Callable[[Sampling], Sampling]] = {
    "sigmoid": _mirrored_logit_normal,
    "logit_normal": _mirrored_logit_normal,
    "beta": _mirrored_beta,
}
_Function = Callable[[Sampling, Tensor], Tensor]
SAMPLINGS: dict[str, tuple[_Function, _Function]] = {
    "uniform": (_identity, _identity),
    "sigmoid": (_logit_normal_cdf, _logit_normal_quantile),
    "logit_normal": (_logit_normal_cdf, _logit_normal_quantile),
    "mode": (_mode_cdf, _mode_quantile),
    "beta": (_beta_cdf, _beta_quantile),
}
