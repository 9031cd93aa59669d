"""Where a start goes on: the checkpoint to resume from, and whether the configuration may differ from its own."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from simplewan.app.settled import FIX, differences, recorded, told_by_options
from simplewan.checkpoints import CheckpointStore
from simplewan.checkpoints.files import write_json
from simplewan.checkpoints.store import RESOLVED
from simplewan.errors import Problem, UserError
from simplewan.events import Emit, Notice
from simplewan.options import Loaded, changed_keys
from simplewan.options.experts import facts_of

FINISHED = "finished.json"


@dataclass(frozen=True)
class Resume:
    """A verified checkpoint to go on from."""

    path: Path
    step: int
    roles: tuple[str, ...]

    def taken(self, checkpoints: CheckpointStore) -> dict[str, int]:
        """The steps that each role had taken."""
        return {name: int(checkpoints.read(self.path, f"{name}.position")["step"]) for name in self.roles}

    def idle_place(self, checkpoints: CheckpointStore) -> str | None:
        """Where the expert waited whose turn it was not; None where there was but one."""
        place: str | None = checkpoints.read(self.path, "run").get("idle_expert")
        return place


def find_resume(
    checkpoints: CheckpointStore,
    loaded: Loaded,
    *,
    output: Path,
    emit: Emit,
) -> Resume | None:
    """The checkpoint to resume from, None to start anew.

    Raises UserError naming every key that differs from the checkpoint's configuration and must not, and weights that
    are other ones.
    """
    wanted, resolved, flavour = loaded.options.run.resume_from_checkpoint, loaded.resolved, loaded.flavour
    found = checkpoints.find(wanted)
    if found is None:
        if wanted == "none" and (there := checkpoints.steps()):
            raise UserError(
                Problem(
                    str(output),
                    f"holds checkpoints, the newest of step {there[-1]}",
                    fix='choose another output_dir, or resume_from_checkpoint = "latest"',
                )
            )
        return None
    path, step = found
    record = json.loads((path / RESOLVED).read_text(encoding="utf-8"))
    before, where = recorded(path), f"{path.name} in {output}"
    changed = told_by_options(changed_keys(record, dict(resolved), facts_of(flavour)), before, loaded)
    problems = [
        Problem(
            where,
            f"was {_value(record, key)} when it was saved",
            key=key,
            value=_value(resolved, key),
            fix=f"put the old value back, {FIX}",
        )
        for key in changed
    ]
    problems += differences(before, loaded, where=where)
    if problems:
        raise UserError(*problems)
    emit(Notice(f"resuming from {path.name}{_permitted_changes(record, resolved)}"))
    return Resume(path, step, flavour.trained_experts)


def _permitted_changes(record: Mapping[str, Any], resolved: Mapping[str, Any]) -> str:
    """What differs from the checkpoint's configuration and may: the log keeps it."""
    keys = sorted(key for key in {*record, *resolved} - {"datasets"} if _value(record, key) != _value(resolved, key))
    changes = (f"{key} {_value(record, key)} -> {_value(resolved, key)}" for key in keys)
    return f"; changed since: {', '.join(changes)}" if keys else ""


def _value(record: Mapping[str, Any], key: str) -> Any:
    """The value of a key, or of "datasets.ID.KEY", in a saved record."""
    if not key.startswith("datasets."):
        return record.get(key, "the default")
    _, name, *inner = key.split(".", 2)
    entry = next((entry for entry in record.get("datasets", []) if entry.get("id") == name), None)
    if entry is None:
        return "absent"
    return entry.get(inner[0], "the default") if inner else "present"


def finished_step(output: Path) -> int | None:
    """The step at which this run ended with everything written; None while it has not."""
    try:
        return int(json.loads((output / FINISHED).read_text(encoding="utf-8"))["step"])
    except (FileNotFoundError, ValueError, KeyError):
        return None


def forget_finished(output: Path) -> None:
    """Training goes on: until it ends, no step is the one at which everything was written."""
    (output / FINISHED).unlink(missing_ok=True)


def mark_finished(output: Path, step: int) -> None:
    """Record that everything of the run is written, up to `step`."""
    write_json(output / FINISHED, {"step": step})
