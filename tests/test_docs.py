"""README and quickstart say what is true: their JSON loads, their commands parse, what they name is there."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from simplewan.cli import COMMANDS
from simplewan.cli.arguments import Arguments, parse
from simplewan.cli.sample import FLAGS, OWN
from simplewan.examples import example_names
from simplewan.options import Loaded, load
from simplewan.options.catalogue import catalogue, dataset_catalogue
from simplewan.options.sources import Override

ROOT = Path(__file__).resolve().parents[1]
PAGES = {name: (ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "docs/quickstart.md")}
WRITTEN_BY_USERS = re.compile(r"config/(\w[\w-]*/)?((config|multidatabackend)\.json)?$|datasets/|output/|models/")
NAMED = re.compile(
    r"(?<![\w/.])(?:docs|config|tests|simplewan|benchmarks|datasets_examples)/[\w./-]+|\w+\.(?:md|txt|sh)\b"
)
MAX_PICTURE_BYTES = 150_000

pages = pytest.mark.parametrize("page", PAGES)


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGES[page], re.DOTALL | re.MULTILINE)


def inline_code(page: str) -> list[str]:
    prose = re.sub(r"^```.*?^```", "", PAGES[page], flags=re.DOTALL | re.MULTILINE)
    return [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", prose)]


def configurations(page: str) -> Iterator[tuple[dict[str, Any], list[dict[str, Any]]]]:
    """Every configuration of the page, with the page's datasets."""
    parsed = [json.loads(block) for block in blocks(page, "json")]
    datasets = [content for content in parsed if isinstance(content, list)]
    assert len(datasets) == 1
    yield from ((content, datasets[0]) for content in parsed if isinstance(content, dict))


def load_in(folder: Path, config: dict[str, Any], datasets: list[dict[str, Any]], *overrides: Override) -> Loaded:
    """Load them as if `folder` were the user's working directory; the folders of the clips are made first."""
    for entry in datasets:
        (folder / entry["instance_data_dir"]).mkdir(parents=True, exist_ok=True)
    data_file = folder / config["data_backend_config"]
    data_file.parent.mkdir(parents=True, exist_ok=True)
    data_file.write_text(json.dumps(datasets))
    config_file = data_file.with_name("config.json")
    config_file.write_text(json.dumps(config))
    return load(config_file, overrides, environ={}, base=folder)


def commands(page: str) -> list[list[str]]:
    """The words of every `simpletuner COMMAND ...`; `./train.sh ...` is one of `train`."""
    lines = "\n".join(blocks(page, "bash")).replace("\\\n", " ").splitlines()
    found = []
    for line in [*lines, *inline_code(page)]:
        if "train.sh" not in line and "simpletuner" not in line:
            continue
        words = shlex.split(line, comments=True)
        if not words or "..." in words:
            continue
        if words[0] == "./train.sh":
            found.append(["train", *words[1:]])
        elif Path(words[0]).name == "simpletuner" and len(words) > 1 and words[1].islower():
            found.append(words[1:])
    return found


def trainings(page: str) -> list[Arguments]:
    return [parse(words[1:], environ={}) for words in commands(page) if words[0] == "train"]


@pytest.fixture(autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """A home in which the example has been run, as the pages ask before they use its model."""
    folder = tmp_path_factory.mktemp("home")
    (folder / ".cache" / "simplewan" / "examples" / "mini" / "model").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(folder))


@pages
def test_configurations_load_without_a_remark(page: str, tmp_path: Path) -> None:
    found = list(configurations(page))
    assert found
    for config, datasets in found:
        loaded = load_in(tmp_path, config, datasets)
        assert not loaded.later and not loaded.notices
        assert loaded.datasets[0].dataset_type == "video"


@pages
def test_commands_are_understood_and_load(page: str, tmp_path: Path) -> None:
    assert all(words[0] in COMMANDS for words in commands(page)), commands(page)
    asked = trainings(page)
    assert len(asked) >= 4
    first, *others = configurations(page)
    for arguments in asked:
        config, datasets = others[-1] if others and arguments.env is not None else first
        assert not arguments.problems
        assert arguments.example in (None, *example_names())
        if arguments.env is not None:
            assert arguments.env in example_names() or f"config/{arguments.env}/config.json" in PAGES[page]
        if arguments.example is None and arguments.env not in example_names():
            assert not load_in(tmp_path, config, datasets, *arguments.overrides).later


def test_samplings_are_understood_and_load(tmp_path: Path) -> None:
    asked = [words[1:] for page in PAGES for words in commands(page) if words[0] == "sample" and "--help" not in words]
    assert len(asked) >= 5
    for words in asked:
        arguments = parse(words, environ={}, own=OWN, flags=FLAGS)
        assert not arguments.problems, words
        assert not load(None, arguments.overrides, environ={}, base=tmp_path, training=False).later


@pages
def test_keys_in_the_text_are_options(page: str, tmp_path: Path) -> None:
    config, datasets = next(configurations(page))
    for code in inline_code(page):
        if (pair := re.match(r'"(\w+)": (.+)$', code)) is None:
            continue
        key, value = pair[1], json.loads(pair[2])
        assert key in catalogue() or key in dataset_catalogue(), key
        if key in catalogue():
            assert not load_in(tmp_path, {**config, key: value}, datasets).later, key
        else:
            assert not load_in(tmp_path, config, [{**datasets[0], key: value}]).later, key


def test_keys_of_the_quickstart_tables_exist_and_work() -> None:
    text = PAGES["docs/quickstart.md"]
    rows = re.search(r"## Options worth knowing\n(.*?)\n## ", text, re.DOTALL)[1]
    keys = {
        key
        for row in rows.splitlines()
        for key in re.findall(r"[`\"]((?:video\.)?[a-z]\w+)[`\"]", row.split("|")[1] if "|" in row else "")
    }
    values = {"resolution_frames", "image", "full"}
    known = {**dataset_catalogue(), **catalogue()}
    assert keys - values and all(key in known and known[key].later is None for key in keys - values)


def test_keys_that_may_change_are_marked_so() -> None:
    rows = re.search(r"\| may change .*?\n\n", PAGES["docs/quickstart.md"], re.DOTALL)[0].strip().splitlines()[2:]
    for row in rows:
        _, may, may_not, _ = row.split("|")
        for text, safe in ((may, True), (may_not, False)):
            for key in re.findall(r"`(\w+)`", text):
                declared = catalogue().get(key) or dataset_catalogue().get(key)
                assert declared is None or declared.restart_safe == safe, key


@pages
def test_links_and_anchors_resolve(page: str) -> None:
    targets = re.findall(r"\]\(([^)]+)\)", PAGES[page])
    assert targets
    for target in targets:
        path, _, anchor = target.partition("#")
        file = (ROOT / page).parent / path if path else ROOT / page
        assert file.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.+)$", file.read_text(encoding="utf-8"), re.MULTILINE)
            slugs = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
            assert anchor in slugs, target


@pages
def test_files_and_modules_that_are_named_exist(page: str) -> None:
    code = [*inline_code(page), *blocks(page, "bash")]
    for path in (path for text in code for path in NAMED.findall(text)):
        there = (ROOT / path).exists() or (ROOT / "docs" / path).exists()
        assert there or WRITTEN_BY_USERS.match(path) or path in ("fox.txt", "owl.txt", "prompts.txt"), path
    for module in re.findall(r"python -m ([\w.]+)", PAGES[page]):
        assert importlib.util.find_spec(module) is not None, module


def test_pictures_are_small() -> None:
    pictures = list((ROOT / "docs" / "images").iterdir())
    assert pictures and all(picture.stat().st_size < MAX_PICTURE_BYTES for picture in pictures)


def test_messages_that_are_explained_are_those_of_the_program() -> None:
    """Of each quoted message two words in a row stand in the source; the rest may be filled in."""
    text = PAGES["docs/quickstart.md"]
    rows = text[text.index("## What the announcements mean") :].splitlines()
    source = "\n".join(file.read_text(encoding="utf-8") for file in sorted((ROOT / "simplewan").rglob("*.py")))
    source = re.sub(r"['\"]\s*\n\s*f?['\"]", "", source)
    messages = [
        code
        for row in rows
        if row.startswith("| `")
        for code in re.findall(r"`([^`]+)`", row.split("|")[1])
        if " " in code
    ]
    assert len(messages) > 25
    for message in messages:
        words = message.split()
        assert any(" ".join(pair) in source for pair in pairwise(words)), message


@pytest.mark.slow
def test_the_lora_of_the_readme_loads_in_diffusers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch
    from diffusers import WanTransformer3DModel

    from simplewan.mini.model import place_model
    from simplewan.models.adapters import adapter_parameters, adapter_scale, adapter_state, add_lora
    from simplewan.models.lora.write import save_lora
    from simplewan.options.groups.adapter import AdapterOptions

    place_model(tmp_path / "model")
    transformer = WanTransformer3DModel.from_pretrained(tmp_path / "model", subfolder="transformer")
    add_lora(transformer, AdapterOptions(), seed=1)
    with torch.no_grad():
        for parameter in adapter_parameters(transformer).values():
            parameter.fill_(0.01)
    (tmp_path / "output" / "my-lora").mkdir(parents=True)
    save_lora(
        tmp_path / "output" / "my-lora" / "pytorch_lora_weights.safetensors",
        adapter_state(transformer),
        scale=adapter_scale(transformer),
        metadata={},
        transformer=transformer,
    )
    (program,) = blocks("README.md", "python")
    for written, tiny in (
        ("Wan-AI/Wan2.1-T2V-1.3B-Diffusers", str(tmp_path / "model")),
        ("width=832, height=480, num_frames=81", "width=48, height=32, num_frames=5, num_inference_steps=2"),
    ):
        assert written in program
        program = program.replace(written, tiny)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(compile(program, "README.md", "exec"), names)
    assert any("lora" in name for name, _ in names["pipeline"].transformer.named_parameters())
    assert (tmp_path / "fox.mp4").stat().st_size > 0
