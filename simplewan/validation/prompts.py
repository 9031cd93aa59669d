"""What is rendered: the prompts with their file names, the sizes and the number of frames.

Imports errors, events and flavours. Names become file names, so they are made safe and unique here, once, and the
renderer can use them as they are. Sizes the model cannot make are rounded down, and that is said.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from simplewan.errors import Problem, UserError
from simplewan.events import Emit, Notice
from simplewan.flavours import Flavour

MAX_NAME_LENGTH = 80

# Motion, people, animals, scenery and camera moves; nothing that asks for writing, which small models cannot spell.
BUILT_IN_LIBRARY: dict[str, str] = {
    "red_ball": "A red rubber ball bounces down a flight of stone steps in bright sunlight, one step after the other.",
    "pouring_tea": "Close-up of tea being poured from a clay pot into a white cup, steam rising, soft light.",
    "runner": "A woman in a yellow jacket runs along a beach at dawn, the camera follows beside her at the same speed.",
    "old_man_laughs": "Portrait of an old man with a grey beard who looks into the camera and slowly begins to laugh.",
    "two_dancers": "Two dancers in dark clothes turn around each other on an empty stage, lit by a single spotlight.",
    "cat_jump": "A grey cat crouches on a wooden table, wiggles, and jumps onto a window sill; seen from the side.",
    "horses": "A herd of horses gallops through shallow water, spray flying, filmed from the air in slow motion.",
    "hummingbird": "A hummingbird hovers in front of a pink flower, its wings a blur, the background soft and green.",
    "mountain_lake": "Mist drifts over a still mountain lake at sunrise, pine trees on the shore, a fixed camera.",
    "storm_waves": "High waves break against a lighthouse during a storm, dark clouds moving fast, heavy rain.",
    "forest_dolly": "The camera glides forward along a narrow path through an autumn forest, leaves falling.",
    "city_orbit": "The camera circles around a glass tower at night, car lights streaming through the streets below.",
    "paper_boat": "A paper boat floats along a rain gutter and tilts over a small fall, stop-motion animation style.",
}


@dataclass(frozen=True)
class Prompt:
    """One clip to render: its name, safe as a file name and unique in the list, its text, and what names the picture
    that it begins with, if any."""

    name: str
    text: str
    image: str | None = None


@dataclass(frozen=True)
class Asked:
    """A prompt of the command line: its name, if it has one, its text, and the picture that it begins with, if any.
    `where` is the file that it comes from."""

    name: str | None
    text: str
    image: str | None = None
    where: str = ""


def collect_prompts(
    *,
    validation_prompt: str | None,
    user_library: Mapping[str, str],
    use_built_in_library: bool,
    images: Mapping[str, str] | None = None,
) -> tuple[Prompt, ...]:
    """The prompts in the order in which they are rendered: "validation", the user's library, the built-in one.

    `images` are the pictures of prompts of the user's library, by name. A name that another prompt has (letter case
    aside) gets a number; the same name with the same text and picture is one prompt.
    """
    prompts: list[Prompt] = []
    if validation_prompt:
        prompts.append(Prompt("validation", validation_prompt))
    prompts += [Prompt(name, text, (images or {}).get(name)) for name, text in user_library.items()]
    if use_built_in_library:
        prompts += [Prompt(name, text) for name, text in BUILT_IN_LIBRARY.items()]
    return unique_prompts(prompts)


def unique_prompts(prompts: Iterable[Prompt]) -> tuple[Prompt, ...]:
    """Prompts with any names as prompts whose names are safe, and of each name one."""
    unique: dict[str, Prompt] = {}
    for prompt in prompts:
        stem = safe_name(prompt.name)
        name, number = stem, 1
        while (other := unique.get(name.casefold())) is not None and (other.text, other.image) != (
            prompt.text,
            prompt.image,
        ):
            number += 1
            name = f"{stem}_{number}"
        unique.setdefault(name.casefold(), replace(prompt, name=name))
    return tuple(unique.values())


def safe_name(name: str) -> str:
    """`name` as a file name on every system: letters and digits of any script, "-", "_" and inner dots remain."""
    cleaned = re.sub(r"[^\w.-]+", "_", name.strip())
    cleaned = re.sub(r"\.{2,}", ".", cleaned).strip("._-")
    return cleaned[:MAX_NAME_LENGTH].rstrip("._-") or "prompt"


def validation_sizes(
    value: str | int | Sequence[str | int | tuple[int, int]], *, flavour: Flavour, emit: Emit, where: str = "options"
) -> tuple[tuple[int, int], ...]:
    """(width, height) of each resolution: "832x480", "832x480,480x832", 480 for a square, or a list of these or pairs.

    Each side is rounded down to the flavour's multiple, which is announced. Raises UserError with every entry that is
    no size.
    """
    entries = [value] if isinstance(value, str | int) else list(value)
    texts = [str(entry) if isinstance(entry, str | int) else "x".join(map(str, entry)) for entry in entries]
    parts = [part.strip() for text in texts for part in text.split(",") if part.strip()]
    problems, sizes = [], []
    multiple = flavour.pixel_multiple
    for part in parts:
        match = re.fullmatch(r"(\d+)(?:\s*[xX*]\s*(\d+))?", part)
        width, height = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
        floored = (width // multiple * multiple, height // multiple * multiple)
        if not all(floored):
            problems.append(_bad_size(where, part, multiple))
            continue
        if floored != (width, height):
            rounded = f"{floored[0]}x{floored[1]}"
            emit(Notice(f"validation_resolution {part} is rendered at {rounded}: sizes are multiples of {multiple}"))
        if floored not in sizes:
            sizes.append(floored)
    if not parts:
        problems.append(_bad_size(where, value, multiple))
    if problems:
        raise UserError(*problems)
    return tuple(sizes)


def validation_frames(num_frames: int, *, flavour: Flavour, emit: Emit, where: str = "options") -> int:
    """`num_frames` rounded down to 4n+1 (the VAE's stride n+1), which is announced. Raises UserError below 1."""
    if num_frames < 1:
        raise UserError(Problem(where, "is not at least 1", "validation_num_video_frames", num_frames))
    stride = flavour.vae.temporal_stride
    floored = (num_frames - 1) // stride * stride + 1
    if floored != num_frames:
        emit(
            Notice(
                f"validation_num_video_frames {num_frames} is rendered as {floored}: the model makes {stride}n+1 frames"
            )
        )
    return floored


def latent_shape(size: tuple[int, int], num_frames: int, *, flavour: Flavour) -> tuple[int, int, int, int, int]:
    """The latents (1, C, F, H, W) of one clip of `size` (width, height) pixels and `num_frames` frames."""
    width, height = size
    vae = flavour.vae
    frames = (num_frames - 1) // vae.temporal_stride + 1
    return 1, vae.latent_channels, frames, height // vae.spatial_stride, width // vae.spatial_stride


def _bad_size(where: str, value: object, multiple: int) -> Problem:
    return Problem(
        where,
        f"is not a size of at least {multiple}x{multiple} pixels",
        "validation_resolution",
        value,
        'write WIDTHxHEIGHT, as in "832x480"',
    )
