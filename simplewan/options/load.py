"""Loading: from files, environment and command line to frozen options, or to every problem at once.

What lives here: `load` and its result. Imports the rest of this room. Nothing is raised before everything has been
read, so that a person sees all mistakes of all files together.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from simplewan.errors import Problem, UserError
from simplewan.events import Notice
from simplewan.flavours import DEFAULT_FLAVOUR, Flavour, find_flavour
from simplewan.options.catalogue import Options, catalogue, group_models
from simplewan.options.checks import check_options, choose_flavour
from simplewan.options.dataset_file import Entry, check_datasets, check_entries, complete, read_entries
from simplewan.options.datasets import INHERITED, DatasetOptions
from simplewan.options.declare import Group
from simplewan.options.experts import facts_of
from simplewan.options.first_frames import check_eval_dataset, check_first_frames, check_image_embeds
from simplewan.options.later import settle, told_of
from simplewan.options.paths import Paths
from simplewan.options.problems import read_values, translate
from simplewan.options.prompts import Library, read_prompts
from simplewan.options.sources import COMMAND_LINE, Expander, Findings, Given, Override, gather, read_json
from simplewan.options.webhooks import WebhookOptions, read_webhooks
from simplewan.options.written import DATASETS, as_saved, is_record


@dataclass(frozen=True)
class Loaded:
    """What a run is made of. `prompt_images` are the pictures of prompts, by name; `later` lists what was asked for and
    is still to come: `train` refuses it. `inferred` tells of a flavour that was not set."""

    options: Options
    datasets: tuple[DatasetOptions, ...]
    flavour: Flavour
    prompts: dict[str, str]
    resolved: dict[str, Any]
    notices: list[Notice]
    later: list[Problem]
    config_file: Path | None
    data_file: Path
    prompt_images: dict[str, Path] = field(default_factory=dict)
    webhooks: tuple[WebhookOptions, ...] = ()
    inferred: str | None = None


def load(
    config_file: Path | None,
    overrides: Sequence[tuple[str, Any] | Override] = (),
    *,
    environ: Mapping[str, str],
    base: Path | None = None,
    placeholders: Mapping[str, str] | None = None,
    unprepared: Collection[str] = (),
    training: bool = True,
    later_too: Collection[str] | bool = False,
) -> Loaded:
    """Read everything; defaults < JSON < environment < command line.

    Paths count from the working directory, or from `base` when one is given; the dataset file and the prompt library
    are looked for beside the configuration file too. `placeholders` maps names to what `{name}` stands for; below those
    in `unprepared` no file is looked for yet. `training` False is for commands that only render: the dataset file is
    not looked for, `datasets` is empty, and what only training needs is not checked. Raises UserError with every
    problem of every file; beside them what is still to come of the keys in `later_too` (True is all).
    """
    findings = Findings()
    paths = Paths(base=base, beside=config_file.parent if config_file else None, unprepared=unprepared)
    expand = Expander(environ=environ, placeholders={"model_family": "wan", **(placeholders or {})}, findings=findings)
    config = _read_config(config_file, findings)
    name = str(config_file) if config_file else COMMAND_LINE
    found = gather(config or {}, overrides, environ=environ, config_name=name, findings=findings)
    options = _validate(found, expand, findings)
    if config is None:
        raise UserError(*findings.problems)
    entries: list[Entry] = []
    data_file = options.data.data_backend_config
    if training:
        entries, data_file = _read_datasets(options, found, expand=expand, paths=paths, findings=findings, config=name)
    library = _read_prompts(options, found, expand=expand, paths=paths, findings=findings)
    flavour = choose_flavour(options, found, config=name, paths=paths, findings=findings)
    check_datasets(options, entries, findings=findings)
    if training:
        check_eval_dataset(options, found, entries, flavour=flavour, findings=findings)
        check_first_frames(entries, flavour=flavour, findings=findings)
    webhooks = _read_webhooks(options, found, expand=expand, paths=paths, findings=findings) if training else ()
    check_image_embeds(entries, flavour=flavour, findings=findings)
    _check_inherited(found, entries, findings)
    check_options(options, found, flavour=flavour, config=name, paths=paths, findings=findings, training=training)
    facts = facts_of(flavour or find_flavour(DEFAULT_FLAVOUR))
    replaced = settle({**options.flat(), **facts}, found, catalogue(), findings=findings)
    if findings.problems or flavour is None:
        raise UserError(*_unique([*findings.problems, *told_of(findings.later, later_too)]))
    resolved = _resolved(options, found, entries)
    final = _finish(options, replaced, paths)
    return Loaded(
        options=final,
        datasets=complete(entries, options, paths=paths) if training else (),
        flavour=flavour,
        prompts=library.prompts,
        resolved=resolved,
        notices=findings.notices,
        later=findings.later,
        config_file=config_file,
        data_file=data_file,
        prompt_images=library.images,
        webhooks=webhooks,
        inferred=findings.inferred,
    )


def _read_config(path: Path | None, findings: Findings) -> dict[str, Any] | None:
    """The keys of the file; None, with a problem, when it cannot be read, so that nothing else can be judged."""
    if path is None:
        return {}
    before = len(findings.problems)
    content = read_json(path, findings)
    if isinstance(content, dict) and not is_record(content):
        return content
    if isinstance(content, dict):
        fix = "give the config.json that the run began with"
        findings.problem(str(path), "is the record of a run, not a configuration", fix=fix)
    elif len(findings.problems) == before:
        findings.problem(str(path), "is not an object of keys and values")
    return None


def _validate(found: Mapping[str, Given], expand: Expander, findings: Findings) -> Options:
    """Every group validated; one with mistakes keeps the defaults, so that the other checks can go on."""
    expanded = {key: expand(given.value, where=given.where, key=key) for key, given in found.items()}
    values = read_values(found, expanded, catalogue(), findings)
    groups: dict[str, Group] = {}
    for name, model in group_models().items():
        mine = {key: value for key, value in values.items() if key in model.model_fields}
        groups[name] = _validate_group(model, mine, found, findings)
    return Options(**groups)  # type: ignore[arg-type]


def _validate_group(
    model: type[Group], values: Mapping[str, Any], found: Mapping[str, Given], findings: Findings
) -> Group:
    try:
        return model.model_validate(values)
    except ValidationError as error:
        findings.problems.extend(translate(error, found=found, among=catalogue(), where=COMMAND_LINE))
        wrong = {item["loc"][0] for item in error.errors() if item["loc"]}
        good = {key: value for key, value in values.items() if key not in wrong}
        return model.model_validate(good) if wrong else model()


def _read_datasets(
    options: Options,
    found: Mapping[str, Given],
    *,
    expand: Expander,
    paths: Paths,
    findings: Findings,
    config: str,
) -> tuple[list[Entry], Path]:
    given = found.get("data_backend_config")
    path = options.data.data_backend_config
    file = paths.find(path, from_config=given is not None and given.where == config)
    if not file.exists():
        findings.problem(
            given.where if given else str(path),
            "is not there",
            key="data_backend_config",
            value=str(given.value if given else path),
            fix="it lists the datasets; config/multidatabackend.json.example is a start",
        )
        return [], file
    defaults = {key: getattr(options.data, key) for key in INHERITED}
    entries = read_entries(file, defaults=defaults, expand=expand, findings=findings)
    check_entries(entries, shown=str(file), paths=paths, findings=findings)
    return entries, file


def _check_inherited(found: Mapping[str, Given], entries: Sequence[Entry], findings: Findings) -> None:
    """Say where a default of the datasets is given for this run, and every dataset has its own."""
    holding = [entry for entry in entries if entry.options.holds_files and not entry.options.disabled]
    for key in INHERITED:
        given = found.get(key)
        if given is not None and given.where == COMMAND_LINE and holding and all(key in e.given for e in holding):
            findings.warn(f"{given.where}: {key} = {given.value} is not used: every dataset has its own")


def _read_prompts(
    options: Options, found: Mapping[str, Given], *, expand: Expander, paths: Paths, findings: Findings
) -> Library:
    path = options.validation.user_prompt_library
    if path is None or not paths.find(path, from_config=True).exists():
        return Library()
    return read_prompts(paths.find(path, from_config=True), expand=expand, findings=findings, base=paths.base)


def _read_webhooks(
    options: Options, found: Mapping[str, Given], *, expand: Expander, paths: Paths, findings: Findings
) -> tuple[WebhookOptions, ...]:
    config = options.reporting.webhook_config
    if not config:
        return ()
    given = found["webhook_config"]
    file = paths.find(config, from_config=True) if isinstance(config, Path) else None
    if file is not None and not file.exists():
        return ()  # the other checks tell
    return read_webhooks(config, where=given.where, file=file, expand=expand, findings=findings)


def _finish(options: Options, replaced: Mapping[str, Any], paths: Paths) -> Options:
    groups = {}
    for name, group in options.groups():
        update = {key: value for key, value in replaced.items() if key in type(group).model_fields}
        groups[name] = paths.resolve(group.model_copy(update=update) if update else group)
    return Options(**groups)  # type: ignore[arg-type]


def _resolved(options: Options, found: Mapping[str, Given], entries: Sequence[Entry]) -> dict[str, Any]:
    record: dict[str, Any] = {}
    for _, group in options.groups():
        record.update(as_saved(found, group, catalogue()))
    record[DATASETS] = [dict(entry.saved) for entry in entries if not entry.options.disabled]
    return record


def _unique(problems: Sequence[Problem]) -> list[Problem]:
    """Each problem once, in the order of their finding."""
    return list({str(problem): problem for problem in problems}.values())
