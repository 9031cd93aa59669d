"""Our forward and diffusers' against the forward written from the papers, over files in Wan's own names.

The reference (reference.py) runs in float64, its sinusoids of timesteps in float32 as diffusers has them; tolerance
1e-5 on outputs of order 1. With sinusoids in float64 too, 1e-4.
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import reference
import torch
from reference import Shape, State
from safetensors.torch import save_file
from tiny import CLIP_DIM, Model, tiny_transformer

from simplewan.flavours import find_flavour
from simplewan.models.wan.forward import velocity
from simplewan.models.wan.loading import load_transformer

FLOAT32 = 1e-5
TEXT_TOKENS, IMAGE_TOKENS = 512, 257
PROMPTS = (19, 512)
SIZES = {"square": (1, 4, 4), "wide": (3, 4, 10), "high": (4, 8, 6)}  # latent frames, height, width


@dataclass(frozen=True)
class Kind:
    flavour: str
    shape: Shape
    per_frame: bool = False


KINDS = {
    "t2v": Kind("t2v-mini-high", Shape()),
    "i2v-2.2": Kind("i2v-mini-high", Shape(in_channels=36)),
    "i2v-2.1": Kind("i2v-14b-2.1", Shape(in_channels=36, image_dim=CLIP_DIM)),
    "ti2v": Kind("ti2v-mini", Shape(in_channels=48, out_channels=48), per_frame=True),
    "heads of 20": Kind("t2v-mini-high", Shape(dim=60, heads=3)),  # a head that three axes do not share evenly
}


@dataclass(frozen=True)
class Loaded:
    kind: Kind
    state: State
    transformer: torch.nn.Module


@pytest.fixture(scope="module", params=KINDS)
def loaded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    """Random weights in Wan's own names, in one file, as `load_transformer` makes a model of them."""
    kind = KINDS[request.param]
    shape = kind.shape
    state = reference.random_state(shape, seed=len(request.param))
    folder = tmp_path_factory.mktemp("original")
    file = folder / "wan_original_names.safetensors"
    save_file(state, file)
    sizes = {"in_channels": shape.in_channels, "out_channels": shape.out_channels, "image_dim": shape.image_dim}
    tiny_transformer(dim=shape.dim, heads=shape.heads, layers=shape.layers, ffn_dim=shape.ffn_dim, **sizes).save_config(
        folder
    )
    model = Model(str(folder), pretrained_transformer_model_name_or_path=str(file))
    return Loaded(kind, state, load_transformer(model, find_flavour(kind.flavour), "high", torch.float32))


def inputs(shape: Shape, size: tuple[int, int, int]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Latents, text padded with zeros, and CLIP tokens where there are any, of two samples."""
    generator = torch.Generator().manual_seed(2)
    latents = torch.randn(2, shape.in_channels, *size, generator=generator)
    text = torch.randn(2, TEXT_TOKENS, shape.text_dim, generator=generator)
    for row, length in zip(text, PROMPTS, strict=True):
        row[length:] = 0
    image = torch.randn(2, IMAGE_TOKENS, shape.image_dim, generator=generator) if shape.image_dim else None
    return latents, text, image


def timesteps(kind: Kind, frames: int) -> torch.Tensor:
    """A timestep a sample, or one a latent frame: the first is clean, and the samples differ."""
    times = torch.tensor([937.5, 31.25])
    if not kind.per_frame:
        return times
    rows = times[:, None].repeat(1, frames)
    rows[:, 0] = 0
    return rows


def from_the_papers(
    loaded: Loaded,
    latents: torch.Tensor,
    times: torch.Tensor,
    text: torch.Tensor,
    image: torch.Tensor | None,
    angles_dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """The reference in float64, sample by sample; `times` (2,), or (2, S), one a token."""
    rows = []
    for sample in range(2):
        tokens = None if image is None else image[sample].double()
        arguments = (latents[sample].double(), times[sample].double(), text[sample].double(), tokens)
        rows.append(
            reference.forward(loaded.state, *arguments, heads=loaded.kind.shape.heads, angles_dtype=angles_dtype)
        )
    return torch.stack(rows)


def assert_close(result: torch.Tensor, expected: torch.Tensor) -> None:
    assert result.shape == expected.shape
    assert 0.3 < expected.std() < 10  # of order 1, so that the tolerance means something
    torch.testing.assert_close(result.double(), expected, rtol=0, atol=FLOAT32)


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
@torch.no_grad()
def test_all_three_agree(loaded: Loaded, size: tuple[int, int, int]) -> None:
    latents, text, image = inputs(loaded.kind.shape, size)
    times = timesteps(loaded.kind, size[0])
    per_token = times.repeat_interleave(size[1] * size[2] // 4, dim=1) if loaded.kind.per_frame else times
    expected = from_the_papers(loaded, latents, per_token, text, image)
    theirs = loaded.transformer(latents, per_token, text, encoder_hidden_states_image=image).sample
    assert_close(theirs, expected)
    how = {"encoder_hidden_states_image": image}
    assert_close(velocity(loaded.transformer, latents, times, text, **how), expected)
    assert_close(velocity(loaded.transformer, latents, times, text, text_lengths=PROMPTS, **how), expected)
    exact = from_the_papers(loaded, latents, per_token, text, image, torch.float64)
    assert (exact - expected).abs().max() < 1e-4


@torch.no_grad()
def test_a_timestep_of_its_own_for_every_token(loaded: Loaded) -> None:
    latents, text, image = inputs(loaded.kind.shape, (2, 4, 6))
    times = torch.rand(2, 12, generator=torch.Generator().manual_seed(5)) * 1000
    expected = from_the_papers(loaded, latents, times, text, image)
    ours = velocity(
        loaded.transformer,
        latents,
        times,
        text,
        encoder_hidden_states_image=image,
        token_rows=torch.arange(12),
    )
    assert_close(ours, expected)


@pytest.mark.slow
@torch.no_grad()
def test_every_weight_of_the_file_counts(loaded: Loaded) -> None:
    """A weight that loading drops or puts elsewhere would show: each changes the result of the reference."""
    latents, text, image = inputs(loaded.kind.shape, (2, 4, 4))
    arguments = (latents, torch.tensor([937.5, 31.25]), text, image)
    before = from_the_papers(loaded, *arguments)
    for name in loaded.state:
        changed = Loaded(loaded.kind, loaded.state | {name: loaded.state[name] * 1.5}, loaded.transformer)
        assert (from_the_papers(changed, *arguments) - before).abs().max() > 10 * FLOAT32, name
