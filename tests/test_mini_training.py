"""How the miniature's own parts are made: the VAE's script goes on where it was stopped, the text encoder learns."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKLWan
from safetensors.torch import load_file

from simplewan.mini import train_text, train_vae
from simplewan.mini.clips import make_scenes
from simplewan.mini.draw import caption, is_held_out
from simplewan.mini.initial import carry_small_picture, look_at_one_frame
from simplewan.mini.model import make_vae

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


@pytest.mark.slow
@pytest.mark.parametrize("kernel_rate", [None, 1e-2])
def test_a_stopped_vae_goes_on_to_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kernel_rate: float | None
) -> None:
    stages = tuple(replace(stage, kernel_rate=kernel_rate) for stage in TINY)
    monkeypatch.setattr(train_vae, "STAGES", {"2.1": stages})
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


@pytest.mark.slow
def test_kernels_have_their_own_rate(tmp_path: Path) -> None:
    stages = [replace(stage, learning_rate=0.0, kernel_rate=1e-2) for stage in TINY]
    torch.manual_seed(1)
    vae = make_vae("2.2")
    look_at_one_frame(vae)
    begun = {name: tensor.clone() for name, tensor in vae.named_parameters()}
    train_vae._run(vae, [([vae], 1.0)], stages, 1, tmp_path / "vae")
    changed = {name for name, tensor in vae.named_parameters() if not torch.equal(begun[name], tensor)}
    assert changed == {name for name, tensor in begun.items() if tensor.ndim >= 4}
    assert {name.rpartition(".")[2] for name in changed} == {"weight", "gamma"}


def test_a_vae_begins_with_the_small_picture_of_each_frame() -> None:
    vae = make_vae()
    look_at_one_frame(vae)
    carry_small_picture(vae, scale=2.0)
    pixels, _ = train_vae.draw_batch((3, 0), 2, 9)
    with torch.no_grad():
        latents, last = (vae.encode(clip).latent_dist.mode() for clip in (pixels, pixels[:, :, -1:]))
        held = vae.decode(latents[:, :, -1:].expand(-1, -1, 3, -1, -1)).sample
    small = 2.0 * train_vae.small_picture(pixels, latents.shape[-1])
    assert (latents[:, : small.shape[1]] - small).square().mean() < 0.01 * small.var()
    torch.testing.assert_close(latents[:, :, -1:], last, rtol=0.0, atol=1e-4)
    torch.testing.assert_close(held, held[:, :, :1].expand_as(held), rtol=0.0, atol=1e-4)


@pytest.mark.slow
def test_refining_leaves_the_latents_as_they_are(tmp_path: Path) -> None:
    train_vae.train("2.1", tmp_path / "vae", seed=1)
    train_vae.refine("2.1", tmp_path / "vae", tmp_path / "refined", seed=1)
    before, after = weights(tmp_path / "vae"), weights(tmp_path / "refined")
    changed = {name.split(".")[0] for name, tensor in before.items() if not torch.equal(after[name], tensor)}
    assert changed == {"decoder", "post_quant_conv"}
    configs = [AutoencoderKLWan.load_config(tmp_path / name) for name in ("vae", "refined")]
    assert configs[0]["latents_std"] == configs[1]["latents_std"] != [1.0] * 16


@pytest.mark.slow
def test_the_text_encoder_learns(tmp_path: Path) -> None:
    *_, early = train_text.train(1, steps=2)
    *_, later = train_text.train(1, steps=60)
    assert later > early + 0.1


def test_no_data_set_shows_a_caption_that_is_held_out() -> None:
    captions = [caption(scene) for scene in make_scenes(42, 400)]
    assert not any(map(is_held_out, captions))
