"""Latents and text embeddings against diffusers' own pipelines, bit for bit."""

from __future__ import annotations

import pytest
import torch
from diffusers import WanVideoToVideoPipeline
from diffusers.pipelines.wan.pipeline_wan import prompt_clean
from tiny import tiny_pipeline, tiny_text, tiny_vae

from simplewan.models.wan.text import clean_prompt, encode_prompts, pad_embeds
from simplewan.models.wan.vae import decode, encode, latent_statistics

PROMPTS = [
    "a red ball  moves\n left",
    "",
    " <b> doesn&amp;#39;t &amp;lt; move ",
    "sch\u00c3\u00b6n caf\u00c3\u00a9",
    "\u201cquoted\u201d \ufb01ne\u2026",
    "word " * 600,
]


def pixels(batch: int = 1, frames: int = 5) -> torch.Tensor:
    return torch.rand(batch, 3, frames, 16, 24, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_prompts_are_cleaned_as_diffusers_does() -> None:
    assert [clean_prompt(prompt) for prompt in PROMPTS] == [prompt_clean(prompt) for prompt in PROMPTS]
    assert clean_prompt(PROMPTS[2]) == "<b> doesn't < move"
    assert clean_prompt(PROMPTS[3]) == "sch\u00f6n caf\u00e9"


def test_padded_embeddings_equal_the_pipelines() -> None:
    pipeline = tiny_pipeline()
    embeds = encode_prompts(pipeline.tokenizer, pipeline.text_encoder, PROMPTS)
    with torch.no_grad():
        expected = pipeline._get_t5_prompt_embeds(PROMPTS, max_sequence_length=512)
    assert torch.equal(pad_embeds(embeds), expected)
    assert [len(each) for each in embeds] == [pipeline.tokenizer(clean_prompt(p), truncation=True, max_length=512,
        return_length=True).length[0] for p in PROMPTS]  # fmt: skip
    assert len(embeds[1]) == 1
    assert len(embeds[-1]) == 512


def test_embeddings_that_do_not_fit_are_refused() -> None:
    tokenizer, encoder = tiny_text()
    with pytest.raises(ValueError, match="5 tokens does not fit into 4"):
        pad_embeds([*encode_prompts(tokenizer, encoder, ["a red ball"]), torch.zeros(5, 32)], max_tokens=4)


def test_latents_equal_the_pipelines() -> None:
    pipeline = tiny_pipeline()
    video_to_video = WanVideoToVideoPipeline(
        tokenizer=pipeline.tokenizer,
        text_encoder=pipeline.text_encoder,
        transformer=pipeline.transformer,
        vae=pipeline.vae,
        scheduler=pipeline.scheduler,
    )
    video = pixels(2)
    pipeline.scheduler.set_timesteps(4)
    start = pipeline.scheduler.timesteps[:1]
    noise = torch.randn(2, 16, 2, 2, 3, generator=torch.Generator().manual_seed(1))
    noisy = video_to_video.prepare_latents(
        video, 2, 16, 16, 24, torch.float32, "cpu", torch.Generator().manual_seed(1), None, start
    )
    ours = [encode(pipeline.vae, each[None]) for each in video]  # diffusers encodes one by one
    assert torch.allclose(pipeline.scheduler.add_noise(torch.cat(ours), noise, start), noisy, atol=1e-6)


def test_decoding_equals_the_pipelines() -> None:
    pipeline = tiny_pipeline()
    embeds = torch.zeros(1, 512, 32)
    results = {
        kind: pipeline(
            prompt_embeds=embeds, height=16, width=32, num_frames=5, num_inference_steps=2, guidance_scale=1.0,
            generator=torch.Generator().manual_seed(3), output_type=kind,
        ).frames
        for kind in ("latent", "pt")
    }  # fmt: skip
    std, mean = latent_statistics(pipeline.vae)[1], latent_statistics(pipeline.vae)[0]
    assert mean.shape == std.shape == (1, 16, 1, 1, 1)
    decoded = decode(pipeline.vae, results["latent"])
    assert decoded.shape == (1, 3, 5, 16, 32)
    assert torch.allclose((decoded / 2 + 0.5).transpose(1, 2), results["pt"], atol=1e-6)


def test_statistics_are_undone() -> None:
    vae = tiny_vae()
    mean, std = latent_statistics(vae)
    raw = vae.encode(pixels()).latent_dist.mode()
    assert torch.allclose(encode(vae, pixels()) * std + mean, raw, atol=1e-5)
    assert torch.equal(decode(vae, (raw - mean) / std * 0), vae.decode(mean.expand(raw.shape)).sample)


@pytest.mark.parametrize(("frames", "height"), [(4, 16), (5, 12)])
def test_sizes_that_do_not_fit_are_refused(frames: int, height: int) -> None:
    with pytest.raises(ValueError, match="4n\\+1 frames"):
        encode(tiny_vae(), torch.zeros(1, 3, frames, height, 16))
