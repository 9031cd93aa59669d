"""The rules of the house that a program can check: one-way imports, small files, named exceptions, no addresses."""

from __future__ import annotations

import ast
import json
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "simplewan"
# A module imports only from groups further up, or from its own room; rooms of one group do not know each other,
# but for the first group and the thin front ends' shared entry.
ORDER = [
    {"errors", "events", "flavours", "headers", "recognition"},
    {"options"},
    {"plan"},
    {"data"},
    {"caches"},
    {"batches"},
    {"models"},
    {"objectives"},
    {"training"},
    {"checkpoints", "validation", "reporting"},
    {"mini"},
    {"app"},
    {"cli", "wizard", "web"},
    {"__main__"},
]
RANK = {room: index for index, group in enumerate(ORDER) for room in group}
FREE_OF_TORCH = {"errors", "events", "flavours", "headers", "recognition", "options", "plan", "cli"}
MAX_LINES = 500


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports_of(tree: ast.AST) -> list[str]:
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            found += [f"{node.module}.{alias.name}" for alias in node.names] if node.module == "simplewan" else []
            found.append(node.module or "")
        elif isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
    return found


def violations(room: str, imported: list[str]) -> list[str]:
    """The imports that a module of `room` may not make."""
    wrong = []
    for name in imported:
        parts = name.split(".")
        if parts[0] == "torch" and room in FREE_OF_TORCH:
            wrong.append(name)
        if parts[0] != "simplewan" or len(parts) < 2 or parts[1] not in RANK or parts[1] == room:
            continue
        ahead = RANK[parts[1]] - RANK[room]
        if ahead > 0 or (ahead == 0 and RANK[room] > 0):
            wrong.append(name)
    return wrong


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_one_way(path: Path) -> None:
    room = room_of(path)
    if room not in RANK:  # simplewan/__init__.py and the examples' package data
        assert not [name for name in imports_of(ast.parse(path.read_text())) if name.startswith("simplewan.")]
        return
    assert violations(room, imports_of(ast.parse(path.read_text()))) == []


def test_a_wrong_import_is_noticed() -> None:
    tree = ast.parse("def f():\n    from simplewan.training.loop import train\n    import torch\n")
    assert violations("options", imports_of(tree)) == ["simplewan.training.loop", "torch"]
    assert violations("validation", ["simplewan.checkpoints.store"]) == ["simplewan.checkpoints.store"]
    assert violations("app", ["simplewan.validation.runner"]) == []


def test_files_stay_small() -> None:
    long = {
        str(path.relative_to(ROOT)): count for path in modules() if (count := path.read_text().count("\n")) > MAX_LINES
    }
    assert long == {}


def test_exceptions_are_named() -> None:
    broad = []
    for path in modules():
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.ExceptHandler):
                continue
            named = node.type is not None and getattr(node.type, "id", "") not in ("Exception", "BaseException")
            if not named and not any(isinstance(inner, ast.Raise) for inner in ast.walk(node)):
                broad.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert len(broad) <= 2, broad


def tracked_files() -> list[Path]:
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=False)
    if listing.returncode != 0:
        pytest.skip("not a git checkout")
    return [ROOT / name for name in listing.stdout.decode().split("\0") if name]


def test_nothing_names_a_package_index_or_a_machine() -> None:
    address = re.compile(rb"https?://[^\s\"')]*(?:/simple\b|\.whl\b|\.tar\.gz\b)|/(?:home|Users|root)/\w+")
    found = [
        str(path)
        for path in tracked_files()
        if path.is_file() and path != Path(__file__) and address.search(path.read_bytes())
    ]
    assert found == []


def test_the_weights_name_no_folder_of_those_who_made_them() -> None:
    configurations = list((ROOT / "simplewan" / "mini").glob("weights*/**/*.json"))
    assert configurations
    named = {str(path): json.loads(path.read_text(encoding="utf-8")).get("_name_or_path") for path in configurations}
    assert not any(named.values())


def test_large_files_stay_out_of_git() -> None:
    sizes = {str(path.relative_to(ROOT)): path.stat().st_size for path in tracked_files() if path.is_file()}
    weights = {name: size for name, size in sizes.items() if name.startswith("simplewan/mini/weights")}
    assert sum(weights.values()) <= 16_000_000
    assert {name: size for name, size in sizes.items() if size > 2_000_000 and name not in weights} == {}
