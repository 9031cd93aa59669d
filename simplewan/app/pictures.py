"""The pictures that rendered clips begin with: first frames of datasets, and picture files.

Nothing is encoded here. A picture is a sample of one frame, so that what decodes, cuts, encodes and caches samples does
it for pictures too. CLIP is shown all of a picture, as by diffusers. To the clip's size diffusers stretches it; here it
is cut from the middle, its aspect kept, as clips are for training.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from torch import Tensor

from simplewan.app.first_frames import fitted
from simplewan.app.gathering import Gathered
from simplewan.data.backends import LocalBackend, Source
from simplewan.data.buckets import Clip as Cut
from simplewan.data.buckets import Size
from simplewan.data.loading import load_clip
from simplewan.data.media import MediaError, probe
from simplewan.data.samples import Sample
from simplewan.errors import Problem, UserError, some
from simplewan.flavours import Flavour
from simplewan.validation.prompts import Prompt
from simplewan.validation.runner import Clip, FirstFrame, RenderSettings

LEAST_SEEN = 0.75  # of a picture; when less is left after the cut, that is said


@dataclass(frozen=True)
class Picture:
    """All of a picture as a sample of one frame. `trained` is that frame as its dataset is trained on."""

    name: str
    whole: Sample
    trained: Sample | None = None

    def cut(self, size: Size) -> Sample:
        """Fitted to (width, height): as it is trained on where the sizes are equal, else cut from the middle."""
        own = self.trained
        if own is not None and (own.clip.width, own.clip.height) == size:
            return own
        clip = self.whole.clip
        return fitted(self.whole, (clip.width, clip.height), size)

    def seen(self, size: Size) -> float:
        """The part of the picture that such a cut keeps, 0..1."""
        clip = self.whole.clip
        ratio = clip.width / clip.height * size[1] / size[0]
        return min(ratio, 1 / ratio)


@dataclass(frozen=True)
class ToRender:
    """What is to be encoded for rendering: texts, and the pictures of the prompts, by name, at every size."""

    texts: Sequence[str] = ()
    pictures: Mapping[str, Picture] = field(default_factory=dict)
    sizes: Sequence[Size] = ()
    num_frames: int = 1

    @property
    def cuts(self) -> dict[str, Sample]:
        """Every picture at every size, by the name in the caches."""
        return {
            cut_name(picture.name, size): picture.cut(size) for picture in self.pictures.values() for size in self.sizes
        }

    @property
    def wholes(self) -> dict[str, Sample]:
        """What CLIP is shown, by the name in the caches."""
        return {whole_name(picture.name): picture.whole for picture in self.pictures.values()}

    @property
    def shown(self) -> dict[str, Sample]:
        """All of these."""
        return self.cuts | self.wholes


@dataclass(frozen=True)
class Rendering:
    """What is rendered, and the pictures of its prompts, by name."""

    settings: RenderSettings
    pictures: Mapping[str, Picture] = field(default_factory=dict)

    @property
    def needs(self) -> ToRender:
        """What is to be encoded for it."""
        settings = self.settings
        texts = [*(prompt.text for prompt in settings.prompts), settings.negative_prompt]
        return ToRender(texts, self.pictures, settings.sizes, settings.num_frames)


def cut_name(picture: str, size: Size) -> str:
    """What a picture at a size is called in the caches."""
    return f"validation picture {picture} at {size[0]}x{size[1]}"


def whole_name(picture: str) -> str:
    """What a whole picture is called in the caches."""
    return f"validation picture {picture}"


def picture_of_file(name: str, *, where: str, key: str) -> Picture:
    """The picture in a file, or the first frame of a clip. Raises UserError when it does not decode."""
    path = Path(name)
    source = Source(LocalBackend(path.absolute().parent), path.name)
    try:
        info = probe(source)
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
    except (MediaError, OSError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        fix = "name a picture, or a video, whose first frame is taken"
        raise UserError(Problem(where, str(reason), key, name, fix)) from error
    size = info.width, info.height
    clip = Cut(
        *size,
        num_frames=1,
        fps=0.0,
        sample_fps=0.0,
        source_fps=0.0,
        start_seconds=0.0,
        resize_width=size[0],
        resize_height=size[1],
        crop_left=0,
        crop_top=0,
    )
    return Picture(name, Sample(name, "", source, content, captions=(), clip=clip))


def picture_of_sample(gathered: Gathered, sample: Sample) -> Picture:
    """What a sample begins with: its own first frame, or the picture that is linked to it. Raises MediaError."""
    first = gathered.first_frame(sample, sample)
    info = probe(first.source)
    size = info.width, info.height
    return Picture(sample.id, fitted(first, size, size), trained=first)


def with_pictures(prompts: Sequence[Prompt], pictures: Sequence[str]) -> list[Prompt]:
    """The prompts, those without a picture beginning with these in turn: number i (from 0) with number i mod n."""
    return [
        replace(prompt, image=prompt.image or pictures[number % len(pictures)]) for number, prompt in enumerate(prompts)
    ]


def cut_notices(pictures: Sequence[Picture], sizes: Sequence[Size]) -> list[str]:
    """What is said of pictures of which much is cut off: one sentence a size and shape."""
    told: dict[tuple[Size, Size], list[Picture]] = {}
    for size in sizes:
        for picture in pictures:
            clip = picture.whole.clip
            if picture.seen(size) < LEAST_SEEN:
                told.setdefault((size, (clip.width, clip.height)), []).append(picture)
    return [
        f"{some([picture.name for picture in same])}: {own[0]}x{own[1]} is cut to the shape of {size[0]}x{size[1]}, "
        f"which leaves {same[0].seen(size):.0%} of it; validation_resolution sets another"
        for (size, own), same in told.items()
    ]


def first_frames(
    flavour: Flavour, needs: ToRender, encoded: Callable[[str], Tensor]
) -> Callable[[Clip], FirstFrame | None]:
    """What each clip begins with, made from `encoded`, which knows what was made of pictures by name."""
    pixels: dict[str, np.ndarray] = {}
    for name, cut in needs.cuts.items():
        with suppress(MediaError):  # it could not be encoded either: `encoded` refuses it
            pixels[name] = load_clip(cut)[0].permute(1, 2, 0).numpy()

    def first_frame(clip: Clip) -> FirstFrame | None:
        image = clip.prompt.image
        if image is None:
            return None
        name = cut_name(image, clip.size)
        made = encoded(name).unsqueeze(0)
        seen = encoded(whole_name(image)).unsqueeze(0) if flavour.clip_conditioning else None
        if flavour.holds_first_frame:
            return FirstFrame(pixels[name], latent_BC1HW=made)
        return FirstFrame(pixels[name], condition_BCFHW=made, image_embeds_BND=seen)

    return first_frame
