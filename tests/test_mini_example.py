"""The example is made once, whole or not at all, and its JSON fits what is made."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import simplewan.examples
from simplewan.app.examples import prepare as prepare_example
from simplewan.data.backends.opening import open_backend
from simplewan.data.media import probe
from simplewan.data.scan import scan
from simplewan.errors import UserError
from simplewan.events import Event, Notice
from simplewan.examples import example_folder, example_names
from simplewan.mini import clips
from simplewan.mini import example as example_module
from simplewan.mini.clips import make_scenes
from simplewan.mini.draw import caption, caption_words
from simplewan.mini.example import EXAMPLES, MARKER, SEED, Clips, Example, prepare
from simplewan.options import load

SIX, TWO, ONE = (Example({"clips": Clips(count, "quib")}) for count in (6, 2, 1))
CONFIG = Path(simplewan.examples.__file__).parent / "mini" / "config.json"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[bool]]:
    """A prepared folder, asked for twice at once, and what the two answered."""
    folder = tmp_path_factory.mktemp("cache") / "mini"
    with ThreadPoolExecutor(2) as pool:
        answers = list(pool.map(lambda _: prepare(folder, SIX), range(2)))
    return folder, answers


def test_two_at_once_make_it_once(made: tuple[Path, list[bool]]) -> None:
    folder, answers = made
    assert sorted(answers) == [False, True]
    assert prepare(folder, SIX) is False
    assert {path.name for path in folder.iterdir()} == {"clips", "model", MARKER}
    assert {path.name for path in folder.parent.iterdir()} == {"mini", ".mini.lock"}


def test_clips_are_real_files_with_their_captions(made: tuple[Path, list[bool]]) -> None:
    folder = made[0] / "clips"
    assert len(list(folder.iterdir())) == 12
    for index, scene in enumerate(make_scenes(SEED, 6, concept="quib")):
        info = probe(folder / f"clip-{index:03d}.mp4")
        assert (info.width, info.height, info.num_frames) == (scene.width, scene.height, scene.num_frames)
        assert info.fps == pytest.approx(16)
        assert (folder / f"clip-{index:03d}.txt").read_text() == caption(scene) + "\n"


def test_a_failure_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_args: object, **_kwargs: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(clips, "write_dataset", fail)
    with pytest.raises(OSError, match="no space"):
        prepare(tmp_path / "mini", ONE)
    assert [path.name for path in tmp_path.iterdir()] == [".mini.lock"]


def test_a_changed_generator_makes_a_new_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "mini"
    assert prepare(folder, ONE)
    (folder / "cache").mkdir()
    assert not prepare(folder, ONE)
    monkeypatch.setattr(example_module, "_digest", lambda _task: "another")
    assert prepare(folder, ONE)
    assert not (folder / "cache").exists()
    assert prepare(folder, TWO)
    assert len(list((folder / "clips").iterdir())) == 4


def test_a_folder_of_someone_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mini").mkdir()
    (tmp_path / "mini" / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="SIMPLEWAN_CACHE"):
        prepare(tmp_path / "mini", ONE)
    assert (tmp_path / "mini" / "thesis.txt").read_text() == "years of work"


@pytest.mark.slow
def test_a_kill_leaves_nothing_and_the_next_start_cleans_up(tmp_path: Path) -> None:
    folder = tmp_path / "mini"
    code = (
        "import sys; from pathlib import Path; from simplewan.mini.example import EXAMPLES, prepare; "
        "prepare(Path(sys.argv[1]), EXAMPLES['mini'])"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(folder)], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob(".mini.making-*/new/clips/clip-005.txt")):
        assert process.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not folder.exists()
    assert prepare(folder, TWO)
    assert {path.name for path in tmp_path.iterdir()} == {"mini", ".mini.lock"}


def test_the_json_trains_on_what_is_made(example: Path, tmp_path: Path) -> None:
    loaded = load(CONFIG, (), environ={}, base=tmp_path, placeholders={"example": str(example)})
    assert not loaded.notices
    assert not loaded.later
    assert len(loaded.prompts) == 2
    words = {word for prompt in loaded.prompts.values() for word in prompt.replace(";", "").split()}
    assert words <= set(caption_words())
    options, dataset = loaded.options, loaded.datasets[0]
    assert options.model.pretrained_model_name_or_path == str(example / "model")
    said: list[Event] = []
    backend = open_backend(dataset, cache=tmp_path, emit=said.append)
    found = scan(dataset, backend, flavour=loaded.flavour, index_folder=tmp_path, emit=said.append, check=lambda: None)
    assert not found.dropped
    assert not [event for event in said if isinstance(event, Notice) and event.severity != "info"]
    sizes = Counter(sample.bucket for sample in found.samples)
    assert sizes == {"64x64@17": 8, "80x48@17": 8, "48x80@17": 8}
    assert all(count % options.data.train_batch_size == 0 for count in sizes.values()), "every clip is in every epoch"
    (size,) = options.validation.validation_resolution
    assert all(edge % loaded.flavour.pixel_multiple == 0 for edge in size)


def test_the_files_come_with_the_package() -> None:
    assert example_names() == tuple(sorted(EXAMPLES))
    for name in example_names():
        folder = example_folder(name)
        assert folder is not None
        names = {path.name for path in folder.glob("*.json")}
        library = set() if "datasets" in (folder / "config.json").read_text() else {"user_prompt_library.json"}
        assert names == {"config.json", "multidatabackend.json", *library}


def test_unknown_examples_are_refused() -> None:
    assert example_folder("../mini") is None


def test_a_place_that_cannot_be_written_is_the_users_to_mend(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="SIMPLEWAN_CACHE"):
        prepare_example("mini", tmp_path / "file" / "examples" / "mini")
