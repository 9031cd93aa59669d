"""What I2V and TI2V are given of a first frame, against diffusers' WanImageToVideoPipeline on tiny models.

Tolerances: CLIP embeddings bit for bit for the same batch; conditions 1e-6 on values of order 1 (measured 1.2e-7:
diffusers multiplies by 1 / std where we divide); between batches, or frames, that go through the VAE together, and what
the transformer makes of it all (`test_models_forward`), 1e-5.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import WanImageToVideoPipeline
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny import (
    CLIP_DIM,
    Model,
    save_tiny_image_model,
    tiny_clip,
    tiny_image_pipeline,
    tiny_vae,
    tiny_vae_ti2v,
)
from transformers import CLIPVisionModel

from simplewan.data.loading import to_pixels
from simplewan.errors import UserError
from simplewan.flavours import FLAVOURS, find_flavour
from simplewan.models.keys import to_original
from simplewan.models.wan.conditioning import (
    MASK_CHANNELS,
    condition_mask,
    extra_channels,
    first_frame_condition,
    first_frame_latent,
    frame_timesteps,
    hold_first_frame,
)
from simplewan.models.wan.forward import velocity
from simplewan.models.wan.image import encode_image
from simplewan.models.wan.loading import (
    check_files,
    image_encoder_fingerprint,
    load_image_encoder,
    load_transformer,
    needs_image_embeds,
)
from simplewan.models.wan.vae import encode

CLOSE, SHAPED = 1e-6, 1e-5
HEIGHT, WIDTH, FRAMES = 32, 64, 9
I2V_21, I2V_22, TI2V = (find_flavour(name) for name in ("i2v-14b-2.1", "i2v-a14b-2.2-high", "ti2v-5b-2.2"))


def picture(width: int = WIDTH, height: int = HEIGHT, seed: int = 0) -> Image.Image:
    """Coloured noise over a gradient, so that a shift, a flip or a swap of channels shows."""
    values = np.random.default_rng(seed).integers(0, 120, (height, width, 3))
    values[..., 0] += np.linspace(0, 120, width, dtype=int)
    return Image.fromarray(values.astype(np.uint8))


def frames_of(*pictures: Image.Image) -> torch.Tensor:
    return torch.stack([torch.from_numpy(np.asarray(each).copy()).permute(2, 0, 1) for each in pictures])


def pixels_of(*pictures: Image.Image) -> torch.Tensor:
    return to_pixels(frames_of(*pictures)).transpose(0, 1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_image_model(tmp_path_factory.mktemp("i2v"), "2.1")


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    return shutil.copytree(folder, tmp_path / "copy")


def edit_config(path: Path, **values: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


# CLIP


@pytest.mark.parametrize("size", [(64, 32), (300, 500), (224, 224), (3, 400)])
@torch.no_grad()
def test_embeddings_equal_the_pipelines(size: tuple[int, int]) -> None:
    pipeline = tiny_image_pipeline("2.1")
    processor, encoder = pipeline.image_processor, pipeline.image_encoder
    first, second = picture(*size), picture(*size, seed=1)
    ours = encode_image(processor, encoder, frames_of(first, second))
    assert ours.shape == (2, 257, CLIP_DIM)
    assert torch.equal(ours, pipeline.encode_image([first, second], "cpu"))
    alone = encode_image(processor, encoder, frames_of(first))
    assert torch.equal(alone, pipeline.encode_image(first, "cpu"))
    assert (ours[0] - ours[1]).abs().max() > 0.01


@torch.no_grad()
def test_the_layer_before_the_last_is_taken_unnormalised() -> None:
    processor, encoder = tiny_clip(layers=3)
    frames = frames_of(picture())
    expected = encode_image(processor, encoder, frames)
    encoder.encoder.layers[2].mlp.fc2.weight.mul_(7)
    encoder.post_layernorm.weight.mul_(7)
    assert torch.equal(encode_image(processor, encoder, frames), expected)
    encoder.encoder.layers[1].mlp.fc2.weight.mul_(7)
    assert not torch.equal(encode_image(processor, encoder, frames), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_floats_are_the_frames_they_came_from(dtype: torch.dtype) -> None:
    processor, encoder = tiny_clip(layers=2)
    values = torch.arange(256, dtype=torch.uint8).repeat(3).reshape(1, 3, 16, 16)
    pixels = to_pixels(values).transpose(0, 1).to(dtype)
    assert torch.equal(encode_image(processor, encoder, pixels), encode_image(processor, encoder, values))


def test_the_encoders_dtype_is_that_of_the_embeddings(folder: Path) -> None:
    expected = encode_image(*load_image_encoder(Model(str(folder)), I2V_21, torch.float32), frames_of(picture()))
    processor, encoder = load_image_encoder(Model(str(folder)), I2V_21, torch.bfloat16)
    embeds = encode_image(processor, encoder, frames_of(picture()))
    assert embeds.dtype == torch.bfloat16
    assert (embeds - expected).abs().max() < 0.05  # three roundings of values of order 4


@pytest.mark.parametrize(("shape", "dtype"), [((1, 4, 8, 8), torch.uint8), ((3, 8, 8), torch.uint8)])
def test_what_is_no_batch_of_frames_is_refused(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    with pytest.raises(ValueError, match=r"need \(B, 3, H, W\)"):
        encode_image(*tiny_clip(), torch.zeros(shape, dtype=dtype))
    with pytest.raises(ValueError, match="need uint8"):
        encode_image(*tiny_clip(), torch.zeros(1, 3, 8, 8, dtype=torch.int64))


# conditions


def prepared(pipeline: WanImageToVideoPipeline, image: Image.Image, num_frames: int = FRAMES) -> Any:
    """What diffusers prepares of a picture: (latents, condition, ...)."""
    first = pipeline.video_processor.preprocess(image, height=HEIGHT, width=WIDTH)
    size = (HEIGHT, WIDTH, num_frames)
    return pipeline.prepare_latents(first, 1, pipeline.vae.config.z_dim, *size, torch.float32, torch.device("cpu"))


@pytest.mark.parametrize("num_frames", [1, 5, 9])
@torch.no_grad()
def test_conditions_equal_the_pipelines(num_frames: int) -> None:
    pipeline = tiny_image_pipeline("2.2")
    expected = prepared(pipeline, picture(), num_frames=num_frames)[1]
    condition = first_frame_condition(pipeline.vae, pixels_of(picture()), num_frames)
    assert condition.shape == (1, 16, (num_frames + 3) // 4, 4, 8)
    assert condition.dtype == torch.float32
    channels = extra_channels(condition)
    assert torch.equal(channels[:, :MASK_CHANNELS], expected[:, :MASK_CHANNELS])
    assert (channels - expected).abs().max() < CLOSE
    assert torch.equal(extra_channels(condition), torch.cat([condition_mask(condition), condition], 1))


def test_a_batch_is_conditioned_sample_by_sample() -> None:
    vae, pictures = tiny_vae(), (picture(), picture(seed=1))
    together = first_frame_condition(vae, pixels_of(*pictures), 5)
    for row, each in zip(together, pictures, strict=True):
        assert (row - first_frame_condition(vae, pixels_of(each), 5)[0]).abs().max() < SHAPED
    assert condition_mask(together).shape == (2, 4, 2, 4, 8)


def test_masks_follow_the_latents() -> None:
    latents = torch.zeros(2, 16, 3, 2, 5, dtype=torch.bfloat16)
    mask = condition_mask(latents)
    assert mask.shape == (2, 4, 3, 2, 5)
    assert mask.dtype == torch.bfloat16
    assert mask.sum() == mask[:, :, 0].sum() == 2 * 4 * 2 * 5


def test_sizes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="4n\\+1 frames"):
        first_frame_condition(tiny_vae(), torch.zeros(1, 3, 16, 16), 8)


# TI2V


@torch.no_grad()
def test_a_held_frame_equals_the_pipelines() -> None:
    pipeline = tiny_image_pipeline("ti2v")
    noisy, condition, mask = prepared(pipeline, picture())
    image = first_frame_latent(pipeline.vae, pixels_of(picture()))
    assert image.shape == (1, 48, 1, 2, 4)
    assert (image - condition).abs().max() < CLOSE
    assert torch.equal(hold_first_frame(noisy, condition), (1 - mask) * condition + mask * noisy)
    assert torch.equal(frame_timesteps(torch.tensor([937.5, 12.0]), 3), torch.tensor([[0, 937.5, 937.5], [0, 12, 12]]))


@pytest.mark.parametrize("vae", [tiny_vae(), tiny_vae_ti2v()], ids=["2.1", "2.2"])
def test_a_clip_has_its_own_image_latent_in_it(vae: Any) -> None:
    """To rounding: the last, pointwise convolution goes over all latent frames at once."""
    clip = torch.rand(1, 3, FRAMES, 32, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    latents = encode(vae, clip)
    assert (first_frame_latent(vae, clip[:, :, 0]) - latents[:, :, :1]).abs().max() < SHAPED
    clip[:, :, 1:] = 0
    assert torch.equal(encode(vae, clip)[:, :, 0], latents[:, :, 0])
    assert not torch.equal(encode(vae, clip), latents)


# the whole way


@pytest.mark.parametrize("kind", ["2.1", "2.2", "ti2v"])
@torch.no_grad()
def test_the_transformer_is_given_what_the_pipeline_gives_it(kind: Any) -> None:
    """One step of the pipeline, overheard; our own parts and forward must come to the same."""
    pipeline, image = tiny_image_pipeline(kind), picture()
    pipeline.set_progress_bar_config(disable=True)
    heard: list[tuple[dict[str, Any], torch.Tensor]] = []
    handle = pipeline.transformer.register_forward_hook(
        lambda _module, _args, kwargs, output: heard.append((kwargs, output[0])), with_kwargs=True
    )
    channels = pipeline.vae.config.z_dim
    shape = (1, channels, (FRAMES + 3) // 4, *(side // pipeline.vae_scale_factor_spatial for side in (HEIGHT, WIDTH)))
    noisy = torch.randn(shape, generator=torch.Generator().manual_seed(2))
    text = torch.randn(1, 512, 32, generator=torch.Generator().manual_seed(3))
    pipeline(
        image, prompt_embeds=text, height=HEIGHT, width=WIDTH, num_frames=FRAMES, num_inference_steps=1,
        guidance_scale=1.0, latents=noisy, output_type="latent",
    )  # fmt: skip
    handle.remove()
    given, expected = heard[0]
    frame = pixels_of(image)
    timestep = given["timestep"].max().reshape(1)
    if kind == "ti2v":
        hidden, timestep = (
            hold_first_frame(noisy, first_frame_latent(pipeline.vae, frame)),
            frame_timesteps(timestep, 3),
        )
    else:
        hidden = torch.cat([noisy, extra_channels(first_frame_condition(pipeline.vae, frame, FRAMES))], dim=1)
    embeds = None
    if kind == "2.1":
        embeds = encode_image(pipeline.image_processor, pipeline.image_encoder, frames_of(image))
        assert torch.equal(embeds, given["encoder_hidden_states_image"])
    assert (hidden - given["hidden_states"]).abs().max() < CLOSE
    ours = velocity(pipeline.transformer, hidden, timestep, text, encoder_hidden_states_image=embeds)
    assert (ours - expected).abs().max() < SHAPED


# loading


@pytest.mark.parametrize("kind", ["2.1", "2.2", "ti2v"])
def test_a_folder_of_diffusers_passes_and_loads(kind: Any, tmp_path: Path) -> None:
    flavour = {"2.1": I2V_21, "2.2": I2V_22, "ti2v": TI2V}[kind]
    model = Model(str(save_tiny_image_model(tmp_path, kind)))
    check_files(model, flavour, with_other_stage=True)
    assert load_transformer(model, flavour, "high", torch.float32).config.in_channels == flavour.in_channels
    pipeline = WanImageToVideoPipeline.from_pretrained(tmp_path)
    assert pipeline.config.expand_timesteps == (kind == "ti2v")
    if needs_image_embeds(flavour):
        processor, encoder = load_image_encoder(model, flavour, torch.float32)
        expected = pipeline.encode_image(picture(), "cpu")
        assert torch.equal(encode_image(processor, encoder, frames_of(picture())), expected)
        assert not encoder.training
        assert not any(parameter.requires_grad for parameter in encoder.parameters())
    else:
        assert not (tmp_path / "image_encoder").exists()
        with pytest.raises(AssertionError, match="has no image encoder"):
            load_image_encoder(model, flavour, torch.float32)


@pytest.mark.parametrize("prefix", ["", "vision_model."])
def test_weights_load_in_both_namings_of_transformers(copy: Path, prefix: str) -> None:
    """transformers 4, which wrote the published files, put `vision_model.` before every name."""
    expected = CLIPVisionModel.from_pretrained(copy / "image_encoder").state_dict()
    file = copy / "image_encoder/model.safetensors"
    weights = {prefix + key.removeprefix("vision_model."): value for key, value in load_file(file).items()}
    save_file(weights, file, metadata={"format": "pt"})
    loaded = load_image_encoder(Model(str(copy)), I2V_21, torch.float32)[1].state_dict()
    assert loaded.keys() == expected.keys()
    assert all(torch.equal(loaded[key], value) for key, value in expected.items())


def test_weights_that_lack_or_do_not_fit_are_refused(copy: Path) -> None:
    file = copy / "image_encoder/model.safetensors"
    weights = load_file(file)
    name = next(key for key in weights if key.endswith("layers.1.mlp.fc1.bias"))
    for other in ({}, {name: torch.zeros(3)}):
        save_file({key: value for key, value in weights.items() if key != name} | other, file, {"format": "pt"})
        with pytest.raises(UserError, match=r"image_encoder that lacks 1 of its weights, .*fc1\.bias"):
            load_image_encoder(Model(str(copy)), I2V_21, torch.float32)


@pytest.mark.parametrize(
    ("part", "message"),
    [("image_encoder/model.safetensors", "image_encoder that cannot be read"),
     ("image_processor/preprocessor_config.json", "preprocessor_config.json that is no JSON")],
)  # fmt: skip
def test_a_damaged_part_is_named(copy: Path, part: str, message: str) -> None:
    (copy / part).write_bytes((copy / part).read_bytes()[:100])
    with pytest.raises(UserError, match=message):
        load_image_encoder(Model(str(copy)), I2V_21, torch.float32)


def problems_of(model: Model, flavour: Any) -> str:
    with pytest.raises(UserError) as raised:
        check_files(model, flavour)
    return str(raised.value)


def test_missing_parts_are_found_beforehand(copy: Path) -> None:
    shutil.rmtree(copy / "image_encoder")
    shutil.rmtree(copy / "image_processor")
    text = problems_of(Model(str(copy)), I2V_21)
    assert "has no image_encoder/config.json" in text
    assert "has no image_processor/preprocessor_config.json" in text


def test_the_image_models_are_told_apart(folder: Path, tmp_path: Path) -> None:
    """Both I2V models take 36 channels and are of one size; only the place for CLIP's embeddings tells."""
    other = save_tiny_image_model(tmp_path / "2.2", "2.2")
    assert f"image_dim {CLIP_DIM}, expected none" in problems_of(Model(str(folder)), find_flavour("i2v-a14b-2.2-high"))
    assert "image_dim none, expected 1280" in problems_of(Model(str(other)), I2V_21)
    file = tmp_path / "wan2.1_i2v.safetensors"
    weights = load_file(next((folder / "transformer").glob("*.safetensors")))
    save_file({to_original(key): value for key, value in weights.items()}, file)
    model = Model(str(folder), pretrained_transformer_model_name_or_path=str(file))
    check_files(model, I2V_21)
    assert f"image_dim {CLIP_DIM}, expected none" in problems_of(model, I2V_22)


def test_an_encoder_of_another_width_is_found_beforehand(copy: Path) -> None:
    tiny_clip(dim=48)[1].save_pretrained(copy / "image_encoder")
    assert f"image_encoder 48 wide, and a transformer that takes {CLIP_DIM}" in problems_of(Model(str(copy)), I2V_21)


def test_the_fingerprint_is_of_encoder_and_processor(folder: Path, copy: Path) -> None:
    whole, model = image_encoder_fingerprint(Model(str(folder)), I2V_21), Model(str(copy))
    assert image_encoder_fingerprint(model, I2V_21) == whole
    edit_config(copy / "image_processor/preprocessor_config.json", do_center_crop=False)
    changed = image_encoder_fingerprint(model, I2V_21)
    assert changed != whole
    file = copy / "image_encoder/model.safetensors"
    save_file({key: value + 1 for key, value in load_file(file).items()}, file, {"format": "pt"})
    assert image_encoder_fingerprint(model, I2V_21) not in (whole, changed)


# flavours


@pytest.mark.parametrize(
    ("names", "facts"),
    [  # task, channels in, behind the noise, CLIP, VAE's channels, fps, steps, guidance, shift, boundary
        (("i2v-14b-2.1",), ("i2v", 36, 20, True, 16, 16, 40, (5.0,), 3.0, None)),
        (("i2v-14b-2.1-720p",), ("i2v", 36, 20, True, 16, 16, 40, (5.0,), 5.0, None)),
        (("i2v-a14b-2.2-high", "i2v-a14b-2.2-low"), ("i2v", 36, 20, False, 16, 16, 40, (3.5, 3.5), 5.0, 0.9)),
        (("ti2v-5b-2.2",), ("ti2v", 48, 0, False, 48, 24, 50, (5.0,), 5.0, None)),
    ],
)  # fmt: skip
def test_the_image_flavours_are_those_of_the_published_models(
    names: tuple[str, ...], facts: tuple[object, ...]
) -> None:
    for row in map(find_flavour, names):
        found = (
            row.task, row.in_channels, row.extra_channels, needs_image_embeds(row), row.vae.latent_channels, row.fps,
            row.steps, row.guidance, row.validation_shift, row.boundary,
        )  # fmt: skip
        assert found == facts


def test_extra_channels_are_mask_and_condition() -> None:
    for row in FLAVOURS.values():
        expected = MASK_CHANNELS + row.vae.latent_channels if row.task == "i2v" else 0
        assert row.extra_channels == expected, row.name
        assert not needs_image_embeds(replace(row, clip_conditioning=False))
    assert row.vae.temporal_stride == MASK_CHANNELS
