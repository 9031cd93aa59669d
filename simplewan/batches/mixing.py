"""How datasets are mixed: from their sizes and probabilities the weight that multiplies each one's repeats.

Pure, standard library only. Probabilities are relative: the most probable dataset keeps its repeats, and one dataset
alone is never changed by its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from types import MappingProxyType

NO_CHANGE: Mapping[str, int] = MappingProxyType({})


@dataclass(frozen=True)
class MixedDataset:
    """What mixing knows of a dataset: its usable samples, how many extra times each is seen, its relative weight."""

    name: str
    num_samples: int
    repeats: int = 0
    probability: float = 1.0


def dataset_weights(
    datasets: Sequence[MixedDataset], mode: str = "auto-weighting", repeats: Mapping[str, int] = NO_CHANGE
) -> dict[str, float]:
    """`SampleRef.weight` of each dataset's samples, by the dataset's name; 0 for one that is never drawn.

    - "auto-weighting": probability / the highest probability. A dataset gives samples x (repeats + 1) x weight draws
      an epoch: of two equal datasets one with half the probability is drawn half as often, and an epoch shows the
      samples of the most probable dataset repeats + 1 times each.
    - "uniform": an epoch has as many draws as it would have with auto-weighting, but they are shared out in
      proportion to the probabilities alone. Repeats then only make the epoch longer.

    Datasets without samples do not count. `repeats` replaces those of the datasets it names. Raises `ValueError` for
    another mode, a negative probability, or two datasets of one name.
    """
    if mode not in _MODES:
        raise ValueError(f"data_backend_sampling is one of {', '.join(_MODES)}, not {mode!r}")
    if negative := [dataset.name for dataset in datasets if not dataset.probability >= 0]:
        raise ValueError(f"the probability of dataset {negative[0]} is negative")
    if len({dataset.name for dataset in datasets}) < len(datasets):
        raise ValueError("two datasets have one name")
    changed = [replace(dataset, repeats=repeats.get(dataset.name, dataset.repeats)) for dataset in datasets]
    drawn = [dataset for dataset in changed if dataset.num_samples > 0 and dataset.probability > 0]
    weights = dict.fromkeys((dataset.name for dataset in datasets), 0.0)
    if drawn:
        weights.update((name, float(weight)) for name, weight in _MODES[mode](drawn).items())
    return weights


def _by_size(datasets: Sequence[MixedDataset]) -> dict[str, Fraction]:
    highest = Fraction(max(dataset.probability for dataset in datasets))
    return {dataset.name: Fraction(dataset.probability) / highest for dataset in datasets}


def _equally(datasets: Sequence[MixedDataset]) -> dict[str, Fraction]:
    by_size = _by_size(datasets)
    full = {dataset.name: dataset.num_samples * (dataset.repeats + 1) for dataset in datasets}
    total = sum(full[name] * weight for name, weight in by_size.items())
    probabilities = sum(by_size.values())
    return {name: total * weight / probabilities / full[name] for name, weight in by_size.items()}


_MODES = {"auto-weighting": _by_size, "uniform": _equally}
