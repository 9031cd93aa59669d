"""`simpletuner train`: find the configuration, load it, refuse what is wrong or still to come, then train.

Imports options; `app`, and torch with it, only when there is something to train.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from simplewan.cli.arguments import Arguments, parse
from simplewan.cli.examples import generated_folder
from simplewan.cli.listing import train_help
from simplewan.errors import EXIT_DONE, EXIT_USER_ERROR, Problem, UserError
from simplewan.examples import example_folder, example_names
from simplewan.options import Loaded, load
from simplewan.options.sources import did_you_mean
from simplewan.reporting.quiet import settle_environment

DEFAULT_CONFIG = Path("config/config.json")
PLACEHOLDER = "example"


def run(argv: Sequence[str], *, environ: Mapping[str, str]) -> int:
    """Train; returns the exit code. Raises UserError with every mistake of arguments and files."""
    arguments = parse(argv, environ=environ)
    if arguments.help:
        print(train_help())
        return EXIT_DONE
    config, placeholders = _configuration(arguments, environ)
    loaded = _load(arguments, config, environ, placeholders, unprepared=tuple(placeholders))
    if loaded.later:
        for notice in loaded.notices:
            print(f"{notice.severity}: {notice.message}", file=sys.stderr)
        print("this configuration asks for what is still to come:", file=sys.stderr)
        for problem in loaded.later:
            print(f"  {problem}", file=sys.stderr)
        return EXIT_USER_ERROR
    from simplewan.models.wan.sources import check_files

    if arguments.example is None:
        check_files(loaded.options.model, loaded.flavour)  # the example's model may have to be made first
    settle_environment(os.environ)
    print("loading PyTorch and diffusers ...", file=sys.stderr, flush=True)
    example = arguments.example or arguments.env
    if placeholders and example is not None:
        from simplewan.app.examples import prepare

        prepare(example, Path(placeholders[PLACEHOLDER]))
        loaded = _load(arguments, config, environ, placeholders)
    from simplewan.app import train

    return train(loaded)


def _load(
    arguments: Arguments,
    config: Path | None,
    environ: Mapping[str, str],
    placeholders: Mapping[str, str],
    *,
    unprepared: Sequence[str] = (),
) -> Loaded:
    """What `load` gives; its problems and those of the arguments together."""
    try:
        loaded = load(config, arguments.overrides, environ=environ, placeholders=placeholders, unprepared=unprepared)
    except UserError as error:
        raise UserError(*arguments.problems, *error.problems) from None
    if arguments.problems:
        raise UserError(*arguments.problems)
    return loaded


def _configuration(arguments: Arguments, environ: Mapping[str, str]) -> tuple[Path | None, dict[str, str]]:
    """The configuration file, and what placeholders in it stand for."""
    if arguments.example is not None:
        folder = _existing_example(arguments.example)
        return folder / "config.json", {PLACEHOLDER: str(generated_folder(arguments.example, environ=environ))}
    if arguments.config is not None:
        return arguments.config, {}
    try:
        if arguments.env is not None:
            path = _of_environment(arguments.env)
            return path, _copied_example(arguments.env, path, environ)
        if not DEFAULT_CONFIG.exists() and any(item.key == "data_backend_config" for item in arguments.overrides):
            return None, {}
        return _default_config(), {}
    except UserError as error:
        raise UserError(*arguments.problems, *error.problems) from None


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
        fix = "copy config/config.json.example, name another with --config FILE, or try `train example=mini`"
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
