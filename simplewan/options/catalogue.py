"""All groups together: which keys there are, and in which group each stands.

What lives here: `Options`, the tuple of groups that a run holds, and the lookups that the loader, the command line and
the documentation share. Imports the groups. Adding an option is one field in one group and nothing here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from functools import cache
from typing import Any, get_type_hints

from simplewan.options.datasets import NESTED, DatasetOptions
from simplewan.options.declare import Condition, Declared, Group, declarations, is_on
from simplewan.options.groups.adapter import AdapterOptions
from simplewan.options.groups.caches import CacheOptions
from simplewan.options.groups.checkpoints import CheckpointOptions
from simplewan.options.groups.data import DataOptions
from simplewan.options.groups.experts import ExpertOptions
from simplewan.options.groups.flow import FlowOptions
from simplewan.options.groups.memory import MemoryOptions
from simplewan.options.groups.model import ModelOptions
from simplewan.options.groups.optimizer import OptimizerOptions
from simplewan.options.groups.reporting import ReportingOptions
from simplewan.options.groups.run import RunOptions
from simplewan.options.groups.validation import ValidationOptions


@dataclass(frozen=True)
class Options:
    """Every option of a run, by group."""

    run: RunOptions
    model: ModelOptions
    adapter: AdapterOptions
    data: DataOptions
    caches: CacheOptions
    flow: FlowOptions
    optimizer: OptimizerOptions
    experts: ExpertOptions
    checkpoints: CheckpointOptions
    validation: ValidationOptions
    reporting: ReportingOptions
    memory: MemoryOptions

    def groups(self) -> Iterator[tuple[str, Group]]:
        """(name, group) in order."""
        return ((item.name, getattr(self, item.name)) for item in fields(self))

    def flat(self) -> dict[str, Any]:
        """Every key with its value."""
        return {key: value for _, group in self.groups() for key, value in group.__dict__.items()}


@cache
def group_models() -> dict[str, type[Group]]:
    """Group name -> model, in order."""
    hints = get_type_hints(Options)
    return {item.name: hints[item.name] for item in fields(Options)}


@cache
def catalogue() -> dict[str, Declared]:
    """Every key of config.json -> its declaration, `group` being the name in `Options`."""
    return {
        key: Declared(**{**declared.__dict__, "group": name})
        for name, model in group_models().items()
        for key, declared in declarations(model).items()
    }


@cache
def dataset_catalogue() -> dict[str, Declared]:
    """Every key of a dataset entry, and those of an object in it as "video.KEY"."""
    nested = {
        f"{name}.{key}": declared for name, model in NESTED.items() for key, declared in declarations(model).items()
    }
    return {**declarations(DatasetOptions), **nested}


def coming(declared: Declared, among: dict[str, Declared]) -> str | None:
    """What is to come when this option is: its own text, or that of a switch it depends on."""
    if declared.later:
        return declared.later
    for switch, wanted in declared.conditions:
        parent = among.get(switch)
        if parent is None:
            continue
        if not wanted and (parent.later or parent.later_choices):
            return parent.later or next(iter(parent.later_choices.values()))
        if wanted and all(name in parent.later_choices for name in wanted):
            return parent.later_choices[wanted[0]]
    return None


def nothing_yet(declared: Declared, among: dict[str, Declared]) -> bool:
    """Whether all that an option can do is to come: itself, or every choice but the one that asks for nothing."""
    every_choice = bool(declared.later_choices) and not any(map(is_on, declared.choices))
    return bool(coming(declared, among)) or (every_choice and not declared.comfort)


def unmet(declared: Declared, values: Mapping[str, Any]) -> list[Condition]:
    """The conditions of an option that do not hold, given the values of the others."""
    return [
        (switch, wanted)
        for switch, wanted in declared.conditions
        if not (str(values.get(switch)) in wanted if wanted else is_on(values.get(switch)))
    ]
