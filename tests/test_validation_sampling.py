"""Our sampling loop against diffusers' WanPipeline on tiny models, and against closed forms."""

import pytest
import torch
from diffusers import UniPCMultistepScheduler, WanPipeline
from tiny import TEXT_DIM, tiny_transformer, tiny_vae

from simplewan.models.wan.forward import velocity
from simplewan.validation.sampling import experts_used, initial_noise, make_scheduler, sample

SHAPE = (1, 16, 2, 4, 6)  # 5 frames of 32 x 48 pixels


@pytest.fixture(scope="module")
def experts():
    return {"high": tiny_transformer(seed=1), "low": tiny_transformer(seed=2)}


@pytest.fixture(scope="module")
def texts():
    generator = torch.Generator().manual_seed(3)
    return torch.randn(2, 1, 7, TEXT_DIM, generator=generator).unbind(0)


def predictor(experts, used=None):
    def predict(latents, timesteps, embeds, expert):
        if used is not None:
            used.append(expert)
        model = experts[expert]
        return model(latents.to(model.dtype), timesteps, embeds.to(model.dtype), return_dict=False)[0]

    return predict


def by_diffusers(experts, texts, noise, *, shift, guidance, boundary):
    low, high = guidance
    pipeline = WanPipeline(
        tokenizer=None,
        text_encoder=None,
        vae=tiny_vae(),
        scheduler=UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, num_train_timesteps=1000, flow_shift=shift
        ),
        transformer=experts["high"],
        transformer_2=experts["low"] if boundary else None,
        boundary_ratio=boundary,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline(
        prompt_embeds=texts[0],
        negative_prompt_embeds=texts[1],
        latents=noise,
        height=32,
        width=48,
        num_frames=5,
        num_inference_steps=6,
        guidance_scale=high,
        guidance_scale_2=low if boundary else None,
        output_type="latent",
    ).frames


@pytest.mark.parametrize(
    ("shift", "guidance", "boundary"),
    [(3.0, (5.0, 5.0), None), (1.0, (1.0, 1.0), None), (12.0, (3.0, 4.0), 0.875), (5.0, (3.5, 3.5), 0.9)],
)
def test_equals_the_pipeline_of_diffusers_bit_for_bit(experts, texts, shift, guidance, boundary):
    noise = initial_noise(SHAPE, seed=4)
    used = []
    ours = sample(
        predictor(experts, used),
        make_scheduler("unipc", shift),
        noise,
        *texts,
        num_steps=6,
        guidance=guidance,
        boundary=boundary,
    )
    theirs = by_diffusers(experts, texts, noise, shift=shift, guidance=guidance, boundary=boundary)
    assert torch.equal(ours, theirs)
    assert ours.dtype == torch.float32 and ours.isfinite().all()
    if boundary:
        passes = sorted(set(used), key=used.index)
        assert passes == ["high", "low"] and used == sorted(used)


def test_equals_the_pipeline_with_a_bfloat16_network(texts):
    experts = {"high": tiny_transformer(seed=5).to(torch.bfloat16)}
    noise = initial_noise(SHAPE, seed=4)
    scheduler = make_scheduler("unipc", 3.0)
    ours = sample(predictor(experts), scheduler, noise, *texts, num_steps=6, guidance=5.0)
    theirs = by_diffusers(experts | {"low": None}, texts, noise, shift=3.0, guidance=(5.0, 5.0), boundary=None)
    assert torch.equal(ours, theirs) and ours.dtype == torch.float32


def test_our_forward_gives_the_same_clip_within_rounding(experts, texts):
    """Six guided steps with `models`' forward; differences of float32 rounding stay below 1e-4 of latents around 1."""
    noise = initial_noise(SHAPE, seed=4)

    def predict(latents, timesteps, embeds, expert):
        return velocity(experts[expert], latents, timesteps.float(), embeds)

    ours = sample(
        predict, make_scheduler("unipc", 12.0), noise, *texts, num_steps=6, guidance=(3.0, 4.0), boundary=0.875
    )
    theirs = by_diffusers(experts, texts, noise, shift=12.0, guidance=(3.0, 4.0), boundary=0.875)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)


def test_guidance_of_one_skips_the_unconditional_pass(experts, texts):
    used = []
    sample(
        predictor(experts, used),
        make_scheduler("unipc", 3.0),
        initial_noise(SHAPE, seed=1),
        *texts,
        num_steps=4,
        guidance=(1.0, 2.0),
        boundary=0.6,
    )
    plan = experts_used(make_scheduler("unipc", 3.0), num_steps=4, boundary=0.6)
    assert plan == ("high", "high", "high", "low")
    assert used == ["high"] * 6 + ["low"]
    with pytest.raises(ValueError, match="negative prompt"):
        sample(
            predictor(experts),
            make_scheduler("unipc", 3.0),
            initial_noise(SHAPE, seed=1),
            texts[0],
            None,
            num_steps=2,
            guidance=2.0,
        )


@pytest.mark.parametrize("name", ["unipc", "euler", "euler-beta"])
@pytest.mark.parametrize("shift", [1.0, 5.0])
def test_every_scheduler_walks_straight_to_the_clean_latents(name, shift):
    """Where the velocity points straight at fixed latents, every solver ends there, and each estimate is exact."""
    clean = torch.full(SHAPE, 0.5)
    estimates = []

    def predict(latents, timesteps, embeds, expert):
        return noise - clean

    noise = initial_noise(SHAPE, seed=2)
    scheduler = make_scheduler(name, shift)
    latents = sample(
        predict,
        scheduler,
        noise,
        torch.zeros(1, 1, 1),
        None,
        num_steps=5,
        guidance=1.0,
        callback=lambda index, timestep, latents, x0: estimates.append((index, timestep, x0)),
    )
    torch.testing.assert_close(latents, clean.expand_as(latents), rtol=0, atol=2e-5)
    assert [index for index, _, _ in estimates] == list(range(5))
    timesteps = [timestep for _, timestep, _ in estimates]
    assert timesteps == sorted(timesteps, reverse=True) and timesteps[0] >= 999
    for _, _, x0 in estimates:
        torch.testing.assert_close(x0, clean.expand_as(x0), rtol=0, atol=2e-5)


def test_euler_levels_are_shifted_once():
    scheduler = make_scheduler("euler", 3.0)
    scheduler.set_timesteps(4)
    levels = torch.tensor([1.0, 0.75, 0.5, 0.25])
    torch.testing.assert_close(scheduler.sigmas[:-1], 3 * levels / (1 + 2 * levels))
    with pytest.raises(ValueError):
        make_scheduler("ddim", 3.0)


def test_callback_may_replace_the_latents(experts, texts):
    def zero_at_the_end(index, timestep, latents, x0):
        return torch.zeros_like(latents) if index == 2 else None

    scheduler = make_scheduler("euler", 3.0)
    arguments = (predictor(experts), scheduler, initial_noise(SHAPE, seed=1), *texts)
    assert sample(*arguments, num_steps=3, guidance=1.0, callback=zero_at_the_end).abs().max() == 0


def test_nothing_is_drawn_and_no_graph_is_built(experts, texts):
    state = torch.get_rng_state()
    latents = sample(
        predictor(experts),
        make_scheduler("unipc", 3.0),
        initial_noise(SHAPE, seed=1),
        *texts,
        num_steps=2,
        guidance=2.0,
    )
    assert torch.equal(torch.get_rng_state(), state) and not latents.requires_grad
