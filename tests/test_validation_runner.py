"""Rendering a step's clips on tiny models: the files, the events, failures that cost nothing else, determinism."""

from contextlib import contextmanager
from dataclasses import replace

import av
import pytest
import torch
from PIL import Image
from tiny import tiny_transformer, tiny_vae

from simplewan.errors import Interrupted
from simplewan.events import ErrorHappened, Progress, Stage, ValidationRendered
from simplewan.flavours import find_flavour
from simplewan.validation.prompts import Prompt
from simplewan.validation.runner import Renderer, RenderSettings, Validator, to_frames

TEXTS = {"A cat.": 1.0, "A dog.": -1.0, "": 0.0}


@pytest.fixture(scope="module")
def models():
    return tiny_transformer(text_dim=8, layers=1, seed=0), tiny_vae(base_dim=4, seed=0)


@pytest.fixture
def settings(tmp_path):
    return RenderSettings(
        folder=tmp_path / "validation",
        flavour=find_flavour("t2v-mini-low"),
        prompts=(Prompt("cat", "A cat."), Prompt("dog", "A dog.")),
        sizes=((48, 32),),
        num_frames=9,
        num_steps=3,
        guidance=4.0,
        shift=3.0,
        seed=42,
        negative_prompt="",
        scheduler="unipc",
    )


class Events(list):
    def of(self, kind):
        return [event for event in self if isinstance(event, kind)]


def make(settings, models, events, *, embeds=None, check=lambda: None, opened=None, note=None):
    transformer, vae = models

    @contextmanager
    def open_predict():
        if opened is not None:
            opened.append("open")
        yield lambda latents, timesteps, given, expert: transformer(
            latents, timesteps, given.text_BLD, return_dict=False
        )[0]
        if opened is not None:
            opened.append("closed")

    renderer = Renderer(
        settings,
        open_predict=open_predict,
        embeds=embeds or (lambda text: torch.full((1, 4, 8), TEXTS[text])),
        decode=lambda latents: torch.no_grad()(vae.decode)(latents, return_dict=False)[0],
        emit=events.append,
        check=check,
    )
    return Validator(settings, renderer, emit=events.append, note=note)


def decoded(path):
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)], float(stream.average_rate)


def test_every_prompt_becomes_a_clip_and_a_sheet(settings, models):
    events, opened = Events(), []
    validator = make(settings, models, events, opened=opened, note="EMA")
    assert validator.missing(100) == {"cat", "dog"}
    state = torch.get_rng_state()
    validator.run(100)
    assert torch.equal(torch.get_rng_state(), state)
    assert validator.missing(100) == set() and len(validator.missing(101)) == 2 and opened == ["open", "closed"]
    folder = settings.folder / "step-100"
    assert sorted(path.name for path in folder.iterdir()) == ["cat.mp4", "cat.png", "dog.mp4", "dog.png"]
    frames, fps = decoded(folder / "cat.mp4")
    assert len(frames) == 9 and frames[0].shape == (32, 48, 3) and fps == 16
    with Image.open(folder / "cat.png") as sheet:
        assert sheet.width >= 128
    rendered = events.of(ValidationRendered)
    assert [(event.step, event.name, event.prompt, event.note) for event in rendered] == [
        (100, "cat", "A cat.", "EMA"),
        (100, "dog", "A dog.", "EMA"),
    ]
    assert rendered[1].video == str(folder / "dog.mp4") and rendered[1].seconds > 0
    assert [(event.current, event.total) for event in events.of(Progress)] == [(n, 6) for n in range(1, 7)]
    assert [event.status for event in events.of(Stage)] == ["running", "completed"]
    (folder / "dog.png").unlink()
    assert validator.missing(100) == {"dog"}


def test_only_what_is_missing_or_was_not_announced_is_rendered_again(settings, models):
    events = Events()
    validator = make(settings, models, events)
    validator.run(5)
    before = (settings.folder / "step-5" / "dog.png").read_bytes()
    assert validator.missing(5, announced=["cat", "dog"]) == set()
    assert validator.missing(5, announced=["cat"]) == {"dog"}
    (settings.folder / "step-5" / "dog.mp4").unlink()
    events.clear()
    validator.run(5, only=validator.missing(5))
    assert [event.name for event in events.of(ValidationRendered)] == ["dog"]
    assert [(event.current, event.total) for event in events.of(Progress)] == [(1, 3), (2, 3), (3, 3)]
    assert validator.missing(5) == set()
    assert (settings.folder / "step-5" / "dog.png").read_bytes() == before


def test_clips_depend_on_seed_and_prompt_and_on_no_other_clip(settings, models):
    def sheet_of(name, changed, step):
        make(changed, models, Events()).run(step)
        return (changed.folder / f"step-{step}" / f"{name}.mp4").read_bytes()

    both = sheet_of("dog", settings, 1)
    torch.rand(5)
    assert sheet_of("dog", settings, 2) == both
    assert sheet_of("dog", replace(settings, prompts=settings.prompts[1:]), 3) == both
    assert sheet_of("dog", replace(settings, seed=43), 4) != both
    assert sheet_of("cat", settings, 5) != both


def test_a_clip_that_fails_is_reported_and_the_others_are_rendered(settings, models):
    events = Events()
    prompts = (Prompt("bird", "not encoded"), *settings.prompts)
    validator = make(replace(settings, prompts=prompts), models, events)
    validator.run(7)
    [error] = events.of(ErrorHappened)
    assert "KeyError" in error.message and "'bird'" in error.where and "step 7" in error.where and not error.fatal
    assert [event.name for event in events.of(ValidationRendered)] == ["cat", "dog"]
    assert events.of(Stage)[-1].status == "failed" and "1 of 3" in events.of(Stage)[-1].message
    assert validator.missing(7)


def test_a_network_that_cannot_be_opened_is_reported(settings, models):
    events = Events()

    @contextmanager
    def broken():
        raise FileNotFoundError("transformer_2 is not there")
        yield

    renderer = Renderer(
        settings, open_predict=broken, embeds=lambda text: None, decode=lambda latents: latents, emit=events.append
    )
    Validator(settings, renderer, emit=events.append).run(3)
    [error] = events.of(ErrorHappened)
    assert "transformer_2 is not there" in error.message and events.of(Stage)[-1].status == "failed"


def test_a_failure_at_the_end_is_no_failure_of_the_clips(settings, models):
    events = Events()

    @contextmanager
    def leaking():
        yield lambda latents, timesteps, text, expert: latents
        raise RuntimeError("the VAE stays")

    renderer = Renderer(
        settings,
        open_predict=leaking,
        embeds=lambda text: torch.zeros(1, 4, 8),
        decode=lambda latents: torch.zeros(1, 3, 9, 32, 48),
        emit=events.append,
    )
    Validator(settings, renderer, emit=events.append).run(3)
    assert [event.name for event in events.of(ValidationRendered)] == ["cat", "dog"]
    [error] = events.of(ErrorHappened)
    assert "the VAE stays" in error.message and events.of(Stage)[-1].status == "completed"


def test_too_little_memory_is_told_with_what_helps(settings, models):
    def full(text):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    events = Events()
    make(settings, models, events, embeds=full).run(3)
    assert all("smaller clips (validation_resolution" in event.message for event in events.of(ErrorHappened))


def test_values_that_are_not_finite_are_no_clip(settings, models):
    events = Events()
    make(settings, models, events, embeds=lambda text: torch.full((1, 4, 8), float("nan"))).run(3)
    assert ["not finite" in event.message for event in events.of(ErrorHappened)] == [True, True]
    assert not list(settings.folder.glob("*/*.mp4"))


def test_an_interrupt_passes_through(settings, models):
    def check():
        raise Interrupted("SIGTERM", 143)

    events = Events()
    with pytest.raises(Interrupted):
        make(settings, models, events, check=check).run(1)
    assert not events.of(ErrorHappened)


def test_several_sizes_are_several_files(settings, models):
    events = Events()
    several = replace(settings, sizes=((48, 32), (32, 32)), prompts=settings.prompts[:1], guidance=1.0)
    make(several, models, events, embeds=lambda text: {"A cat.": torch.ones(1, 4, 8)}[text]).run(1)
    assert [event.name for event in events.of(ValidationRendered)] == ["cat_48x32", "cat_32x32"]


def test_frames_are_clamped_and_rounded():
    pixels = torch.tensor([-2.0, -1.0, 0.0, 1.0, 3.0]).view(1, 1, 5, 1, 1).expand(1, 3, 5, 2, 4)
    frames = to_frames(pixels)
    assert frames.shape == (5, 2, 4, 3) and frames[:, 0, 0, 0].tolist() == [0, 0, 128, 255, 255]
