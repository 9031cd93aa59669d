"""The scale of the loss in half precision, one for each role: an overflow of one must not change the steps of another.

accelerate has a single scaler; it is given the state of the role whose turn it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch


class LossScales:
    """The states of one scaler for several roles. Without a scaler (None) it does nothing."""

    def __init__(self, scaler: torch.amp.GradScaler | None, roles: Sequence[str]) -> None:
        self._scaler = scaler
        self._states = {} if scaler is None else {role: scaler.state_dict() for role in roles}
        self._active: str | None = None

    def activate(self, role: str) -> None:
        """Have the scaler scale for this role."""
        if self._scaler is not None and role != self._active:
            self._states |= self.parts_by_role()
            self._scaler.load_state_dict(self._states[role])
            self._active = role

    def parts_by_role(self) -> dict[str, dict[str, Any]]:
        """The state of each role now."""
        if self._scaler is None or self._active is None:
            return self._states
        return self._states | {self._active: self._scaler.state_dict()}

    def parts(self) -> dict[str, dict[str, Any]]:
        """The same by the names of a checkpoint's parts."""
        return {self._part(role): state for role, state in self.parts_by_role().items()}

    def load(self, read: Callable[[str], Mapping[str, Any]]) -> None:
        """Put back what `parts` gave, before the first step."""
        self._states = {role: dict(read(self._part(role))) for role in self._states}

    def _part(self, role: str) -> str:
        return "scaler" if len(self._states) == 1 else f"{role}.scaler"
