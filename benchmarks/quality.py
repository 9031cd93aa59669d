"""`python -m benchmarks.quality [--model FOLDER]`: how much of what captions ask for is seen in the miniature's clips.

Scenes are asked for by captions that no data set has, and `simplewan.mini.score`, which has no learned
weights, counts what is right in each clip: one line of percentages a row and set of prompts. A row is a name and a
function from prompts to frames. The sets are the old world and, for each held-back concept, scenes that show it.

    drawn         the scenes' own pixels: how far to trust the scorer
    ceiling       the same through the VAE: what a perfect transformer would reach
    floor         uniform noise; floor-latent is latent noise, decoded
    base          the model folder, its experts and its VAE
    lora          the same with LoRA files on them (--lora-high, --lora-low)

With --flavour i2v-mini or ti2v-mini the scenes' first frames are given too, and the column "frame 0" is the PSNR of the
clips' first frames against them, dB, on average: of the ceiling, what the VAE alone reaches.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from benchmarks.contact_sheet import Line, save_sheet
from benchmarks.rendering import (
    Prompt,
    Settings,
    decoded_noise,
    drawn,
    first_frame,
    generated,
    reconstructed,
    uniform_noise,
)
from simplewan.errors import UserError
from simplewan.flavours import FLAVOURS, HIGH, LOW, Flavour, find_flavour
from simplewan.mini.draw import HELD_BACK, caption, is_held_out, random_scene
from simplewan.mini.measure import Seen, measure
from simplewan.mini.model import FLAVOUR, place_model
from simplewan.mini.score import ATTRIBUTES, Score, concept_score, score, tally, wrong
from simplewan.models.lora.read import read_lora
from simplewan.reporting.quiet import quiet_loading_bars, settle_environment

SIZES = ("64x64", "80x48", "48x80")
NUM_FRAMES = 17
# No data set is made from this seed, and none has the captions that are asked for here.
HELD_OUT_SEED = 2_000_003
OLD_WORLD = "old world"
SETS = (OLD_WORLD, *HELD_BACK)
ASKED = "asked"
ROWS = ("drawn", "ceiling", "floor", "floor-latent", "base", "lora")
CEILING, MADE_BY_MODEL = "ceiling", ("base", "lora")

Render = Callable[[Sequence[Prompt]], list[np.ndarray]]


@dataclass(frozen=True)
class Result:
    """A row's scores on one set of prompts; `ASKED` is the held-back concept on the object it is asked of."""

    row: str
    prompts: str
    clips: int
    scores: dict[str, Score]
    first_frame_db: float
    seconds: float = 0.0


def make_prompts(name: str, count: int, *, seed: int = HELD_OUT_SEED, sizes: Sequence[str] = SIZES) -> list[Prompt]:
    """The first `count` prompts of the set `name`, over the sizes in turn; they do not depend on `count`."""
    prompts = []
    for index in range(count):
        width, height = (int(part) for part in sizes[index % len(sizes)].split("x"))
        generator = np.random.default_rng([seed, SETS.index(name), index])
        concept = None if name == OLD_WORLD else name
        while True:
            scene = random_scene(generator, width=width, height=height, num_frames=NUM_FRAMES, concept=concept)
            if is_held_out(caption(scene)):
                break
        prompts.append(Prompt(scene, seed=int(generator.integers(2**31))))
    return prompts


def judge(row: str, name: str, prompts: Sequence[Prompt], clips: Sequence[np.ndarray]) -> tuple[Result, list[Seen]]:
    """Scores of one row on one set, and what was seen in each clip."""
    seen = [measure(clip, prompt.scene.fps) for prompt, clip in zip(prompts, clips, strict=True)]
    scores = []
    for prompt, found in zip(prompts, seen, strict=True):
        concept = {} if name == OLD_WORLD else {ASKED: concept_score(found, prompt.scene, name)}
        scores.append(score(found, prompt.scene) | concept)
    closeness = [psnr(clip[0], first_frame(prompt)) for prompt, clip in zip(prompts, clips, strict=True)]
    return Result(row, name, len(prompts), tally(scores), sum(closeness) / len(closeness)), seen


def psnr(one: np.ndarray, other: np.ndarray) -> float:
    """Peak signal to noise ratio of two pictures of uint8, dB; 100 at most, for equal ones."""
    error = np.mean((one.astype(np.float64) - other.astype(np.float64)) ** 2)
    return min(100.0, 10 * math.log10(255**2 / error)) if error else 100.0


def make_rows(arguments: argparse.Namespace) -> dict[str, Render]:
    """The rows that were asked for, in the order of `ROWS`. A new feature is a new entry here and in `ROWS`."""
    settings = _settings(arguments)
    loras = {HIGH: arguments.lora_high, LOW: arguments.lora_low}
    loras = {expert: path for expert, path in loras.items() if path is not None}
    rows: dict[str, Render] = {
        "drawn": drawn,
        "ceiling": partial(reconstructed, settings=settings),
        "floor": uniform_noise,
        "floor-latent": partial(decoded_noise, settings=settings),
        "base": partial(generated, settings=settings),
    }
    if loras:
        rows["lora"] = partial(generated, settings=settings, loras=loras)
    return {name: render for name, render in rows.items() if name in (arguments.rows or ROWS)}


def _settings(arguments: argparse.Namespace) -> Settings:
    flavour = find_flavour(arguments.flavour)
    guidance = arguments.guidance or flavour.guidance
    return Settings(
        folder=arguments.model,
        flavour=flavour,
        num_steps=arguments.steps,
        guidance=guidance[0] if len(guidance) == 1 else tuple(guidance),
        shift=flavour.validation_shift if arguments.shift is None else arguments.shift,
        boundary=arguments.boundary,
        negative_prompt=arguments.negative_prompt,
        batch=arguments.batch,
        device=arguments.device,
    )


def run(arguments: argparse.Namespace) -> Iterator[list[Result]]:
    """Renders and judges row after row, yields its results, and writes its contact sheet when asked to."""
    counts = {OLD_WORLD: arguments.count, **dict.fromkeys(HELD_BACK, -(-arguments.count // 4))}
    sets = {name: make_prompts(name, counts[name], sizes=arguments.sizes) for name in arguments.sets}
    everything = [prompt for prompts in sets.values() for prompt in prompts]
    for row, render in make_rows(arguments).items():
        results = []
        started = time.perf_counter()
        clips = render(everything)
        seconds = time.perf_counter() - started
        print(f"{row}: {len(clips)} clips in {seconds:.1f} s", file=sys.stderr, flush=True)
        lines: list[Line] = []
        start = 0
        for name, prompts in sets.items():
            part = clips[start : start + len(prompts)]
            start += len(prompts)
            result, seen = judge(row, name, prompts, part)
            results.append(replace(result, seconds=seconds * len(prompts) / len(clips)))
            shown = zip(part[: arguments.sheet_clips], prompts, seen, strict=False)
            lines += [Line(clip, p.text, describe(found), wrong(found, p.scene)) for clip, p, found in shown]
        if arguments.sheet is not None:
            save_sheet(arguments.sheet.with_stem(f"{arguments.sheet.stem}-{row}"), lines)
        yield results


def describe(seen: Seen) -> str:
    """What was seen, in the words of a caption; "?" where something is like nothing that is drawn."""
    clauses = []
    for item in seen.objects:
        words = ("a", item.size, item.colour, item.shape, item.direction, item.speed if item.speed else "")
        clauses.append(" ".join("?" if word is None else word for word in words).strip())
    return f"{'; '.join(clauses) or 'nothing'} over {seen.ground or '?'}"


def of_ceiling(results: Sequence[Result], result: Result) -> dict[str, float]:
    """The percent that a row reaches of the ceiling on the same set; empty when that was not measured."""
    for ceiling in results:
        if ceiling.row == CEILING and ceiling.prompts == result.prompts and result.row in MADE_BY_MODEL:
            pairs = {name: (part, ceiling.scores[name]) for name, part in result.scores.items()}
            return {name: 100 * part.share / top.share for name, (part, top) in pairs.items() if top.right}
    return {}


def table(results: Sequence[Result], *, intervals: bool = False, first_frames: bool = False) -> str:
    """Percent (samples) for each attribute; below it, where it is known, the percent of the ceiling. With
    `first_frames` also how close those are."""
    columns = (ASKED, *ATTRIBUTES)
    cells = [["row", "set", "clips", *columns, *(["frame 0"] if first_frames else [])]]
    for result in results:
        parts = [result.scores.get(name) for name in columns]
        shown = [f"{100 * part.share:.1f} ({part.total})" if part else "-" for part in parts]
        closeness = [f"{result.first_frame_db:.1f} dB"] if first_frames else []
        cells.append([result.row, result.prompts, str(result.clips), *shown, *closeness])
        if intervals:
            bounds = [[100 * bound for bound in part.interval()] if part else None for part in parts]
            cells.append(["", "95% interval", "", *(f"{b[0]:.1f}-{b[1]:.1f}" if b else "-" for b in bounds)])
        shares = of_ceiling(results, result)
        if shares:
            cells.append(["", "% of ceiling", "", *(f"{shares[n]:.1f}" if n in shares else "-" for n in columns)])
    cells = [line + [""] * (len(cells[0]) - len(line)) for line in cells]
    widths = [max(len(line[column]) for line in cells) for column in range(len(cells[0]))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column < 2 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in cells
    )


def document(results: Sequence[Result]) -> list[dict[str, object]]:
    """The table for programs: right, total, percent, Wilson's 95 percent interval, and the percent of the ceiling."""
    found: list[dict[str, object]] = []
    for result in results:
        shares = of_ceiling(results, result)
        attributes = {}
        for name, part in result.scores.items():
            low, high = part.interval()
            entry = {"right": part.right, "total": part.total, "percent": round(100 * part.share, 2)}
            entry |= {"low": round(100 * low, 2), "high": round(100 * high, 2)}
            attributes[name] = entry | ({"of_ceiling": round(shares[name], 2)} if name in shares else {})
        seconds = round(result.seconds, 2)
        found.append(
            {
                "row": result.row,
                "set": result.prompts,
                "clips": result.clips,
                "seconds": seconds,
                "first_frame_db": round(result.first_frame_db, 2),
                "scores": attributes,
            }
        )
    return found


def _size(text: str) -> str:
    if not re.fullmatch(r"[1-9]\d*x[1-9]\d*", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a size such as 64x64")
    return text


def _fits(size: str, flavour: Flavour) -> bool:
    return not any(int(edge) % flavour.pixel_multiple for edge in size.split("x"))


def parser() -> argparse.ArgumentParser:
    """The command line."""
    flags = argparse.ArgumentParser(
        prog="python -m benchmarks.quality",
        description=(__doc__ or "").partition("\n")[2],
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    layout = "a model folder in diffusers' layout; default: the one that comes with the package"
    flags.add_argument("--model", type=Path, help=layout)
    names = [row.name for row in FLAVOURS.values() if not row.clip_conditioning]
    flags.add_argument(
        "--flavour", choices=names, default=FLAVOUR.name, help=f"what the folder is (default: {FLAVOUR.name})"
    )
    flags.add_argument("--lora-high", type=Path, help="a LoRA file for transformer")
    flags.add_argument("--lora-low", type=Path, help="a LoRA file for transformer_2")
    flags.add_argument("--rows", nargs="+", choices=ROWS, help="default: all that can be made")
    flags.add_argument("--sets", nargs="+", choices=SETS, default=SETS, help="sets of prompts; default: all")
    flags.add_argument("--count", type=int, default=128, help="old-world prompts; a quarter of it for each concept")
    flags.add_argument(
        "--sizes", nargs="+", type=_size, metavar="WxH", help=f"default: those of {', '.join(SIZES)} that fit"
    )
    flags.add_argument("--steps", type=int, default=20, help="UniPC steps (default: 20)")
    flags.add_argument("--guidance", type=float, nargs="+", help="one scale, or low and high; default: the flavour's")
    flags.add_argument("--shift", type=float, help="flow shift; default: the flavour's")
    flags.add_argument("--boundary", type=float, help="sigma at which the low-noise expert takes over")
    flags.add_argument("--negative-prompt", default="")
    flags.add_argument("--batch", type=int, default=32, help="prompts rendered together")
    flags.add_argument("--device", default="cpu")
    flags.add_argument("--threads", type=int, help="threads of torch; default: torch's own choice")
    flags.add_argument("--sheet", type=Path, metavar="FILE.png", help="contact sheets FILE-ROW.png")
    flags.add_argument("--sheet-clips", type=int, default=16, help="clips of each set on a sheet (default: 16)")
    flags.add_argument("--intervals", action="store_true", help="Wilson's 95 percent intervals too")
    flags.add_argument("--json", action="store_true", help="one JSON document instead of the table")
    return flags


def main(words: Sequence[str] | None = None) -> int:
    """Exit code 0; 2 for what does not fit."""
    flags = parser()
    arguments = flags.parse_args(words)
    if arguments.count < 1:
        flags.error("--count is at least 1")
    if arguments.guidance and len(arguments.guidance) > 2:
        flags.error("--guidance takes one scale, or two: low and high")
    if "lora" in (arguments.rows or ()) and not (arguments.lora_high or arguments.lora_low):
        flags.error("--rows lora needs a file: --lora-high or --lora-low")
    if arguments.sheet_clips < 1:
        flags.error("--sheet-clips is at least 1")
    if arguments.sheet is not None and arguments.sheet.suffix.lower() != ".png":
        flags.error(f"--sheet {arguments.sheet}: the name must end in .png")
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    settle_environment(os.environ)
    quiet_loading_bars()
    results: list[Result] = []
    flavour = find_flavour(arguments.flavour)
    arguments.sizes = arguments.sizes or [size for size in SIZES if _fits(size, flavour)]
    with contextlib.ExitStack() as places:
        if arguments.model is None:
            arguments.model = Path(places.enter_context(tempfile.TemporaryDirectory())) / "model"
            place_model(arguments.model, flavour.task)
        code = _run(arguments, results)
    if arguments.json and (results or not code):
        print(json.dumps(document(results), indent=2))
    elif results or not code:
        print(table(results, intervals=arguments.intervals, first_frames=flavour.takes_first_frame))
    return code


def _run(arguments: argparse.Namespace, results: list[Result]) -> int:
    """Gather the results, as far as they come; returns the exit code."""
    try:
        for file in filter(None, (arguments.lora_high, arguments.lora_low)):
            read_lora(file)  # it is needed last, and what is wrong with it should be known first
        for found in run(arguments):
            results += found
    except (UserError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
