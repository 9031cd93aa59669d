"""Renders clips and announces them: those of a validation's step, and those that `sample` is asked for.

Imports this room, `data.media`, events and flavours; the network, the VAE and the embeddings come in as functions, so
that this file knows neither adapters nor offload. All clips of a validation use the same seed: the clips of two steps
differ by the weights alone, and a prompt added later changes no other clip.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from simplewan.data.media import write_mp4
from simplewan.errors import Interrupted, TrainingFailure
from simplewan.events import Emit, ErrorHappened, Progress, Stage, ValidationRendered
from simplewan.flavours import Flavour
from simplewan.validation.clips import contact_sheet, save_png
from simplewan.validation.prompts import Prompt, latent_shape
from simplewan.validation.sampling import (
    Conditioning,
    Guidance,
    Predict,
    initial_noise,
    make_scheduler,
    needs_negative,
    sample,
)

STAGE = "validation"
OUT_OF_MEMORY = "the GPU has too little memory: smaller clips (validation_resolution, validation_num_video_frames) help"


@dataclass(frozen=True)
class RenderSettings:
    """What is rendered, and where: `folder` is output_dir/validation. `sizes` are (width, height) in pixels.

    `boundary` is the sigma at which the experts change; None where one network makes all steps.
    """

    folder: Path
    flavour: Flavour
    prompts: tuple[Prompt, ...]
    sizes: tuple[tuple[int, int], ...]
    num_frames: int
    num_steps: int
    guidance: Guidance
    shift: float
    seed: int
    negative_prompt: str
    scheduler: str
    boundary: float | None = None

    @property
    def clips(self) -> str:
        """What the clips are like, for people."""
        sizes = ", ".join(f"{width}x{height}" for width, height in self.sizes)
        return f"{sizes}, {self.num_frames} frames, {self.num_steps} steps"


@dataclass(frozen=True)
class Clip:
    """One clip to render and its two files. `seed` draws its first noise; `caption` stands below the contact sheet."""

    prompt: Prompt
    size: tuple[int, int]
    seed: int
    video: Path
    sheet: Path
    caption: str


@dataclass(frozen=True)
class FirstFrame:
    """The picture that a clip begins with, as it is fitted to the clip (uint8) and as a model takes it: the condition
    (I2V), with it what CLIP sees (Wan 2.1 I2V); or the latent frame that is held (TI2V). See `sampling`."""

    pixels_HWC: np.ndarray
    condition_BCFHW: Tensor | None = None
    image_embeds_BND: Tensor | None = None
    latent_BC1HW: Tensor | None = None


class Renderer:
    """Renders clips one after the other.

    `open_predict()` makes the network ready (eval mode, adapters on) for the time of a `with` block; the
    TrainingFailure of one that cannot put the trained network back passes through. `embeds(text)` is the text
    embedding (1, L, D) of a prompt, encoded beforehand; `decode` turns latents (1, C, F, H, W) into pixels
    (1, 3, F, H, W) in -1..1; `first_frame(clip)` is what the clip begins with, if that is given, made beforehand too.
    `check` raises Interrupted when the run is to stop. `key` names the work in events, and
    `otherwise` says in the announcement of a failure what happens then.
    """

    def __init__(
        self,
        settings: RenderSettings,
        *,
        open_predict: Callable[[], AbstractContextManager[Predict]],
        embeds: Callable[[str], Tensor],
        decode: Callable[[Tensor], Tensor],
        emit: Emit,
        first_frame: Callable[[Clip], FirstFrame | None] = lambda _clip: None,
        check: Callable[[], None] = lambda: None,
        device: torch.device | str = "cpu",
        key: str = STAGE,
        otherwise: str = "training goes on",
    ) -> None:
        self._settings = settings
        self._open_predict = open_predict
        self._embeds = embeds
        self._decode = decode
        self._first_frame = first_frame
        self._emit = emit
        self._check = check
        self._device = torch.device(device)
        self._key, self._otherwise = key, otherwise

    def run(self, clips: Sequence[Clip], *, label: str, where: str, rendered: Callable[[Clip, float], None]) -> int:
        """Renders `clips` and returns how many failed: each is announced, and the others go on.

        `rendered(clip, seconds)` is called when the files of a clip are written.
        """
        self._emit(Stage(self._key, label))
        failed, due = 0, len(clips)
        try:
            with self._open_predict() as predict:
                for index, clip in enumerate(clips):
                    began = time.monotonic()
                    if self._attempt(predict, clip, (index, len(clips)), where):
                        rendered(clip, time.monotonic() - began)
                    else:
                        failed += 1
                    due -= 1
        except (Interrupted, TrainingFailure):
            raise
        except Exception as error:  # noqa: BLE001  validation must never cost a run its training
            failed += due  # none, when only the closing failed
            self._report(error, where=where)
        status = "failed" if failed else "completed"
        self._emit(Stage(self._key, label, status, f"{failed} of {len(clips)} clips failed" if failed else None))
        return failed

    def _attempt(self, predict: Predict, clip: Clip, place: tuple[int, int], where: str) -> bool:
        """Renders one clip, number `place[0]` (from 0) of `place[1]`; False when that failed."""
        try:
            first = self._first_frame(clip)
            frames = to_frames(self._decode(self._sample(predict, clip, first, place)))
            write_mp4(clip.video, frames, self._settings.flavour.fps)
            given = None if first is None else first.pixels_HWC
            save_png(contact_sheet(frames, caption=clip.caption, given_HWC=given), clip.sheet)
        except (Interrupted, TrainingFailure):
            raise
        except Exception as error:  # noqa: BLE001  one clip that fails must not cost the others, nor the run
            self._report(error, where=f"{where}, prompt {clip.prompt.name!r}")
            return False
        return True

    def _sample(self, predict: Predict, clip: Clip, first: FirstFrame | None, place: tuple[int, int]) -> Tensor:
        settings = self._settings
        done, total = (count * settings.num_steps for count in place)

        def advance(index: int, _timestep: float, _latents: Tensor, _x0: Tensor) -> None:
            self._emit(Progress(self._key, clip.video.stem, done + index + 1, total, "steps"))

        condition = self._placed(first.condition_BCFHW) if first is not None else None
        image_embeds = self._placed(first.image_embeds_BND) if first is not None else None

        def given(text: str) -> Conditioning:
            return Conditioning(self._embeds(text).to(self._device), condition, image_embeds)

        shape = latent_shape(clip.size, settings.num_frames, flavour=settings.flavour)
        return sample(
            predict,
            make_scheduler(settings.scheduler, settings.shift),
            initial_noise(shape, seed=clip.seed).to(self._device),
            given(clip.prompt.text),
            given(settings.negative_prompt) if needs_negative(settings.guidance) else None,
            num_steps=settings.num_steps,
            guidance=settings.guidance,
            boundary=settings.boundary,
            first_frame_BC1HW=self._placed(first.latent_BC1HW) if first is not None else None,
            callback=advance,
            check=self._check,
        )

    def _placed(self, tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor.to(self._device)

    def _report(self, error: Exception, *, where: str) -> None:
        origin = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{Path(origin.filename).name}:{origin.lineno}"
        what = f"{type(error).__name__}: {error} ({place})"
        if isinstance(error, torch.OutOfMemoryError):
            what = f"{OUT_OF_MEMORY} ({place})"
            torch.cuda.empty_cache()
        self._emit(ErrorHappened(f"{what}; {self._otherwise}", where))


class Validator:
    """Renders every prompt at every size into validation/step-N/. `note` is what is said of all clips."""

    def __init__(self, settings: RenderSettings, renderer: Renderer, *, emit: Emit, note: str | None = None) -> None:
        self._settings, self._renderer, self._emit, self._note = settings, renderer, emit, note

    def missing(self, step: int, *, announced: Collection[str] | None = None) -> frozenset[str]:
        """The clips of `step` that lack a file; each file was written whole or not at all.

        `announced`, when given, holds the names of those that were rendered and announced by this very run: files of
        others, left by a run that was abandoned or killed before it announced them, do not count.
        """
        return frozenset(
            clip.video.stem
            for clip in self._clips(step)
            if not (clip.video.is_file() and clip.sheet.is_file())
            or (announced is not None and clip.video.stem not in announced)
        )

    def run(self, step: int, *, only: Collection[str] | None = None) -> None:
        """Renders the clips of `step`, or those that `only` names. What fails is announced, and the others go on."""

        def rendered(clip: Clip, seconds: float) -> None:
            self._emit(
                ValidationRendered(
                    step=step,
                    name=clip.video.stem,
                    prompt=clip.prompt.text,
                    video=str(clip.video),
                    sheet=str(clip.sheet),
                    seconds=seconds,
                    note=self._note,
                )
            )

        clips = [clip for clip in self._clips(step) if only is None or clip.video.stem in only]
        label = f"Validation of step {step}"
        self._renderer.run(clips, label=label, where=f"validation of step {step}", rendered=rendered)

    def _clips(self, step: int) -> Iterator[Clip]:
        settings = self._settings
        folder = settings.folder / f"step-{step}"
        for prompt in settings.prompts:
            caption = noted(f"step {step}, {prompt.name}: {prompt.text}", self._note)
            for size in settings.sizes:
                name = sized_name(prompt.name, size, settings.sizes)
                yield Clip(prompt, size, settings.seed, folder / f"{name}.mp4", folder / f"{name}.png", caption)


def noted(caption: str, note: str | None) -> str:
    """A caption with its note behind it."""
    return f"{caption} ({note})" if note else caption


def sized_name(name: str, size: tuple[int, int], sizes: Collection[tuple[int, int]]) -> str:
    """The name of a prompt's clip: with its size where there are several."""
    return name if len(sizes) == 1 else f"{name}_{size[0]}x{size[1]}"


def to_frames(pixels_BCFHW: Tensor) -> np.ndarray:
    """Pixels (1, 3, F, H, W) in -1..1, clamped -> uint8 (F, H, W, 3). Raises ValueError for values not finite."""
    pixels = pixels_BCFHW[0].detach().float()
    if not bool(pixels.isfinite().all()):
        raise ValueError("the rendered clip holds values that are not finite")
    scaled = (pixels.clamp(-1, 1) + 1) * 127.5
    return scaled.round().to(torch.uint8).permute(1, 2, 3, 0).cpu().numpy()
