"""`python -m benchmarks.kills --times 10 [--seed N] [--signals kill,int,term]`: is anything lost when a run is killed?

The bundled example is trained once without a stop, then again from nothing (its own SIMPLEWAN_CACHE, so that its files
are generated and cached again too) while its process group gets signals at random moments of every phase, and is
started again each time. At the end both must be the same: weights and checkpoint by SHA-256, losses bit for bit, clips,
caches, nothing twice and nothing left over. Prints a table; exit code 1 when anything differs. Ten kills take minutes.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.timing import machine
from simplewan.caches.shards import digest
from simplewan.caches.store import Store
from simplewan.cli.examples import generated_folder
from simplewan.reporting.records import read_records

KILLS_PER_RUN = 10
LAST_STEP = 40
PATIENCE_SECONDS = 600.0
SIGNALS = {"kill": signal.SIGKILL, "int": signal.SIGINT, "term": signal.SIGTERM}
# What a process may leave with: before the handlers stand, a signal has the system's own meaning.
EXIT_CODES = {"kill": {-signal.SIGKILL}, "int": {130, -signal.SIGINT}, "term": {143, -signal.SIGTERM}}
# Phase -> the longest random wait, in seconds, after its first sign.
WAITS = {"generation": 1.0, "caching": 2.5, "training": 2.5, "saving": 0.05, "validation": 2.0}
STAGES = {"scan": "caching", "text_encoder": "caching", "vae": "caching", "model": "loading"}
VOLATILE = frozenset({"run_id", "attempt", "sequence", "time", "seconds", "video", "sheet", "path"})


@dataclass(frozen=True)
class Kill:
    """One stop: which signal, the phase aimed at, the phase it fell into, the last step recorded, the exit code."""

    signal: str
    aimed: str
    hit: str
    step: int
    code: int


class Run:
    """A run of the example in `folder`: its own cache, its own output."""

    def __init__(self, folder: Path) -> None:
        self.output, self.log = folder / "out", folder / "stderr.txt"
        self.environ = {**os.environ, "SIMPLEWAN_CACHE": str(folder / "cache")}
        self.example = generated_folder("mini", environ=self.environ)
        folder.mkdir(parents=True)

    @contextlib.contextmanager
    def attempt(self) -> Iterator[subprocess.Popen[bytes]]:
        """The command, started in a process group of its own; it does not outlive the block."""
        command = [sys.executable, "-m", "simplewan", "train", "example=mini", f"output_dir={self.output}"]
        with self.log.open("wb") as log:
            process = subprocess.Popen(command, env=self.environ, stderr=log, stdout=log, start_new_session=True)
        try:
            yield process
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()

    def said(self, words: str) -> bool:
        """Whether the present attempt has printed `words`."""
        return words in self.log.read_text(errors="replace")

    def last_step(self) -> int:
        """The last step whose loss is recorded."""
        return max((r["step"] for r in read_records(self.output / "events.jsonl") if r["type"] == "metric"), default=0)

    def saved_step(self) -> int:
        """The newest checkpoint."""
        return max((int(path.name.split("-")[1]) for path in self.output.glob("checkpoint-*")), default=0)

    def phase(self, pid: int) -> str:
        """What the process is doing, or was when it went, as its files show."""
        if not self.example.exists():
            making = any(self.example.parent.glob(".mini.making-*"))
            return "generation" if making else "starting"
        try:
            heartbeat = json.loads((self.output / "heartbeat.json").read_text())
        except FileNotFoundError:
            return "starting"
        if heartbeat["pid"] != pid:  # it is an earlier attempt's
            return "starting"
        if any(self.output.glob(f".checkpoint-*.{pid}.*")):
            return "saving"
        return STAGES.get(heartbeat["stage"], heartbeat["stage"])


def sign_of(phase: str, run: Run, pid: int) -> Callable[[], bool]:
    """What tells that `phase` has begun in the attempt of process `pid`, which has just been started."""
    seen = run.saved_step()
    return {
        "generation": lambda: any(run.example.parent.glob(".mini.making-*")),
        "caching": lambda: run.said("Looking at the data"),
        "training": lambda: run.said("Training ...") and run.last_step() > seen,
        "saving": lambda: any(run.output.glob(f".checkpoint-*.{pid}.tmp")),
        "validation": lambda: run.said("Validation of step"),
    }[phase]


def kill_once(run: Run, aimed: str, name: str, draw: random.Random) -> Kill | None:
    """Start an attempt and stop it in the phase aimed at, or near its end; None when it ended by itself."""
    gave_up = time.monotonic() + PATIENCE_SECONDS
    with run.attempt() as process:
        began = sign_of(aimed, run, process.pid)
        while not began():
            if process.poll() is not None:
                return None
            if aimed != "validation" and run.last_step() >= LAST_STEP:
                break  # the phase does not come any more
            if time.monotonic() > gave_up:
                raise TimeoutError(f"no sign of {aimed} within {PATIENCE_SECONDS:.0f} s:\n{run.log.read_text()}")
            time.sleep(0.002)
        time.sleep(draw.uniform(0, WAITS[aimed]))
        hit = run.phase(process.pid)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, SIGNALS[name])
        code = process.wait(PATIENCE_SECONDS)
    if code == 0:
        return None
    if name == "kill":
        hit = run.phase(process.pid)  # what it left cannot change any more
    return Kill(name, aimed, hit, run.last_step(), code)


def aims(times: int, draw: random.Random) -> list[str]:
    """The phases to aim at: those that come once first, then the others in random order."""
    early = ["generation"] * max(1, times // 10) + ["caching"] * max(1, times * 3 // 10)
    late = [phase for phase, _ in zip(_cycle(("training", "saving", "validation")), range(times), strict=False)]
    late = late[: max(0, times - len(early))]
    draw.shuffle(late)
    return (early + late)[:times]


def _cycle(names: Sequence[str]) -> Iterator[str]:
    while True:
        yield from names


def finish(run: Run) -> None:
    """Let the run end. Raises RuntimeError, with what it said, when it does not end well."""
    with run.attempt() as process:
        code = process.wait(PATIENCE_SECONDS)
    if code != 0:
        raise RuntimeError(f"the run left with {code}:\n{run.log.read_text()}")


def figures(run: Run) -> dict[str, object]:
    """Everything of a finished run that must not depend on stops, by name."""
    records = list(read_records(run.output / "events.jsonl"))

    def of(kind: str) -> list[str]:
        stable = ({k: v for k, v in r.items() if k not in VOLATILE} for r in records if r["type"] == kind)
        return sorted(json.dumps(record, sort_keys=True) for record in stable)

    checkpoint = run.output / f"checkpoint-{LAST_STEP}"
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    names = {entry["file"]: entry["sha256"] for entry in manifest["files"]}
    return {
        "final LoRA": _sha256(run.output / "pytorch_lora_weights_low_noise.safetensors"),
        "last checkpoint": names,
        "losses of all steps, once": of("metric"),
        "losses on fixed samples, once": of("eval_loss"),
        "clips announced, once": of("validation"),
        "clips and sheets": _files(run.output / "validation", "*"),
        "generated example": _files(run.example, "clips/*") | _files(run.example, "model/**/*"),
        "latents": _records(run.example / "cache" / "vae" / "shapes"),
        "text embeddings": _records(run.example / "cache" / "text"),
        "left over": sorted(p.name for p in run.output.rglob(".*") if p.name != ".lock")
        + sorted(p.name for p in run.example.rglob(".*"))
        + sorted(p.name for p in run.example.parent.glob(".mini.making-*")),
    }


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _files(folder: Path, pattern: str) -> dict[str, str]:
    found = folder.rglob(pattern) if pattern == "*" else folder.glob(pattern)
    return {str(path.relative_to(folder)): _sha256(path) for path in found if path.is_file()}


def _records(folder: Path) -> dict[str, str]:
    store = Store(folder)
    return {key: digest(store.get(key).contiguous()) for key in store.keys()}  # noqa: SIM118  a store is no dict


def killed_run(folder: Path, times: int, names: Sequence[str], draw: random.Random) -> tuple[Run, list[Kill]]:
    """A run that is stopped up to `times` times and then ends."""
    run, kills = Run(folder), []
    for aimed in aims(times, draw):
        kill = kill_once(run, aimed, draw.choice(names), draw)
        if kill is None:
            print(f"  aimed at {aimed}: the run ended first", flush=True)
            break
        kills.append(kill)
        print(
            f"  {len(kills):>3}  SIG{kill.signal.upper():<5} aimed at {kill.aimed:<11} fell into {kill.hit:<11}"
            f" last step {kill.step:>2}, newest checkpoint {run.saved_step():>2}, exit {kill.code}",
            flush=True,
        )
    finish(run)
    return run, kills


def compare(expected: dict[str, object], run: Run, kills: Sequence[Kill]) -> list[str]:
    """What differs from the run without a stop; empty when nothing does. Prints a line per figure."""
    wrong = [f"SIG{k.signal.upper()} in {k.hit}: exit {k.code}" for k in kills if k.code not in EXIT_CODES[k.signal]]
    for name, value in figures(run).items():
        same = value == expected[name]
        count = len(value) if isinstance(value, (dict, list)) else str(value)[:12]
        print(f"  {name:<31} {count!s:<13} {'same' if same else 'DIFFERENT'}")
        if not same:
            wrong.append(name + _which(expected[name], value))
    return wrong


@contextlib.contextmanager
def _place(keep: Path | None) -> Iterator[Path]:
    if keep is not None:
        yield keep.absolute()
        return
    with tempfile.TemporaryDirectory(prefix="kills-") as folder:
        yield Path(folder)


def _which(expected: object, found: object) -> str:
    """Which entries differ, where there are several."""
    if not isinstance(expected, dict) or not isinstance(found, dict):
        return ""
    differing = sorted(key for key in {*expected, *found} if expected.get(key) != found.get(key))
    return f" ({', '.join(differing[:5])}{', ...' if len(differing) > 5 else ''})"


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0 when nothing differs, 1 when something does."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kills", description=__doc__.split("\n")[0])
    parser.add_argument("--times", type=int, default=10, help="how many stops (default 10)")
    parser.add_argument("--seed", type=int, default=None, help="of the moments (default: the clock's)")
    parser.add_argument("--signals", default="kill", help=f"any of {','.join(SIGNALS)} (default kill)")
    parser.add_argument("--keep", type=Path, default=None, help="an empty folder to work in, which then stays")
    options = parser.parse_args(arguments)
    names = options.signals.split(",")
    if unknown := [name for name in names if name not in SIGNALS]:
        parser.error(f"unknown signal {', '.join(unknown)}; there are {', '.join(SIGNALS)}")
    seed = options.seed if options.seed is not None else time.time_ns() % 100_000
    print(f"{machine()}; seed {seed}", flush=True)
    draw = random.Random(seed)
    kills: list[Kill] = []
    wrong: list[str] = []
    began = time.monotonic()
    with _place(options.keep) as place:
        # All runs in the same place, one after the other: the files name it, and are to be equal byte for byte.
        folder = place / "run"
        straight = Run(folder)
        finish(straight)
        expected = figures(straight)
        folder.rename(place / "straight")
        number = 0
        while len(kills) < options.times:
            number += 1
            print(f"run {number}", flush=True)
            left = min(KILLS_PER_RUN, options.times - len(kills))
            run, new = killed_run(folder, left, names, draw)
            wrong += [f"run {number}: {what}" for what in compare(expected, run, new)]
            kills += new
            folder.rename(place / f"killed-{number}")
    fell = ", ".join(f"{count} in {phase}" for phase, count in Counter(kill.hit for kill in kills).most_common())
    print(f"{len(kills)} stops ({fell}), {number} runs, {time.monotonic() - began:.0f} s")
    print("nothing was lost" if not wrong else "DIFFERENT: " + "; ".join(wrong))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
