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
from simplewan.app.pictures import ToRender
from simplewan.app.preparing import Drawn, look_ahead, tell_undrawn
from simplewan.app.rendered import plan_rendering
from simplewan.app.starts import check_adapters
from simplewan.app.stores import Stores
from simplewan.app.wanted import Wanted, everything_wanted
from simplewan.caches import house
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
# What a record is made of besides settings: the file, or the text.
OF_THE_SOURCE = {"content", "prompt"}


@dataclass
class CacheOutcome:
    """How it ended, and a record of each store."""

    exit_code: int = EXIT_DONE
    stores: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class _Task:
    """What every action works with: the samples, the stores, what validation renders, and what was asked for."""

    context: Context
    gathered: Gathered
    stores: Stores
    rendered: ToRender
    force: bool
    outcome: CacheOutcome

    def by_store(self, gathered: Gathered | None = None, *, epochs: int = MOST_CROPS) -> dict[Store, list[Wanted]]:
        """Each store with all that is wanted of it; of some samples and epochs, or of all there may be."""
        parts = everything_wanted(self.context, gathered or self.gathered, self.stores, self.rendered, epochs=epochs)
        by_store: dict[Store, list[Wanted]] = {}
        for part in parts:
            by_store.setdefault(part.store, []).append(part)
        return by_store

    def stale(self, store: Store, wanted: Sequence[Wanted]) -> tuple[list[house.Stale], int]:
        """What nobody of this configuration wants any more; and how many records others may want.

        Those are of datasets that it does not name, and validation prompts: another configuration may share the place.
        """
        items = [item for part in wanted for item in part.items]
        unwanted = house.stale(store, items, [group for part in wanted for group in part.groups])
        own = [record for record in unwanted if any(map(self._is_own, record.names))]
        return own, len(unwanted) - len(own)

    def _is_own(self, name: str) -> bool:
        dataset, slash, _file = name.partition("/")
        return bool(slash) and dataset in self.gathered.entries


def cache(loaded: Loaded, action: str, *, force: bool = False) -> CacheOutcome:
    """Do `action` (fill, list, verify or prune) with the caches that a run of `loaded` would use.

    `force` prunes though more than half would go, or nobody can tell whether others use a place. The exit code is 1
    when damaged records were found. Raises UserError for a mistake that only the files could show.
    """
    quiet_loading_bars()
    console, emit, outcome = Console(), Emitter(), CacheOutcome()
    emit.add(console)
    check_files(loaded.options.model, loaded.flavour, with_other_stage=False)
    if action == FILL:
        check_adapters(loaded.options, loaded.flavour)
    with SignalWatch() as signals:
        try:
            for notice in loaded.notices:
                emit(notice)
            output = Path(loaded.options.run.output_dir)
            context = Context(loaded, output, emit, signals, make_accelerator(loaded.options, emit))
            gathered = gather(context)
            stores = Stores(context, gathered)
            rendering = plan_rendering(context, gathered)
            needs = rendering.needs if rendering else ToRender()
            ACTIONS[action](_Task(context, gathered, stores, needs, force, outcome))
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


def _fill(task: _Task) -> None:
    drawn = look_ahead(task.context, task.gathered)
    tell_undrawn(task.context, task.gathered, drawn.sampler)
    fill_caches(task.context, drawn.gathered, task.stores, task.rendered, epochs=drawn.epochs)
    _describe(task, drawn)


def _list(task: _Task) -> None:
    _describe(task, look_ahead(task.context, task.gathered))


def _describe(task: _Task, drawn: Drawn) -> None:
    """What is there, what a run would have to encode, and what is stale."""
    needed = task.by_store(drawn.gathered, epochs=drawn.epochs)
    for store, wanted in task.by_store().items():
        store.refresh()
        planned = {key for part in needed.get(store, ()) for group in part.groups for key in group.keys}
        missing = {key: item.name for part in needed.get(store, ()) for key, item in part.missing.items()}
        stale, foreign = task.stale(store, wanted)
        task.outcome.stores.append(
            {
                **_about(store, wanted),
                "used_records": len(planned) - len(missing),
                "missing_records": len(missing),
                "missing": sorted(missing.values()),
                "stale_records": len(stale),
                "stale_bytes": sum(record.num_bytes for record in stale),
                "stale": [_stale(record) for record in stale],
                "records_of_others": foreign,
            }
        )


def _stale(record: house.Stale) -> dict[str, Any]:
    # A file or text that is another now serves nobody; other settings may be those of another configuration.
    of_the_source = set(record.differences) & OF_THE_SOURCE
    return {
        "names": list(record.names),
        "reason": record.reason,
        "other_settings": [] if of_the_source else list(record.differences),
        "bytes": record.num_bytes,
    }


def _about(store: Store, wanted: Sequence[Wanted]) -> dict[str, Any]:
    return {
        "place": store.place,
        "kinds": sorted({part.kind for part in wanted}),
        **asdict(house.sizes(store)),
    }


def _verify(task: _Task) -> None:
    for store, wanted in task.by_store().items():
        label = f"Checking {store.place}"

        def told(done: int, total: int, label: str = label) -> None:
            task.context.emit(Progress(key="verify", label=label, current=done, total=total, unit="records"))

        bad = house.verify(store, check=task.context.check, progress=told)
        names = {key: list(store.record(key).names) for key in bad if key in store}
        again = house.set_aside(store, bad) if bad else 0
        task.outcome.stores.append(
            {
                **_about(store, wanted),
                "damaged": [{"reason": why, "names": names.get(key, [])} for key, why in sorted(bad.items())],
                "to_encode_again": again,
            }
        )
        if bad:
            task.outcome.exit_code = EXIT_FAILURE


def _prune(task: _Task) -> None:
    found = [(store, *task.stale(store, wanted)) for store, wanted in task.by_store().items()]
    problems = [
        Problem(
            store.place,
            f"{len(stale)} of {len(store)} records are stale, more than half",
            fix="look at them with --list; if they may go, --force removes them",
        )
        for store, stale, _foreign in found
        if 2 * len(stale) > len(store) and not task.force
    ]
    if problems:
        raise UserError(*problems)
    for store, stale, foreign in found:
        going = {record.key for record in stale}
        pruned = house.prune(store, store.keys() - going, unguarded=task.force, check=task.context.check)
        joined = house.compact(store, unguarded=task.force, check=task.context.check)
        task.outcome.stores.append(
            {"place": store.place, **asdict(pruned), "shards_joined": joined, "records_of_others": foreign}
        )


ACTIONS: dict[str, Callable[[_Task], None]] = {FILL: _fill, LIST: _list, VERIFY: _verify, PRUNE: _prune}
