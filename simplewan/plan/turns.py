"""Whose turn it is: which of a run's experts takes the next step. Pure arithmetic.

The rule looks at nothing but the steps that each expert has taken so far. So a longer run begins with the steps of a
shorter one, and a run that goes on with another share or another budget catches up from where it stands.

Experts take steps in blocks, since a change of experts may move gigabytes. Block j (from 0) is given so that after it
the first expert has round(share * (j + 1)) blocks: at every step its share is met to within half a block.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class TrainingTurns:
    """Who trains when. `share` is that of the first of two experts, `budgets` the most steps of those that have any."""

    experts: tuple[str, ...]
    share: float = 1.0
    run_steps: int = 1
    budgets: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        assert 1 <= len(self.experts) <= 2 and 0 <= self.share <= 1 and self.run_steps > 0

    def next(self, taken: Mapping[str, int]) -> str | None:
        """The expert that takes the next step, after each has taken so many; None when all budgets are used up."""
        able = [name for name in self.experts if name not in self.budgets or taken[name] < self.budgets[name]]
        if len(able) < 2:
            return able[0] if able else None
        within = [name for name in able if taken[name] % self.run_steps]
        if len(within) == 1:
            return within[0]
        first, second = able
        blocks = taken[first] // self.run_steps, taken[second] // self.run_steps
        return first if (sum(blocks) + 1) * self.share >= blocks[0] + 0.5 else second

    def until(self, total: int, taken: Mapping[str, int] | None = None) -> dict[str, int]:
        """The steps of each expert when the run has taken `total`, or as many as the budgets allow."""
        counts = dict.fromkeys(self.experts, 0) | dict(taken or {})
        for _ in range(total - sum(counts.values())):
            name = self.next(counts)
            if name is None:
                break
            counts[name] += 1
        return counts

    def most_steps(self, taken: Mapping[str, int] | None = None) -> int:
        """The run's steps that the budgets allow, those already `taken` in any case; 0 where there is no limit."""
        done = taken or {}
        if any(name not in self.budgets for name in self.experts):
            return 0
        return sum(max(self.budgets[name], done.get(name, 0)) for name in self.experts)
