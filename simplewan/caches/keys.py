"""What a cached record is called: a hash of the content and of every setting that changes the result.

Pure, standard library only. The trade-off: a key covers more than strictly needed (all components of an item), so a
setting that turns out not to matter costs an encode too many; the opposite mistake, a stale record, is impossible.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

Component = str | int | float | bool | None


@dataclass(frozen=True)
class Item:
    """One thing to encode.

    `name` says where it comes from (a sample's id, a sample's id and the number of its caption, a prompt's name): it
    is for people and for explaining changes, never part of the key, so renaming a file encodes nothing again.
    `components` holds the content (a digest of the file, the caption) and every setting that changes the result.
    `group` is the shape class: only items of one shape class may be encoded together.
    """

    name: str
    components: Mapping[str, Component] = field(hash=False)
    group: str = ""

    @cached_property
    def key(self) -> str:
        """sha256 (hex) of the components' canonical JSON: the record's key when it is encoded alone."""
        return hashlib.sha256(canonical(self.components).encode()).hexdigest()


def canonical(components: Mapping[str, Component]) -> str:
    """JSON with sorted keys and no spaces. `ValueError` for NaN and infinity, `TypeError` for what is no scalar."""
    for name, value in components.items():
        if value is not None and not isinstance(value, (str, int, float, bool)):
            raise TypeError(f"component {name} of a cache key is a {type(value).__name__}, not a scalar")
    return json.dumps(dict(components), sort_keys=True, separators=(",", ":"), allow_nan=False)


def group_key(key: str, members: Sequence[str]) -> str:
    """The key of a record encoded together with others: the bits of a batch depend on who else is in it.

    `members` are the `Item.key`s of the whole encode group, `key` among them, in the order of encoding. A group of
    one is the item alone, whatever the batch size, so its key is the item's.
    """
    assert key in members, "an item is a member of its encode group"
    if len(members) == 1:
        return key
    return hashlib.sha256("\n".join((key, *members)).encode()).hexdigest()


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> tuple[str, ...]:
    """The names of the components that differ, that were added or that went away, sorted."""
    missing = object()
    return tuple(sorted(name for name in {*old, *new} if old.get(name, missing) != new.get(name, missing)))
