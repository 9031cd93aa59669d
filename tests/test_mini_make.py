"""The command that makes the miniature, with its long parts replaced by quick ones."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKLWan, WanPipeline

from simplewan.cli.arguments import parse
from simplewan.flavours import EXPERT_SUBFOLDER
from simplewan.mini import make
from simplewan.mini.model import make_text_encoder, make_tokenizer, make_vae, untrained_transformer
from simplewan.options import load


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Makes the parts untrained; returns the list of what was run, by the name of its folder."""
    ran: list[str] = []
    experts = {"high": untrained_transformer(5), "low": untrained_transformer(6)}
    vaes = {refined: _vae(seed) for seed, refined in enumerate((False, True))}

    def run(module: str, *arguments: str, **environment: str) -> None:
        given = dict(word.split("=", 1) for word in arguments if "=" in word)
        folder = Path(given.get("output_dir", arguments[0]))
        ran.append(folder.name)
        folder.mkdir()
        if module.endswith("train_text"):
            tokenizer = make_tokenizer()
            make_text_encoder(len(tokenizer)).save_pretrained(folder / "text_encoder")
            tokenizer.save_pretrained(folder / "tokenizer")
        elif module.endswith("train_vae"):
            vaes["--refine" in arguments].save_pretrained(folder)
        else:
            expert = given["model_flavour"].rpartition("-")[2]
            assert Path(environment["MINIATURE"], "untrained", "model_index.json").exists()
            experts[expert].save_pretrained(folder / EXPERT_SUBFOLDER[expert])

    monkeypatch.setattr(make, "_run", run)
    monkeypatch.setattr(make, "DATASETS", {"long": (1, 1), "short": (2, 1)})
    return ran


def _vae(seed: int) -> AutoencoderKLWan:
    torch.manual_seed(seed)
    return make_vae()


def same(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(a.to(torch.bfloat16), b.to(torch.bfloat16)) for a, b in pairs)


def test_what_is_missing_is_made_once_and_put_together(tmp_path: Path, quick: list[str]) -> None:
    folder = make.make(tmp_path / "new", jobs=2)
    assert sorted(quick) == ["cached", "decoder", "high", "low", "text", "vae", "vae-2.2"]
    pipeline = WanPipeline.from_pretrained(folder, torch_dtype=torch.bfloat16)
    assert same(pipeline.transformer, untrained_transformer(5))
    assert same(pipeline.transformer_2, untrained_transformer(6))
    decoder = make_vae().from_pretrained(tmp_path / "new" / "decoder")
    assert same(pipeline.vae, decoder)
    assert not same(pipeline.vae, make_vae().from_pretrained(tmp_path / "new" / "vae"))
    assert pipeline.config.boundary_ratio == 0.875
    quick.clear()
    assert make.make(tmp_path / "new", jobs=2) == folder
    assert not quick


def test_after_a_failure_nothing_more_is_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[int] = []

    def part(number: int) -> Callable[[], None]:
        def run() -> None:
            begun.append(number)
            raise KeyboardInterrupt

        return run

    with pytest.raises(KeyboardInterrupt):
        make._all(1, *(part(number) for number in range(20)))
    assert len(begun) < 20


def test_two_at_once_in_one_folder_are_refused(tmp_path: Path, quick: list[str]) -> None:
    with (tmp_path / ".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(BlockingIOError):
            make.make(tmp_path, jobs=1)
    assert not quick


def test_the_recipe_trains_both_experts(tmp_path: Path) -> None:
    environ = {"MINIATURE": str(tmp_path)}
    for name in ("untrained", *(f"clips/{name}" for name in make.DATASETS)):
        (tmp_path / name).mkdir(parents=True)
    for expert in ("high", "low"):
        recipe = json.loads(make.RECIPE.read_text(encoding="utf-8"))
        assert recipe["model_type"] == "full"
        overrides = parse([f"model_flavour=t2v-mini-{expert}"], environ={}).overrides
        loaded = load(make.RECIPE, overrides, environ=environ, base=tmp_path)
        assert not loaded.later
        assert [entry.id for entry in loaded.datasets] == [*make.DATASETS, "captions"]
