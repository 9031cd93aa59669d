"""The command that makes the miniature, with its long parts replaced by quick ones."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKLWan, WanImageToVideoPipeline, WanPipeline

from simplewan.cli.arguments import parse
from simplewan.flavours import EXPERT_SUBFOLDER, find_flavour
from simplewan.mini import make
from simplewan.mini.clips import SIZES
from simplewan.mini.model import make_text_encoder, make_tokenizer, make_vae, untrained_transformer, with_first_frame
from simplewan.options import load


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Makes the parts untrained; returns the list of what was run, by the name of its folder."""
    ran: list[str] = []
    experts = {
        "t2v-mini-high": untrained_transformer(5),
        "t2v-mini-low": untrained_transformer(6),
        "i2v-mini-high": untrained_transformer(7, "i2v"),
        "i2v-mini-low": untrained_transformer(8, "i2v"),
        "ti2v-mini": untrained_transformer(9, "ti2v"),
    }
    vaes = {kind: _vae(seed, kind[0]) for seed, kind in enumerate((("2.1", False), ("2.1", True), ("2.2", False)))}

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
            vaes["2.2" if "2.2" in arguments else "2.1", "--refine" in arguments].save_pretrained(folder)
        else:
            flavour = find_flavour(given["model_flavour"])
            assert Path(given["pretrained_model_name_or_path"], "model_index.json").exists()
            assert Path(environment["MINIATURE"]).exists()
            if flavour.stage == "high":  # goes on from what the low-noise expert has become
                low = experts[f"{flavour.task}-mini-low"]
                assert same(
                    type(low).from_pretrained(given["pretrained_model_name_or_path"], subfolder="transformer"), low
                )
            (expert,) = flavour.trained_experts
            experts[flavour.name].save_pretrained(folder / EXPERT_SUBFOLDER[expert])

    monkeypatch.setattr(make, "_run", run)
    monkeypatch.setattr(make, "DATASETS", {"long": (1, 1, SIZES), "short": (2, 1, SIZES)})
    return ran


def _vae(seed: int, kind: str) -> AutoencoderKLWan:
    torch.manual_seed(seed)
    return make_vae(kind)


def same(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(a.to(torch.bfloat16), b.to(torch.bfloat16)) for a, b in pairs)


@pytest.mark.slow
def test_what_is_missing_is_made_once_and_put_together(tmp_path: Path, quick: list[str]) -> None:
    folder = make.make(tmp_path / "new", jobs=2)
    first = ["cached", "decoder", "high", "i2v-high", "i2v-low", "low", "text", "ti2v-high", "vae", "vae-2.2"]
    assert sorted(quick) == first
    pipeline = WanPipeline.from_pretrained(folder, torch_dtype=torch.bfloat16)
    assert same(pipeline.transformer, untrained_transformer(5))
    assert same(pipeline.transformer_2, untrained_transformer(6))
    decoder = make_vae().from_pretrained(tmp_path / "new" / "decoder")
    assert same(pipeline.vae, decoder)
    assert not same(pipeline.vae, make_vae().from_pretrained(tmp_path / "new" / "vae"))
    assert pipeline.config.boundary_ratio == 0.6
    i2v = WanImageToVideoPipeline.from_pretrained(tmp_path / "new" / "i2v-model", torch_dtype=torch.bfloat16)
    assert same(i2v.transformer, untrained_transformer(7, "i2v"))
    assert same(i2v.transformer_2, untrained_transformer(8, "i2v")) and same(i2v.vae, decoder)
    assert i2v.config.boundary_ratio == 0.6
    ti2v = WanPipeline.from_pretrained(tmp_path / "new" / "ti2v-model", torch_dtype=torch.bfloat16)
    assert same(ti2v.transformer, untrained_transformer(9, "ti2v")) and ti2v.transformer_2 is None
    assert ti2v.config.expand_timesteps and ti2v.vae.config.z_dim == 48
    quick.clear()
    assert make.make(tmp_path / "new", jobs=2) == folder
    assert not quick


@torch.no_grad()
def test_image_to_video_begins_as_what_text_to_video_is() -> None:
    before = untrained_transformer(5)
    after = with_first_frame(before)
    latents = torch.randn(1, 36, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    text, timestep = torch.zeros(1, 512, 64), torch.tensor([500.0])
    was = before(latents[:, :16], timestep, text, return_dict=False)[0]
    torch.testing.assert_close(after(latents, timestep, text, return_dict=False)[0], was, atol=1e-5, rtol=1e-5)


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


@pytest.mark.slow
def test_what_another_recipe_began_is_left_alone(
    tmp_path: Path, quick: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    make.make(tmp_path / "old", jobs=1)
    quick.clear()
    monkeypatch.setattr(make, "TI2V", ("max_train_steps=1",))
    with pytest.raises(ValueError, match="another recipe"):
        make.make(tmp_path / "old", jobs=1)
    assert not quick


def test_the_recipe_trains_all_of_them(tmp_path: Path) -> None:
    environ = {"MINIATURE": str(tmp_path)}
    for name in make.DATASETS:
        (tmp_path / "clips" / name).mkdir(parents=True)
    assert json.loads(make.RECIPE.read_text(encoding="utf-8"))["model_type"] == "full"
    used = set()
    pairs = (("t2v", make.T2V), ("i2v", make.I2V))
    own = {f"{task}-mini-{expert}": overrides for task, pair in pairs for expert, overrides in pair.items()}
    for flavour, words in {**own, "ti2v-mini": make.TI2V}.items():
        base = f"pretrained_model_name_or_path={tmp_path}"
        overrides = parse([f"model_flavour={flavour}", base, *words], environ={}).overrides
        loaded = load(make.RECIPE, overrides, environ=environ, base=tmp_path)
        assert not loaded.later
        used |= {entry.id for entry in loaded.datasets}
    assert used == {*make.DATASETS, "captions"}
