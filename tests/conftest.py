"""What must be set before torch is imported (small kernels, other programs on the machine), and shared fixtures.

What needs torch is imported inside the fixtures.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

from simplewan.reporting.quiet import settle_environment

if TYPE_CHECKING:
    from projects import Project

settle_environment(os.environ)
# No test cuts the power, and a kill loses nothing that was written: waiting for the disk would take a tenth of the time
os.fsync = lambda _descriptor: None
# The same examples every time; HYPOTHESIS_PROFILE=explore looks further.
settings.register_profile("steady", derandomize=True, deadline=None)
settings.register_profile("explore", max_examples=2000, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "steady"))


@pytest.fixture
def fresh_accelerator() -> Iterator[None]:
    """An accelerator of the test's own: accelerate keeps the first one of a process."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture
def apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty working folder, and nothing of this machine's environment that a command reads."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SIMPLEWAN_CACHE", str(tmp_path / "generated"))
    for name in ("ENV", "TRAINER_EXTRA_ARGS"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="session")
def example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The generated example, where it lies in a SIMPLEWAN_CACHE; its caches are filled by whoever is first."""
    from simplewan.app.examples import prepare

    folder = tmp_path_factory.mktemp("generated") / "examples" / "mini"
    prepare("mini", folder)
    return folder


@pytest.fixture(scope="session")
def _filled(example: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose caches are full, one record an encode group."""
    from projects import CLIPS, Project

    project = Project(tmp_path_factory.mktemp("filled"), example / "model")
    for dataset, clips in CLIPS.items():
        for clip in clips:
            project.add(example / "clips", dataset, clip)
    work = project.start()
    assert len(work.latent_names) == 7
    assert len(work.text_names) == 8  # a caption each, and none
    return project.folder


@pytest.fixture
def project(_filled: Path, example: Path, tmp_path: Path, fresh_accelerator: None) -> Project:
    """A copy of it, so that each test begins with full caches."""
    from projects import Project

    shutil.copytree(_filled, tmp_path / "project", ignore=shutil.ignore_patterns("out-*", "*.sqlite"))
    return Project(tmp_path / "project", example / "model")
