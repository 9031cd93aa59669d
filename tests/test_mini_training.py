"""How the miniature's own parts are made: the VAE's script goes on where it was stopped, the text encoder learns."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKLWan
from safetensors.torch import load_file

from simplewan.cli.arguments import parse
from simplewan.mini import make, train_text, train_vae
from simplewan.mini.clips import make_scenes
from simplewan.mini.draw import caption, is_held_out
from simplewan.options import load

TINY = (train_vae.Stage(2, 1, 1, 1e-3), train_vae.Stage(2, 1, 5, 1e-3, window=32))


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(train_vae, "STAGES", {"2.1": TINY})
    monkeypatch.setattr(train_vae, "REFINING", {"2.1": TINY[1:]})
    monkeypatch.setattr(train_vae, "HELD_OUT_CLIPS", 1)
    monkeypatch.setattr(train_vae, "SNAPSHOT_SECONDS", 0.0)
    yield


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "diffusion_pytorch_model.safetensors")


def test_a_stopped_vae_goes_on_to_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train_vae.train("2.1", tmp_path / "whole", seed=1)
    draw_batch, drawn = train_vae.draw_batch, []

    def stop(key: tuple[int, ...], *how: object) -> object:
        if len(drawn) == 3:
            raise KeyboardInterrupt
        drawn.append(key)
        return draw_batch(key, *how)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(train_vae, "draw_batch", stop)
        with pytest.raises(KeyboardInterrupt):
            train_vae.train("2.1", tmp_path / "parted", seed=1)
    assert (tmp_path / "parted.training.pt").exists()
    train_vae.train("2.1", tmp_path / "parted", seed=1)
    assert not (tmp_path / "parted.training.pt").exists()
    whole, parted = weights(tmp_path / "whole"), weights(tmp_path / "parted")
    assert all(torch.equal(parted[name], tensor) for name, tensor in whole.items())


def test_refining_leaves_the_latents_as_they_are(tmp_path: Path) -> None:
    train_vae.train("2.1", tmp_path / "vae", seed=1)
    train_vae.refine("2.1", tmp_path / "vae", tmp_path / "refined", seed=1)
    before, after = weights(tmp_path / "vae"), weights(tmp_path / "refined")
    changed = {name.split(".")[0] for name, tensor in before.items() if not torch.equal(after[name], tensor)}
    assert changed == {"decoder", "post_quant_conv"}
    configs = [AutoencoderKLWan.load_config(tmp_path / name) for name in ("vae", "refined")]
    assert configs[0]["latents_std"] == configs[1]["latents_std"] != [1.0] * 16


def test_the_text_encoder_learns(tmp_path: Path) -> None:
    *_, early = train_text.train(1, steps=2)
    *_, later = train_text.train(1, steps=60)
    assert later > early + 0.1


def test_no_data_set_shows_a_caption_that_is_held_out() -> None:
    captions = [caption(scene) for scene in make_scenes(42, 400)]
    assert not any(map(is_held_out, captions))


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
