"""docs/OPTIONS.md, made from the declarations: `python -m simplewan.options.document` writes it.

Imports the records of `describe` and the tables of foreign keys. A test fails when the file is not what this makes.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from simplewan.flavours import ALIASES, FLAVOURS
from simplewan.options.describe import (
    dataset_records,
    group_titles,
    limits_text,
    option_records,
    value_text,
    webhook_records,
)
from simplewan.options.foreign import FOREIGN, FOREIGN_DATASET, MUSUBI, RENAMED

PATH = Path("docs/OPTIONS.md")

_INTRODUCTION = """# Options

This page is generated from the declarations in `simplewan/options/`; `python -m simplewan.options.document` writes it.
`simpletuner options WORD` searches the same list, `simpletuner options --json` prints it as JSON.

## Where values come from

Defaults < JSON file < environment < command line: the later one wins.

- **JSON**: flat keys in `config/config.json`, or in `config/NAME/config.json` with `env=NAME` (or `ENV=NAME` in the
  environment), or in the file of `--config FILE`. A leading `--` and hyphens in keys are accepted; booleans may be text
  ("true"). `null` leaves a key at its default.
- **Environment**: `SIMPLEWAN_<KEY>`, e.g. `SIMPLEWAN_LEARNING_RATE=1e-5`. `TRAINER_EXTRA_ARGS` holds further arguments
  of `train`; `TRAINING_NUM_PROCESSES` and `WAN_FEED_FORWARD_CHUNK_SIZE` are read too.
- **Command line**: `key=value`, `--key value`, `--key=value`; the name of a boolean alone means true. Lists and objects
  are written as JSON: `--validation_resolution '["832x480", "480x832"]'`.

In any text, `{env:NAME}` stands for an environment variable. In paths, `{model_family}` stands for wan, and `{id}` for
the id of a dataset. What is saved with a run keeps both unexpanded and leaves secrets out.

An unknown key is an error, answered with the one that was probably meant. All mistakes of all files are shown at once,
and the exit code is 2. *To come* marks what is known and not there yet: `train` lists what of it a configuration asks
for, and refuses to start. A key with *needs* is not read unless that holds. When a run is resumed, only keys marked
with a circle (○) may have changed.
"""


def render() -> str:
    """The whole page."""
    titles = group_titles()
    records = option_records()
    parts = [_INTRODUCTION, _flavours()]
    for name, title in titles.items():
        parts.append(f"## {title} (`{name}`)\n")
        parts.append(_table(record for record in records if record["group"] == name))
    parts.append("## Entries of the dataset file (`data_backend_config`)\n")
    parts.append(
        "A list of objects. Keys beginning with `video.` stand in the object `video` of an entry, those with "
        "`parquet.` in `parquet`. Numbers of `resolution` and its kin inherit from config.json.\n"
    )
    parts.append(_table(dataset_records()))
    parts.append("## Webhooks (`webhook_config`)\n")
    parts.append("An object with these keys, or a list of them. [webhooks.md](webhooks.md) shows what is sent.\n")
    parts.append(_table(webhook_records()))
    parts.append(_foreign())
    return "\n".join(parts)


def _table(records: Iterable[Mapping[str, Any]]) -> str:
    lines = ["| key | type | default | meaning |", "|---|---|---|---|"]
    for record in records:
        mark = " ○" if record["restart_safe"] else ""
        cells = (f"`{record['key']}`{mark}", _type(record), _default(record), _meaning(record))
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def _type(record: Mapping[str, Any]) -> str:
    limits = limits_text(record)
    return f"{record['type']} ({limits})" if limits else str(record["type"])


def _default(record: Mapping[str, Any]) -> str:
    text = value_text(record["default"])
    return text if text == "none" and record["default"] != "none" else f"`{text}`"


def _meaning(record: Mapping[str, Any]) -> str:
    parts = [f"*To come ({record['to_come']}).*" if record["to_come"] else "", record["help"]]
    if record["choices"]:
        parts.append(f"One of {_names(record['choices'])}.")
    if record["later_choices"] and not record["comfort"]:
        parts.append(f"To come: {_names(record['later_choices'])}.")
    elif record["later_choices"]:
        parts.append(f"{_names(record['later_choices'])}: announced, then {_names(record['choices'])} is taken.")
    if record["needs"]:
        parts.append(f"Needs {record['needs']}.")
    return " ".join(part for part in parts if part)


def _names(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _flavours() -> str:
    lines = ["## Flavours (`model_flavour`)\n", "| flavour | other names | base model |", "|---|---|---|"]
    for flavour in FLAVOURS.values():
        others = _names(name for name, target in ALIASES.items() if target == flavour.name)
        lines.append(f"| `{flavour.name}` | {others} | {flavour.repository or 'comes with the package'} |")
    return "\n".join(lines) + "\n"


def _foreign() -> str:
    lines = [
        "## Keys of other trainers\n",
        f"Older names of SimpleTuner are read: {', '.join(f'`{old}` as `{new}`' for old, new in RENAMED.items())}.\n",
        f"Names of kohya, musubi-tuner and diffusion-pipe are answered with ours: "
        f"{', '.join(f'`{old}` {new}' for old, new in MUSUBI.items())}.\n",
        "SimpleTuner's keys without a use here are answered with the reason, and do no harm:\n",
        "| key | why it is not used |",
        "|---|---|",
    ]
    lines += [f"| `{key}` | {why} |" for key, why in FOREIGN.items()]
    lines += [f"| `{key}` (of a dataset) | {why} |" for key, why in FOREIGN_DATASET.items()]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Write the page, relative to the project's root."""
    if not PATH.parent.is_dir():
        print("run this in the project's root", file=sys.stderr)
        return 2
    PATH.write_text(render(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
