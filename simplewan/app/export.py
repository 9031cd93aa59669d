"""The trained weights in the formats that others load."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from simplewan.app.context import Context
from simplewan.app.roles import Expert


def export_weights(context: Context, experts: Mapping[str, Expert], folder: Path, *, step: int) -> list[Path]:
    """Write the weights of every trained expert into `folder`; returns the files."""
    return []
