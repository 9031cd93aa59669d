"""Which configuration a command works with: found by its arguments, then loaded. The commands share it.

Imports options and the examples' names; `app` when the files of an example are to be made.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from simplewan.cli.arguments import Arguments
from simplewan.cli.examples import generated_folder
from simplewan.errors import EXIT_USER_ERROR, Problem, UserError
from simplewan.events import Notice
from simplewan.examples import example_folder, example_names
from simplewan.options import Loaded, load
from simplewan.options.later import told_of
from simplewan.options.sources import COMMAND_LINE, Findings, did_you_mean, gather

DEFAULT_CONFIG = Path("config/config.json")
PLACEHOLDER = "example"


def load_configuration(
    arguments: Arguments,
    config: Path | None,
    environ: Mapping[str, str],
    placeholders: Mapping[str, str],
    *,
    unprepared: Sequence[str] = (),
    training: bool = True,
    later_too: Collection[str] | bool = False,
) -> Loaded:
    """What `load` gives; its problems, those of the arguments, and what is to come of `later_too` together."""
    try:
        loaded = load(
            config,
            arguments.overrides,
            environ=environ,
            placeholders=placeholders,
            unprepared=unprepared,
            training=training,
            later_too=later_too,
        )
    except UserError as error:
        raise UserError(*arguments.problems, *error.problems) from None
    if arguments.problems:
        raise UserError(*arguments.problems, *told_of(loaded.later, later_too))
    return loaded


def with_example(
    loaded: Loaded,
    arguments: Arguments,
    config: Path | None,
    environ: Mapping[str, str],
    placeholders: Mapping[str, str],
    *,
    training: bool = True,
) -> Loaded:
    """`loaded` as it is; for an example, its generated files are made first, and it is read again with them there."""
    example = arguments.example or arguments.env
    if not placeholders or example is None:
        return loaded
    from simplewan.app.examples import prepare

    prepare(example, Path(placeholders[PLACEHOLDER]))
    return load_configuration(arguments, config, environ, placeholders, training=training)


def refuse(later: Sequence[Problem], notices: Sequence[Notice]) -> int:
    """List what is asked for and still to come; returns the exit code."""
    for notice in notices:
        print(f"{notice.severity}: {notice.message}", file=sys.stderr)
    print("this configuration asks for what is still to come:", file=sys.stderr)
    for problem in later:
        print(f"  {problem}", file=sys.stderr)
    return EXIT_USER_ERROR


def find_configuration(
    arguments: Arguments, environ: Mapping[str, str], *, needed: bool = True
) -> tuple[Path | None, dict[str, str]]:
    """The configuration file, and what placeholders in it stand for.

    None where options alone say it all: when they name the datasets, or when no file is `needed` and there is none.
    """
    if arguments.example is not None:
        folder = _existing_example(arguments.example)
        return folder / "config.json", {PLACEHOLDER: str(generated_folder(arguments.example, environ=environ))}
    if arguments.config is not None:
        return arguments.config, {}
    try:
        if arguments.env is not None:
            path = _of_environment(arguments.env)
            return path, _copied_example(arguments.env, path, environ)
        by_options = not needed or any(item.key == "data_backend_config" for item in arguments.overrides)
        if by_options and not DEFAULT_CONFIG.exists():
            return None, {}
        return _default_config(), {}
    except UserError as error:
        findings = Findings()
        gather({}, arguments.overrides, environ=environ, config_name=COMMAND_LINE, findings=findings)
        raise UserError(*arguments.problems, *error.problems, *findings.problems) from None


def _copied_example(name: str, path: Path, environ: Mapping[str, str]) -> dict[str, str]:
    """The placeholder of an example that was copied to config/NAME/; none in a configuration of the user's own."""
    if example_folder(name) is None or f"{{{PLACEHOLDER}}}" not in path.read_text(encoding="utf-8"):
        return {}
    return {PLACEHOLDER: str(generated_folder(name, environ=environ))}


def _of_environment(name: str) -> Path:
    """config/NAME/config.json; "default" is config/config.json unless there is a folder of that name."""
    path = DEFAULT_CONFIG.parent / name / DEFAULT_CONFIG.name
    if path.exists():
        return path
    if name == "default":
        return _default_config()
    names = sorted(found.parent.name for found in DEFAULT_CONFIG.parent.glob(f"*/{DEFAULT_CONFIG.name}"))
    meant = did_you_mean(name, names)
    known = f"there are {', '.join(names)}" if names else "config/ holds no folder with a config.json"
    raise UserError(Problem(str(path), "there is no such file", fix=f'did you mean env="{meant}"?' if meant else known))


def _default_config() -> Path:
    if not DEFAULT_CONFIG.exists():
        fix = "copy config/config.json.example and its neighbours, give --config FILE, or try `train example=mini`"
        raise UserError(Problem(str(DEFAULT_CONFIG), "there is no such file", fix=fix))
    return DEFAULT_CONFIG


def _existing_example(name: str) -> Path:
    folder = example_folder(name)
    if folder is None:
        names = example_names()
        meant = did_you_mean(name, names)
        hint = f'did you mean "{meant}"?' if meant else f"there are {', '.join(names) or 'none'}"
        raise UserError(Problem("command line", "is not an example", key="example", value=name, fix=hint))
    return folder
