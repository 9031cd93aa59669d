"""`simpletuner sample`: find the configuration, read what is to be rendered with what, then render.

Imports options; `app`, and torch with it, only when there is something to render. Standard output holds the names of
the files, or one JSON document.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from simplewan.cli.arguments import Arguments, parse
from simplewan.cli.configuration import find_configuration, load_configuration, refuse, with_example
from simplewan.cli.listing import SAMPLE_KEYS, sample_help
from simplewan.cli.pictures import check_pictures, picture_files
from simplewan.errors import EXIT_DONE, Problem, UserError
from simplewan.options import Loaded
from simplewan.options.groups.validation import MAX_SEED
from simplewan.options.later import told_of
from simplewan.options.prompts import read_prompts
from simplewan.options.sources import COMMAND_LINE, Expander, Findings
from simplewan.validation.prompts import Asked

ADAPTERS = ("adapter", "adapter_high", "adapter_low")
OWN = ("prompt", "prompts", "input_image", "seed", *ADAPTERS, "adapter_scale", "output")
FLAGS = ("json",)
NONE = "none"
PROMPTS_FIX = "name a text file with one prompt a line, or a JSON object of names and prompts"


def run(argv: Sequence[str], *, environ: Mapping[str, str]) -> int:
    """Render; returns the exit code. Raises UserError with every mistake of arguments and files."""
    arguments = parse(argv, environ=environ, own=OWN, flags=FLAGS)
    if arguments.help:
        print(sample_help())
        return EXIT_DONE
    prompts = _prompts(arguments, environ)
    images = picture_files(arguments)
    seeds = _seeds(arguments)
    scale = arguments.number("adapter_scale", fix="1 is the strength of the training, 0.5 half of it")
    adapters = _adapters(arguments)
    as_json, output = arguments.flag("json"), arguments.path("output")
    config: Path | None = None
    placeholders: dict[str, str] = {}
    if arguments.config != Path(NONE):
        config, placeholders = find_configuration(arguments, environ, needed=False)
    loaded = load_configuration(
        arguments,
        config,
        environ,
        placeholders,
        unprepared=tuple(placeholders),
        training=False,
        later_too=SAMPLE_KEYS,
    )
    if later := told_of(loaded.later, SAMPLE_KEYS):
        return refuse(later, loaded.notices)
    if not prompts and not _has_prompts(loaded):
        fix = 'write prompt="a red fox trots through snow", or prompts=FILE'
        raise UserError(Problem(COMMAND_LINE, "there is nothing to render: no prompt was given", fix=fix))
    check_pictures(loaded, prompts, images)
    from simplewan.models.wan.checking import check_files

    if not placeholders:  # the model of an example may have to be made first
        # Which transformers are needed is known when it is known what was trained.
        check_files(loaded.options.model, loaded.flavour, experts=())
    print("loading PyTorch and diffusers ...", file=sys.stderr, flush=True)
    loaded = with_example(loaded, arguments, config, environ, placeholders, training=False)
    from simplewan.app.sample import Request, sample

    # Without a configuration, an output_dir that nobody named says nothing of what was trained.
    trained = loaded.options.run.output_dir if config is not None or "output_dir" in loaded.resolved else None
    request = Request(
        output=output or (trained or Path()) / "samples",
        prompts=prompts,
        images=images,
        seeds=seeds,
        run=trained,
        adapters=adapters,
        adapter_scale=1.0 if scale is None else scale,
    )
    outcome = sample(loaded, request)
    if as_json:
        print(json.dumps(outcome.clips, indent=2, ensure_ascii=False))
    else:
        for clip in outcome.clips:
            print(clip["video"], clip["sheet"], sep="\n")
    return outcome.exit_code


def _has_prompts(loaded: Loaded) -> bool:
    options = loaded.options.validation
    return bool(options.validation_prompt or loaded.prompts or options.validation_prompt_library)


def _prompts(arguments: Arguments, environ: Mapping[str, str]) -> list[Asked]:
    """Every prompt=, and the lines or names of every prompts=FILE."""
    prompts: list[Asked] = []
    for text in arguments.own.get("prompt", []):
        if text.strip():
            prompts.append(Asked(None, text.strip()))
        else:
            arguments.problems.append(Problem(COMMAND_LINE, "is empty", "prompt", fix="leave it out, or write one"))
    for name in arguments.own.get("prompts", []):
        before = len(prompts), len(arguments.problems)
        prompts += _read_file(Path(name).expanduser(), arguments, environ)
        if before == (len(prompts), len(arguments.problems)):
            arguments.problems.append(Problem(COMMAND_LINE, "holds no prompt", "prompts", name, PROMPTS_FIX))
    return prompts


def _read_file(path: Path, arguments: Arguments, environ: Mapping[str, str]) -> list[Asked]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        arguments.problems.append(Problem(COMMAND_LINE, f"cannot be read: {why}", "prompts", str(path), PROMPTS_FIX))
        return []
    where = str(path)
    if path.suffix.lower() == ".json" or text.lstrip().startswith("{"):
        findings = Findings()
        expand = Expander(environ=environ, placeholders={}, findings=findings)
        library = read_prompts(path, expand=expand, findings=findings)
        arguments.problems += findings.problems
        images = {name: str(image) for name, image in library.images.items()}
        return [Asked(name, prompt, images.get(name), where) for name, prompt in library.prompts.items()]
    return [Asked(None, line.strip(), where=where) for line in text.splitlines() if line.strip()]


def _seeds(arguments: Arguments) -> tuple[int, ...]:
    words = [word.strip() for value in arguments.own.get("seed", []) for word in value.split(",")]
    numbers = all(word.isascii() and word.isdecimal() for word in words)
    if not numbers or any(len(word) > 20 or int(word) > MAX_SEED for word in words):
        message = "is larger than a seed can be" if numbers else "is not a list of whole numbers"
        fix = 'write "seed=1" or "seed=1,2,3"'
        arguments.problems.append(Problem(COMMAND_LINE, message, "seed", ",".join(words), fix))
        return ()
    return tuple(dict.fromkeys(map(int, words)))


def _adapters(arguments: Arguments) -> dict[str, list[Path]] | None:
    """The LoRA files by argument; {} for the bare base, None when the arguments say nothing of them."""
    given = {key: arguments.own[key] for key in ADAPTERS if key in arguments.own}
    if not given:
        return None
    files = {key: [value for value in values if value.lower() != NONE] for key, values in given.items()}
    if any(files.values()) and files != given:
        fix = "name the files, or none"
        arguments.problems.append(Problem(COMMAND_LINE, "cannot stand beside a file", "adapter", NONE, fix))
    for key, values in files.items():
        for value in values:
            if not Path(value).expanduser().exists():
                fix = "name a LoRA file, a folder with some, or none"
                arguments.problems.append(Problem(COMMAND_LINE, "is not there", key, value, fix))
    return {key: [Path(value).expanduser() for value in values] for key, values in files.items()}
