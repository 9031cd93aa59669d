"""The tiny Wan is made of the real classes, loads as users load it, and has learned what its statistics say."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKLWan, WanPipeline, WanTransformer3DModel
from transformers import AutoTokenizer, UMT5EncoderModel

from simplewan.flavours import find_flavour
from simplewan.mini import train_vae
from simplewan.mini.clips import make_scenes
from simplewan.mini.draw import caption, caption_words, draw_frames
from simplewan.mini.model import WEIGHTS, WEIGHTS_TI2V, place_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("mini") / "model"
    place_model(path)
    return path


@pytest.fixture(scope="module")
def pipeline(folder: Path) -> WanPipeline:
    return WanPipeline.from_pretrained(folder, torch_dtype=torch.float32)


def test_the_folder_is_small(folder: Path) -> None:
    assert sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) < 16e6


def test_it_loads_and_matches_its_flavour(pipeline: WanPipeline) -> None:
    flavour = find_flavour("t2v-mini-low")
    assert isinstance(pipeline.transformer, WanTransformer3DModel)
    assert isinstance(pipeline.transformer_2, WanTransformer3DModel)
    assert not torch.equal(pipeline.transformer.proj_out.weight, pipeline.transformer_2.proj_out.weight)
    assert pipeline.config.boundary_ratio == flavour.boundary
    assert isinstance(pipeline.vae, AutoencoderKLWan)
    assert isinstance(pipeline.text_encoder, UMT5EncoderModel)
    assert pipeline.transformer.config.in_channels == flavour.in_channels
    assert pipeline.vae.config.z_dim == flavour.vae.latent_channels
    assert pipeline.vae_scale_factor_temporal == flavour.vae.temporal_stride
    assert pipeline.vae_scale_factor_spatial == flavour.vae.spatial_stride
    assert pipeline.scheduler.config.flow_shift == flavour.validation_shift


@pytest.mark.slow
@torch.no_grad()
def test_latents_of_drawn_clips_are_normalised(pipeline: WanPipeline) -> None:
    vae = pipeline.vae
    latents = []
    for scene in make_scenes(7, 96):  # not the clips that the statistics were fitted on; their first frames will do
        pixels = torch.from_numpy(draw_frames(scene)[:1]).float().div(127.5).sub(1).permute(3, 0, 1, 2)[None]
        latents.append(vae.encode(pixels).latent_dist.mode().transpose(0, 1).flatten(1))
    values = torch.cat(latents, dim=1)
    mean = torch.tensor(vae.config.latents_mean)[:, None]
    std = torch.tensor(vae.config.latents_std)[:, None]
    normalised = (values - mean) / std
    assert normalised.mean(dim=1).abs().max() < 0.6
    assert normalised.std(dim=1).sub(1).abs().max() < 0.4


def test_the_tokenizer_knows_the_words_and_spells_the_rest(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    assert tokenizer.tokenize("a small red circle") == ["▁a", "▁small", "▁red", "▁circle"]
    ids = tokenizer("Zebra-crossing 12%!").input_ids
    assert tokenizer.unk_token_id not in ids
    assert tokenizer.decode(ids, skip_special_tokens=True) == "Zebra-crossing 12%!"
    assert ids[-1] == tokenizer.eos_token_id
    assert tokenizer.pad_token_id == 0
    assert all(len(tokenizer(word).input_ids) == 2 for word in caption_words())


@torch.no_grad()
def test_captions_change_the_embedding_and_the_velocity(pipeline: WanPipeline) -> None:
    captions = sorted({caption(scene) for scene in make_scenes(42, 24)})
    embeds, _ = pipeline.encode_prompt(captions, do_classifier_free_guidance=False, max_sequence_length=512)
    flat = embeds.flatten(1)
    distance = torch.cdist(flat, flat) / flat.norm(dim=1).mean()
    assert distance[~torch.eye(len(captions), dtype=torch.bool)].min() > 0.1
    latents = torch.randn(1, 16, 5, 8, 12, generator=torch.Generator().manual_seed(0)).expand(2, -1, -1, -1, -1)
    velocity = pipeline.transformer(latents, torch.tensor([500.0, 500.0]), embeds[:2], return_dict=False)[0]
    assert (velocity[0] - velocity[1]).std() > 0.03 * velocity.std()


@pytest.mark.slow
def test_diffusers_renders_a_clip(pipeline: WanPipeline) -> None:
    pipeline.set_progress_bar_config(disable=True)
    clip = pipeline(
        "a big red circle moves right fast over a grey ground",
        width=96,
        height=64,
        num_frames=17,
        num_inference_steps=2,
        generator=torch.Generator().manual_seed(0),
        output_type="np",
    ).frames[0]
    assert clip.shape == (17, 64, 96, 3)
    assert clip.std() > 0.05


@pytest.mark.slow
@pytest.mark.parametrize("place", [WEIGHTS / "vae", WEIGHTS_TI2V / "vae"])
def test_the_vaes_of_the_package_have_learned(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train_vae, "HELD_OUT_CLIPS", 8)
    assert train_vae.psnr(AutoencoderKLWan.from_pretrained(place, local_files_only=True)) > 28.0


def test_the_ti2v_vae_is_laid_out_as_that_of_wan() -> None:
    config = AutoencoderKLWan.load_config(WEIGHTS_TI2V / "vae")
    assert (config["z_dim"], config["scale_factor_spatial"], config["scale_factor_temporal"]) == (48, 16, 4)
    assert config["is_residual"]
    assert config["patch_size"] == 2
