"""`simpletuner cache`: fill the caches of a configuration, check them, say what is stale and why, remove that."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from simplewan.app.caching import fill_caches
from simplewan.app.context import Context
from simplewan.app.device import make_accelerator
from simplewan.app.gathering import Gathered, gather
from simplewan.app.preparing import look_ahead, rendered_texts, tell_undrawn
from simplewan.app.stores import Stores
from simplewan.app.wanted import Wanted, everything_wanted
from simplewan.caches import house
from simplewan.caches.groups import encode_groups
from simplewan.caches.keys import Item
from simplewan.caches.remote import PlaceError
from simplewan.caches.store import Store
from simplewan.data.rules import MOST_CROPS
from simplewan.errors import EXIT_DONE, EXIT_FAILURE, Interrupted, Problem, UserError
from simplewan.events import Emitter, ErrorHappened, Progress
from simplewan.models.wan.loading import check_files
from simplewan.options import Loaded
from simplewan.reporting.console import Console
from simplewan.reporting.quiet import quiet_loading_bars
from simplewan.training.signals import SignalWatch

OUT_OF_MEMORY = "the GPU has too little memory: a smaller vae_batch_size, resolution or num_frames helps"
FILL, LIST, VERIFY, PRUNE = "fill", "list", "verify", "prune"


@dataclass
class CacheOutcome:
    """How it ended, and a record of each store; `force` is what was asked for."""

    force: bool = False
    exit_code: int = EXIT_DONE
    stores: list[dict[str, Any]] = field(default_factory=list)


def cache(loaded: Loaded, action: str, *, force: bool = False) -> CacheOutcome:
    """Do `action` (fill, list, verify or prune) with the caches that a run of `loaded` would use.

    `force` prunes where nobody can tell whether others use a place.
    The exit code is 1 when damaged records were found. Raises UserError for a mistake that only the files could show.
    """
    quiet_loading_bars()
    console, emit, outcome = Console(), Emitter(), CacheOutcome(force=force)
    emit.add(console)
    check_files(loaded.options.model, loaded.flavour, with_other_stage=False)
    with SignalWatch() as signals:
        try:
            for notice in loaded.notices:
                emit(notice)
            output = Path(loaded.options.run.output_dir)
            context = Context(loaded, output, emit, signals, make_accelerator(loaded.options, emit))
            ACTIONS[action](context, gather(context), outcome)
        except Interrupted as stop:
            outcome.exit_code = stop.exit_code
        except PlaceError as error:
            raise UserError(Problem(error.place, str(error), fix="start again when it answers")) from error
        except torch.OutOfMemoryError:
            emit(ErrorHappened(OUT_OF_MEMORY, where="cache", fatal=True))
            outcome.exit_code = EXIT_FAILURE
        finally:
            console.close()
    return outcome


def _fill(context: Context, gathered: Gathered, outcome: CacheOutcome) -> None:
    drawn = look_ahead(context, gathered)
    tell_undrawn(context, gathered, drawn.sampler)
    fill_caches(context, drawn.gathered, Stores(context, gathered), rendered_texts(context), epochs=drawn.epochs)
    _list(context, gathered, outcome)


def _list(context: Context, gathered: Gathered, outcome: CacheOutcome) -> None:
    drawn = look_ahead(context, gathered)
    stores = Stores(context, gathered)
    needed = _by_store(context, drawn.gathered, stores, epochs=drawn.epochs)
    for store, wanted in _by_store(context, gathered, stores).items():
        there, missing = _planned(store, needed.get(store, ()))
        stale, foreign = _stale(store, wanted, gathered)
        outcome.stores.append(
            {
                "place": store.place,
                "kinds": sorted({part.kind for part in wanted}),
                **asdict(house.sizes(store)),
                "used_records": len(there),
                "missing_records": len(missing),
                "missing": sorted(missing.values()),
                "stale_records": len(stale),
                "stale_bytes": sum(record.num_bytes for record in stale),
                "stale": [
                    {"names": list(record.names), "reason": record.reason, "bytes": record.num_bytes}
                    for record in stale
                ],
                "records_of_others": foreign,
            }
        )


def _verify(context: Context, gathered: Gathered, outcome: CacheOutcome) -> None:
    for store, wanted in _by_store(context, gathered, Stores(context, gathered)).items():
        label = f"Checking {store.place}"

        def told(done: int, total: int, label: str = label) -> None:
            context.emit(Progress(key="verify", label=label, current=done, total=total, unit="records"))

        bad = house.verify(store, check=context.check, progress=told)
        names = {key: list(store.record(key).names) for key in bad if key in store}
        again = house.set_aside(store, bad) if bad else 0
        outcome.stores.append(
            {
                "place": store.place,
                "kinds": sorted({part.kind for part in wanted}),
                **asdict(house.sizes(store)),
                "damaged": [{"reason": why, "names": names.get(key, [])} for key, why in sorted(bad.items())],
                "to_encode_again": again,
            }
        )
        if bad:
            outcome.exit_code = EXIT_FAILURE


def _prune(context: Context, gathered: Gathered, outcome: CacheOutcome) -> None:
    found = [
        (store, *_stale(store, wanted, gathered))
        for store, wanted in _by_store(context, gathered, Stores(context, gathered)).items()
    ]
    problems = [
        Problem(
            store.place,
            f"{len(stale)} of {len(store)} records are stale, more than half",
            fix="look at them with --list; if they may go, --force removes them",
        )
        for store, stale, _foreign in found
        if 2 * len(stale) > len(store) and not outcome.force
    ]
    if problems:
        raise UserError(*problems)
    for store, stale, foreign in found:
        going = {record.key for record in stale}
        pruned = house.prune(store, store.keys() - going, unguarded=outcome.force, check=context.check)
        joined = house.compact(store, unguarded=outcome.force, check=context.check)
        outcome.stores.append(
            {"place": store.place, **asdict(pruned), "shards_joined": joined, "records_of_others": foreign}
        )


ACTIONS: dict[str, Callable[[Context, Gathered, CacheOutcome], None]] = {
    FILL: _fill,
    LIST: _list,
    VERIFY: _verify,
    PRUNE: _prune,
}


def _by_store(
    context: Context, gathered: Gathered, stores: Stores, *, epochs: int = MOST_CROPS
) -> dict[Store, list[Wanted]]:
    """Each store with all that is wanted of it."""
    parts = everything_wanted(context, gathered, stores, rendered_texts(context), epochs=epochs)
    by_store: dict[Store, list[Wanted]] = {}
    for part in parts:
        by_store.setdefault(part.store, []).append(part)
    return by_store


def _planned(store: Store, wanted: Sequence[Wanted]) -> tuple[set[str], dict[str, str]]:
    """The keys that are there, and those to be made, with the name of what they are of."""
    store.refresh()
    planned = {
        key: item.name
        for part in wanted
        for group in encode_groups(part.items, batch_size=part.batch_size)
        for item, key in zip(group.items, group.keys, strict=True)
    }
    return {key for key in planned if key in store}, {k: name for k, name in planned.items() if k not in store}


def _stale(store: Store, wanted: Sequence[Wanted], gathered: Gathered) -> tuple[list[house.Stale], int]:
    """What nobody of this configuration wants any more; and how many records belong to datasets that it does not name.

    Those, and validation prompts, are left alone: another configuration may share the place.
    """
    items: list[Item] = [item for part in wanted for item in part.items]
    unwanted = house.stale(store, items, batch_size=wanted[0].batch_size)
    own = [record for record in unwanted if any(_is_own(name, gathered) for name in record.names)]
    return own, len(unwanted) - len(own)


def _is_own(name: str, gathered: Gathered) -> bool:
    dataset, slash, _file = name.partition("/")
    return bool(slash) and dataset in gathered.entries
