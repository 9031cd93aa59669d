"""`simpletuner cache`: fill the caches of a configuration before training, or look after them.

Imports options; `app`, and torch with it, only when there is something to do. Standard output holds what was found, or
one JSON document.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from simplewan.cli.arguments import Arguments, parse
from simplewan.cli.configuration import find_configuration, load_configuration, refuse, with_example
from simplewan.errors import EXIT_DONE, Problem, some
from simplewan.options.sources import COMMAND_LINE

ACTIONS = ("fill", "list", "verify", "prune")
FLAGS = (*ACTIONS, "force", "json")
HELP = """usage: simpletuner cache [env=NAME | example=NAME | --config FILE] [--ACTION] [--json] [key=value ...]

Works with the caches that `train` with the same arguments would use: latents and text embeddings.

  --fill      encode what is missing, as train would, and stop (this is what it does without an action)
  --list      say what is there, what is missing, and what this configuration would not use and why
  --verify    read every record and compare it with its checksum; damaged ones are set aside, so that the next fill
              makes them anew (exit code 1 when there are any)
  --prune     remove what is stale: records of this configuration's datasets that it would not use, such as those of
              another resolution or of files that are not there now; records of other datasets stay; small files of
              records are joined
  --force     prune though more than half is stale, or nobody can tell whether others use the place (a bucket)
  --json      one JSON document on standard output

A source file is never touched."""


def run(argv: Sequence[str], *, environ: Mapping[str, str]) -> int:
    """Do it; returns the exit code. Raises UserError with every mistake of arguments and files."""
    arguments = parse(argv, environ=environ, flags=FLAGS)
    if arguments.help:
        print(HELP)
        return EXIT_DONE
    action, as_json, force = _action(arguments), arguments.flag("json"), arguments.flag("force")
    config, placeholders = find_configuration(arguments, environ)
    loaded = load_configuration(
        arguments, config, environ, placeholders, unprepared=tuple(placeholders), later_too=True
    )
    if loaded.later:
        return refuse(loaded.later, loaded.notices)
    print("loading PyTorch and diffusers ...", file=sys.stderr, flush=True)
    loaded = with_example(loaded, arguments, config, environ, placeholders)
    from simplewan.app.cache import cache

    outcome = cache(loaded, action, force=force)
    if as_json:
        print(json.dumps({"action": action, "stores": outcome.stores}, indent=2, ensure_ascii=False))
    else:
        for store in outcome.stores:
            print("\n".join(TEXTS[action](store)))
    return outcome.exit_code


def _action(arguments: Arguments) -> str:
    chosen = [name for name in ACTIONS if arguments.flag(name)]
    if len(chosen) > 1:
        shown = " and ".join(f"--{name}" for name in chosen)
        arguments.problems.append(Problem(COMMAND_LINE, f"{shown} exclude each other", fix="give one at a time"))
    return chosen[0] if chosen else "fill"


def _size(num_bytes: int) -> str:
    for unit, factor in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if num_bytes >= factor:
            return f"{num_bytes / factor:.1f} {unit}"
    return f"{num_bytes} bytes"


def _listed(store: Mapping[str, Any]) -> list[str]:
    lines = [f"{store['place']} ({', '.join(store['kinds'])}): {store['records']} records, {_size(store['num_bytes'])}"]
    lines.append(f"  used: {store['used_records']}")
    if store["missing"]:
        lines.append(f"  to be encoded: {len(store['missing'])}: {some(store['missing'])}")
    other = [record for record in store["stale"] if record["other_settings"]]
    stale = [record for record in store["stale"] if not record["other_settings"]]
    lines += _unused("stale", stale)
    lines += _unused("made with other settings, perhaps for another configuration", other)
    if store["records_of_others"]:
        lines.append(f"  of datasets that this configuration does not name: {store['records_of_others']}")
    if store["damaged_shards"]:
        lines.append(f"  set aside as damaged: {store['damaged_shards']} files (--prune removes them)")
    return lines


def _unused(title: str, records: Sequence[Mapping[str, Any]]) -> list[str]:
    """Records that this configuration would not use, by reason."""
    if not records:
        return []
    reasons: dict[str, list[str]] = {}
    for record in records:
        differing = ", ".join(record["other_settings"])
        reasons.setdefault(f"other {differing}" if differing else record["reason"], []).append(record["names"][0])
    size = _size(sum(record["bytes"] for record in records))
    lines = [f"  {title}: {len(records)} records, {size} (--prune removes them)"]
    return lines + [f"    {reason}: {len(names)}: {some(names)}" for reason, names in sorted(reasons.items())]


def _verified(store: Mapping[str, Any]) -> list[str]:
    lines = [f"{store['place']}: {store['records']} records, {len(store['damaged'])} damaged"]
    lines += [f"  {item['reason']}" for item in store["damaged"]]
    if store["damaged"]:
        lines.append(f"  set aside; {store['to_encode_again']} records are made anew by the next fill")
    return lines


def _pruned(store: Mapping[str, Any]) -> list[str]:
    return [f"{store['place']}: {store['records']} records removed, {_size(store['bytes_freed'])} freed"]


TEXTS = {"fill": _listed, "list": _listed, "verify": _verified, "prune": _pruned}
