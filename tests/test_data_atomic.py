"""A folder is there as a whole or not at all, whatever ends its writing."""

from __future__ import annotations

from pathlib import Path

import pytest

from simplewan.data.atomic import atomic_folder


def write(folder: Path, text: str, *, fail: bool = False) -> None:
    with atomic_folder(folder) as temporary:
        (temporary / "inner").mkdir(parents=True)
        (temporary / "inner" / "file").write_text(text)
        if fail:
            raise KeyboardInterrupt


def test_a_folder_is_replaced_when_the_new_one_is_whole(tmp_path: Path) -> None:
    folder = tmp_path / "there" / "model"
    write(folder, "first")
    with pytest.raises(KeyboardInterrupt):
        write(folder, "half", fail=True)
    assert (folder / "inner" / "file").read_text() == "first"
    write(folder, "second")
    assert (folder / "inner" / "file").read_text() == "second"
    assert [path.name for path in folder.parent.iterdir()] == ["model"]


def test_the_old_folder_comes_back_when_its_place_could_not_be_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "model"
    write(folder, "first")
    rename = Path.rename

    def failing(self: Path, target: Path) -> Path:
        if self.name == ".model.tmp":
            raise OSError("disk gone")
        return rename(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", failing)
        with pytest.raises(OSError, match="disk gone"):
            write(folder, "second")
    assert (folder / "inner" / "file").read_text() == "first"
    folder.rename(tmp_path / ".model.old.tmp")  # where a kill between the two renames leaves it
    with pytest.raises(KeyboardInterrupt):
        write(folder, "half", fail=True)
    assert (folder / "inner" / "file").read_text() == "first"
