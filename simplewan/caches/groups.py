"""Which items are encoded together: a pure function of the items' keys, never of what is missing from a cache.

The keys of one shape class, which are uniformly distributed hashes, are split by their leading bits until at most
`batch_size` share a prefix. The trade-off against cutting a sorted list every `batch_size` items: groups are on
average about 70% full, but an item that is added splits at most the group it falls into, one that goes away merges
at most what its arrival had split, and no other group is touched.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from simplewan.caches.keys import Item, group_key

KEY_BITS = 256
OTHER_MEMBERS = "encode group"  # what has changed for an item whose components are the same


@dataclass(frozen=True)
class EncodeGroup:
    """Items that are encoded in one call, in this order (sorted by key)."""

    items: tuple[Item, ...]

    @cached_property
    def keys(self) -> tuple[str, ...]:
        """The records' keys, in the order of `items`."""
        members = [item.key for item in self.items]
        return tuple(group_key(member, members) for member in members)


def encode_groups(items: Iterable[Item], *, batch_size: int) -> list[EncodeGroup]:
    """The encode groups of all shape classes, sorted by shape class and key.

    Of items with equal components only the first by name is encoded; with `batch_size` 1 a group is the item itself.
    """
    assert batch_size >= 1
    classes: dict[str, dict[str, Item]] = {}
    for item in sorted(items, key=lambda item: item.name):
        classes.setdefault(item.group, {}).setdefault(item.key, item)
    groups: list[EncodeGroup] = []
    for _name, by_key in sorted(classes.items()):
        groups += [EncodeGroup(tuple(by_key[key] for key in cut)) for cut in cut_keys(sorted(by_key), batch_size)]
    return groups


def cut_keys(keys: Sequence[str], batch_size: int) -> list[Sequence[str]]:
    """Sorted distinct hexadecimal keys, cut where their leading bits differ into runs of at most `batch_size`."""
    if batch_size == 1:
        return [[key] for key in keys]
    cuts: list[Sequence[str]] = []
    pending = [(keys, 0)] if keys else []
    while pending:
        run, bit = pending.pop()
        if len(run) <= batch_size:
            cuts.append(run)
            continue
        assert bit < KEY_BITS, "keys are distinct"
        shift = KEY_BITS - 1 - bit
        ones = [key for key in run if int(key, 16) >> shift & 1]
        zeros = run[: len(run) - len(ones)]
        pending += [(part, bit + 1) for part in (ones, zeros) if part]
    return cuts
