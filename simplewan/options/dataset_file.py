"""The dataset file: reading its entries, giving them their defaults, and checking them against each other.

Imports the declarations and the sources of values. Every entry is validated, disabled ones too; what an entry leaves
open (caches, the link to a text cache) is filled in here, so that no other room has a rule about it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from simplewan.errors import Problem
from simplewan.options.catalogue import Options, catalogue, dataset_catalogue
from simplewan.options.datasets import INHERITED, NESTED, DatasetOptions
from simplewan.options.declare import Declared, declarations
from simplewan.options.foreign import FOREIGN_DATASET, MUSUBI_DATASET
from simplewan.options.later import find_later
from simplewan.options.paths import Paths
from simplewan.options.problems import read_values, redact, translate
from simplewan.options.sources import Expander, Findings, Given, did_you_mean, plain_key, read_json
from simplewan.options.written import as_saved

TEXT_ENTRY = "text-embeds"
# Keys that name other entries, and the kind of entry that they name.
LINKS = {
    "text_embeds": "text_embeds",
    "image_embeds": "image_embeds",
    "conditioning_image_embeds": "conditioning_image_embeds",
    "conditioning_data": "conditioning",
}
# What the entries of a type cannot do without.
NEEDED = {
    "csv": ("csv_file", "name the table of the files"),
    "huggingface": ("dataset_name", "name a dataset of the hub (user/name), or a folder"),
    "aws": ("aws_bucket_name", "name the bucket"),
}
MOST_MEGAPIXELS, FEWEST_PIXELS = 20, 16
TABLES = ("parquet", "csv", "jsonl")


@dataclass(frozen=True)
class Entry:
    """One entry: its options, where it stands, and what is saved of it."""

    options: DatasetOptions
    where: str
    given: Mapping[str, Given]
    saved: Mapping[str, Any]


def read_entries(path: Path, *, defaults: Mapping[str, Any], expand: Expander, findings: Findings) -> list[Entry]:
    """The valid entries of the dataset file; problems go to `findings`. `defaults` are config.json's."""
    shown = str(path)
    content = read_json(path, findings)
    if content is None:
        return []
    if isinstance(content, dict):
        findings.problem(shown, "holds one object instead of a list of datasets", fix="put it in [ ]")
        return []
    if not isinstance(content, list) or not content:
        what = "is an empty list" if content == [] else "is not a list of datasets"
        findings.problem(shown, what, fix="datasets_examples/ has some to copy")
        return []
    entries: list[Entry] = []
    for number, raw in enumerate(content, 1):
        if not isinstance(raw, dict):
            findings.problem(f"{shown}, entry {number}", "is not an object")
            continue
        name = next((str(raw[key]) for key in raw if plain_key(key) == "id" and raw[key]), "")
        where = f'{shown}, dataset "{name}"' if name.isprintable() and name else f"{shown}, entry {number}"
        if not name:
            findings.problem(where, "has no id", key="id", fix="give every dataset a name of its own")
        entries.append(_read_entry(raw, where=where, name=name, defaults=defaults, expand=expand, findings=findings))
    return entries


def _read_entry(
    raw: Mapping[str, Any],
    *,
    where: str,
    name: str,
    defaults: Mapping[str, Any],
    expand: Expander,
    findings: Findings,
) -> Entry:
    among = dataset_catalogue()
    found = _known_keys(
        raw, where=where, among=declarations(DatasetOptions), foreign=FOREIGN_DATASET, findings=findings
    )
    for key, model in NESTED.items():
        if key in found and isinstance(found[key].value, Mapping):
            inner = found[key].value
            nested = _known_keys(inner, where=where, among=declarations(model), prefix=f"{key}.", findings=findings)
            found[key] = Given(key, {name: item.value for name, item in nested.items()}, where)
    expanded = {key: expand(item.value, where=where, key=key, id=name) for key, item in found.items()}
    values = read_values(found, expanded, among, findings)
    for key in NESTED:
        if isinstance(values.get(key), dict):
            values[key] = {name: value for name, value in values[key].items() if value is not None}
    values.setdefault("dataset_type", "video" if "video" in found else "image")
    for key in INHERITED:
        if key not in values and key in defaults:
            values[key] = defaults[key]
    try:
        options = DatasetOptions.model_validate(values)
    except ValidationError as error:
        findings.problems.extend(translate(error, found=found, among=among, where=where))
        # What is right is checked further, so that a person sees every mistake at once.
        wrong = {str(item["loc"][0]) for item in error.errors() if item["loc"]}
        found = {key: item for key, item in found.items() if key not in wrong}
        options = DatasetOptions.model_validate({key: value for key, value in values.items() if key not in wrong})
    return Entry(options, where, found, as_saved(found, options, among))


def _known_keys(
    raw: Mapping[str, Any],
    *,
    where: str,
    among: Mapping[str, Declared],
    foreign: Mapping[str, str] = FOREIGN_DATASET,
    prefix: str = "",
    findings: Findings,
) -> dict[str, Given]:
    found: dict[str, Given] = {}
    for written, value in raw.items():
        key = plain_key(str(written))
        if key in among:
            found[key] = Given(key, value, where)
        elif key in foreign:
            findings.warn(f"{where}: {prefix}{key} is not used: {foreign[key]}")
        else:
            findings.problems.append(_unknown(where, prefix, key, redact(key, value)))
    return found


def _unknown(where: str, prefix: str, key: str, value: Any) -> Problem:
    known = dataset_catalogue()
    own = [
        name.removeprefix(prefix) for name in known if name.startswith(prefix) and "." not in name.removeprefix(prefix)
    ]
    if key in MUSUBI_DATASET:
        fix = MUSUBI_DATASET[key]
    elif key in catalogue():
        fix = "it belongs in config.json"
    elif not prefix and (inside := next((name for name in NESTED if f"{name}.{key}" in known), None)):
        fix = f'it belongs in the "{inside}" object of this entry'
    elif prefix and key in known:
        fix = f'it belongs in the entry itself, outside "{prefix[:-1]}"'
    elif meant := did_you_mean(key, own):
        fix = f"did you mean {meant}?"
    else:
        fix = "docs/OPTIONS.md lists the keys of a dataset"
    return Problem(where=where, key=f"{prefix}{key}", message="is not a key of a dataset", fix=fix)


def check_entries(entries: Sequence[Entry], *, shown: str, paths: Paths, findings: Findings) -> None:
    """The checks of enabled entries against each other and the disk; collects what is to come."""
    ids: dict[str, Entry] = {}
    for entry in entries:
        if entry.options.id and entry.options.id in ids:
            findings.problem(entry.where, "is there twice", key="id", fix="give every dataset a name of its own")
        if (fault := _fault_of_id(entry.options.id)) is not None:
            fix = "write letters, digits, - and _: caches are in folders of this name"
            findings.problem(entry.where, fault, key="id", value=entry.options.id, fix=fix)
        ids[entry.options.id] = entry
    enabled = [entry for entry in entries if not entry.options.disabled]
    if entries and not any(entry.options.is_training for entry in enabled) and not findings.problems:
        findings.problem(shown, "has no enabled dataset to train on", fix='add one of dataset_type "video" or "image"')
    kinds = {entry.options.id: entry.options.dataset_type for entry in enabled}
    if len([entry for entry in enabled if entry.options.default and kinds[entry.options.id] == "text_embeds"]) > 1:
        findings.problem(shown, "has several text_embeds entries with default true", key="default", fix="keep one")
    for entry in enabled:
        find_later(entry.options, entry.given, dataset_catalogue(), where=entry.where, findings=findings)
        _check_entry(entry, kinds=kinds, paths=paths, findings=findings)


def _fault_of_id(name: str) -> str | None:
    """What keeps an id from being the name of a folder; None if nothing does."""
    if name in (".", ".."):
        return "is no name: it stands for another folder"
    if not name.isprintable():
        return "holds a character that cannot be shown"
    return next((f'holds a "{sign}"' for sign in "/\\" if sign in name), None)


def check_datasets(options: Options, entries: Sequence[Entry], *, findings: Findings) -> None:
    """The checks of enabled entries against the options of the run."""
    training = [entry for entry in entries if entry.options.is_training and not entry.options.disabled]
    if training and not any(entry.options.probability for entry in training):
        findings.problem(training[0].where, "and that of every other dataset is 0", key="probability", value=0)
    for entry in training:
        if entry.options.is_regularisation_data and options.model.model_type == "full":
            findings.problem(
                entry.where,
                "needs model_type lora: in a full fine-tune there is no base model beside what is trained",
                key="is_regularisation_data",
                value=True,
            )
        if entry.options.vae_cache_clear_each_epoch and not entry.options.renews_crops:
            findings.warn(f"{entry.where}: vae_cache_clear_each_epoch has no effect: crop_style is not random")


def _check_entry(entry: Entry, *, kinds: Mapping[str, str], paths: Paths, findings: Findings) -> None:
    options = entry.options
    for key, wanted in LINKS.items():
        named = getattr(options, key)
        for name in named if isinstance(named, tuple) else (named,) if named is not None else ():
            if kinds.get(name) != wanted:
                meant = did_you_mean(name, [other for other, kind in kinds.items() if kind == wanted])
                fix = f'did you mean "{meant}"?' if meant else ""
                findings.problem(entry.where, f"names no enabled {wanted} entry", key=key, value=name, fix=fix)
    for unit in ("step", "epoch"):
        start, end = getattr(options, f"start_{unit}"), getattr(options, f"end_{unit}")
        if end is not None and end < start:
            findings.problem(entry.where, f"is above end_{unit} {end}", key=f"start_{unit}", value=start)
    _check_units(entry, findings)
    _check_image_sizes(entry, findings)
    low, high = options.minimum_aspect_ratio, options.maximum_aspect_ratio
    if low and high and low > high:
        findings.problem(entry.where, f"is above maximum_aspect_ratio {high:g}", key="minimum_aspect_ratio", value=low)
    if options.crop and options.crop_aspect in ("closest", "random") and not options.crop_aspect_buckets:
        findings.problem(entry.where, "needs crop_aspect_buckets", key="crop_aspect", value=options.crop_aspect)
    _check_captions(entry, paths, findings)
    if (needed := NEEDED.get(options.type)) is not None:
        if not getattr(options, needed[0]) and not (options.huggingface or {}).get(needed[0]):
            findings.problem(entry.where, "is missing", key=needed[0], fix=needed[1])
        elif options.type == "csv" and options.csv_file is not None:
            raw = entry.given["csv_file"].value
            paths.require_file(options.csv_file, raw, where=entry.where, key="csv_file", findings=findings)
    if not options.holds_files and options.type in ("csv", "huggingface"):
        fix = "a cache can be in a folder (local) or in a bucket (aws)"
        findings.problem(entry.where, "cannot hold a cache", key="type", value=options.type, fix=fix)
    if not options.holds_files or options.type != "local":
        return
    if options.instance_data_dir is None:
        findings.problem(entry.where, "is missing", key="instance_data_dir", fix="name the folder of the files")
        return
    raw = entry.given["instance_data_dir"].value
    paths.require_folder(options.instance_data_dir, raw, where=entry.where, key="instance_data_dir", findings=findings)


def _check_units(entry: Entry, findings: Findings) -> None:
    """A resolution that was meant in another unit."""
    options = entry.options
    numbers = [value for value in (*options.resolutions, options.resolution) if isinstance(value, (int, float))]
    for value in numbers:
        if options.resolution_type == "area" and value > MOST_MEGAPIXELS:
            fix = f'resolution_type = "pixel_area" is a square of {value:g} pixels'
            findings.problem(entry.where, "is a size in megapixels", key="resolution", value=value, fix=fix)
        elif options.resolution_type != "area" and value < FEWEST_PIXELS:
            fix = 'resolution_type = "area" counts megapixels'
            findings.problem(entry.where, "is a size in pixels", key="resolution", value=value, fix=fix)


def _check_image_sizes(entry: Entry, findings: Findings) -> None:
    """Limits that leave no source; either may be the default of config.json."""
    low, high = entry.options.minimum_image_size, entry.options.maximum_image_size
    if not entry.options.holds_files or not low or not high or low <= high:
        return
    inherited = [key for key in ("minimum_image_size", "maximum_image_size") if key not in entry.given]
    fix = "every source would be left out: raise maximum_image_size, or lower minimum_image_size"
    if inherited:
        fix += f" ({' and '.join(inherited)}: from config.json)"
    findings.problem(entry.where, f"is above maximum_image_size {high:g}", key="minimum_image_size", value=low, fix=fix)


def _check_captions(entry: Entry, paths: Paths, findings: Findings) -> None:
    """What a way of captioning needs."""
    options = entry.options
    if not options.holds_files:
        return
    by_prompt = options.only_instance_prompt or options.caption_strategy == "instanceprompt"
    asked = [key for key in ("only_instance_prompt", "prepend_instance_prompt") if getattr(options, key)]
    if (by_prompt or asked) and not options.instance_prompt:
        key = asked[0] if asked else "caption_strategy"
        findings.problem(entry.where, "needs instance_prompt", key=key, value=getattr(options, key))
    if options.instance_prompt and not by_prompt and not asked:
        findings.warn(
            f"{entry.where}: instance_prompt is not used: prepend_instance_prompt puts it before captions, "
            'caption_strategy = "instanceprompt" is it alone'
        )
    table = options.parquet.path is not None or options.csv_file is not None
    for key in ("caption_strategy", "metadata_backend"):
        if getattr(options, key) in TABLES and not table and not (key == "caption_strategy" and by_prompt):
            ending = getattr(options, key)
            fix = f'name the table: "parquet": {{"path": "captions.{ending}"}}'
            findings.problem(entry.where, "needs a table", key=key, value=getattr(options, key), fix=fix)
    for key, path in (("caption_filter_list", options.caption_filter_list), ("parquet", options.parquet.path)):
        if isinstance(path, Path):
            raw = entry.given[key].value
            raw = raw.get("path") if isinstance(raw, Mapping) else raw
            paths.require_file(path, raw, where=entry.where, key=key, findings=findings)
    if options.parquet.path is not None and not {options.caption_strategy, options.metadata_backend} & set(TABLES):
        fix = "set caption_strategy or metadata_backend to parquet or csv"
        findings.warn(f"{entry.where}: parquet is not read: {fix}")


def complete(entries: Sequence[Entry], options: Options, *, paths: Paths) -> tuple[DatasetOptions, ...]:
    """The enabled entries with everything filled in: cache folders, the text cache of each dataset, resolved paths."""
    enabled = [entry.options for entry in entries if not entry.options.disabled]
    text = [dataset for dataset in enabled if dataset.dataset_type == "text_embeds"]
    if not text:
        text = [DatasetOptions(id=TEXT_ENTRY, dataset_type="text_embeds", default=True)]
        enabled.append(text[0])
    default = next((dataset.id for dataset in text if dataset.default), text[0].id)
    root = options.caches.cache_dir
    finished = []
    for dataset in enabled:
        update: dict[str, Any] = {"write_batch_size": dataset.write_batch_size or options.caches.write_batch_size}
        if dataset.holds_files:
            update["cache_dir_vae"] = dataset.cache_dir_vae or root / "vae" / dataset.id
            update["text_embeds"] = dataset.text_embeds or default
        elif dataset.dataset_type == "text_embeds":
            update["cache_dir"] = dataset.cache_dir or root / "text"
        finished.append(paths.resolve(dataset.model_copy(update=update)))
    return tuple(finished)
