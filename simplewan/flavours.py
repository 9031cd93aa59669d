"""The Wan flavours: what a `model_flavour` stands for. Pure data; no torch.

A flavour names a model and, for Wan 2.2 A14B, whether one expert ("stage") is trained or both. Sources: the model
cards and configurations of the Wan 2.1 and 2.2 repositories. Shifts of validation are those of inference.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

HIGH, LOW = "high", "low"
# diffusers: `transformer` denoises the noisy side of the boundary, `transformer_2` the other.
EXPERT_SUBFOLDER = {HIGH: "transformer", LOW: "transformer_2"}


@dataclass(frozen=True)
class VaeKind:
    """Geometry of a VAE: latent channels and strides (frames, pixels)."""

    latent_channels: int
    temporal_stride: int
    spatial_stride: int


VAE_21 = VaeKind(latent_channels=16, temporal_stride=4, spatial_stride=8)
VAE_22 = VaeKind(latent_channels=48, temporal_stride=4, spatial_stride=16)


@dataclass(frozen=True)
class Size:
    """A published transformer: its name, the width of its tokens and of its feed-forward, its blocks and latents."""

    name: str
    width: int
    feed_forward: int
    blocks: int
    latent_channels: int


# By the word in the flavour's name.
SIZES: dict[str, Size] = {
    "1.3b": Size("1.3B", 1536, 8960, 30, 16),
    "5b": Size("5B", 3072, 14336, 30, 48),
    "14b": Size("14B", 5120, 13824, 40, 16),
}


@dataclass(frozen=True)
class Flavour:
    """One row. `stage` is the one expert ("high", "low") that is trained; None trains all that the model has.

    `boundary` is a sigma (0..1): at and above it the high-noise expert acts; None where there is one transformer.
    `training_shift` None means that the timesteps are not shifted unless the user asks. `guidance` holds (low, high)
    for two experts. With `clip_conditioning` the model takes CLIP's embeddings of the first frame.
    """

    name: str
    task: str
    repository: str
    vae: VaeKind
    fps: float
    steps: int
    guidance: tuple[float, ...]
    validation_shift: float
    training_shift: float | None = None
    in_channels: int = 16
    boundary: float | None = None
    stage: str | None = None
    clip_conditioning: bool = False
    patch: int = 2
    text_tokens: int = 512

    @property
    def repositories(self) -> tuple[str, ...]:
        """Where the model is published: in diffusers' layout, and in its original one."""
        return (self.repository, self.repository.removesuffix("-Diffusers")) if self.repository else ()

    @property
    def size(self) -> Size | None:
        """The size of the published transformer; None of the miniature."""
        return next((size for word, size in SIZES.items() if word in self.name), None)

    @property
    def pixel_multiple(self) -> int:
        """Width and height must be multiples of this many pixels."""
        return self.vae.spatial_stride * self.patch

    @property
    def extra_channels(self) -> int:
        """Channels that I2V takes behind the noisy latents (mask and condition); 0 where there are none."""
        return self.in_channels - self.vae.latent_channels

    @property
    def holds_first_frame(self) -> bool:
        """Whether the first frame is given as a clean latent frame at timestep 0, as TI2V can take it."""
        return self.task == "ti2v"

    @property
    def takes_first_frame(self) -> bool:
        """Whether the model can, or must, begin with a given picture."""
        return self.task in ("i2v", "ti2v")

    @property
    def needs_first_frame(self) -> bool:
        """Whether the model cannot render without a given picture."""
        return self.extra_channels > 0

    @property
    def experts(self) -> tuple[str, ...]:
        """All experts of the model, the first to act first; one transformer is the one expert "high"."""
        return (HIGH,) if self.boundary is None else (HIGH, LOW)

    @property
    def trained_experts(self) -> tuple[str, ...]:
        """The experts this flavour trains, in the order of `experts`."""
        return (self.stage,) if self.stage else self.experts

    @property
    def trains_both(self) -> bool:
        """Whether both experts are trained in one run."""
        return len(self.trained_experts) > 1

    @property
    def other_stage(self) -> str | None:
        """The expert that is not trained; None where all are."""
        return next((expert for expert in self.experts if expert not in self.trained_experts), None)

    @property
    def model_name(self) -> str:
        """The name without the expert that is trained: flavours that share it are of one model."""
        return self.name if self.stage is None else self.name.removesuffix(f"-{self.stage}")

    def called(self, expert: str) -> str:
        """An expert in words; the one transformer of a model without experts is called that."""
        return "transformer" if self.boundary is None else f"{expert}-noise expert"

    def sigma_bounds(self, expert: str) -> tuple[float, float]:
        """The sigmas (0..1) on which `expert` is trained: its side of the boundary, or all."""
        if self.boundary is None:
            return 0.0, 1.0
        return (self.boundary, 1.0) if expert == HIGH else (0.0, self.boundary)


def _a14b(task: str, stage: str | None) -> Flavour:
    t2v = task == "t2v"
    return Flavour(
        name=_staged(f"{task}-a14b-2.2", stage),
        task=task,
        repository=f"Wan-AI/Wan2.2-{task.upper()}-A14B-Diffusers",
        vae=VAE_21,
        fps=16.0,
        steps=40,
        guidance=(3.0, 4.0) if t2v else (3.5, 3.5),
        validation_shift=12.0 if t2v else 5.0,
        training_shift=12.0 if t2v else 5.0,
        in_channels=16 if t2v else 36,
        boundary=0.875 if t2v else 0.9,
        stage=stage,
    )


def _mini(task: str, stage: str | None) -> Flavour:
    """The bundled example: the real classes, made small, two experts. No repository: it comes with the package."""
    return Flavour(
        name=_staged(f"{task}-mini", stage),
        task=task,
        repository="",
        vae=VAE_21,
        fps=16.0,
        steps=20,
        guidance=(2.0, 2.0) if task == "t2v" else (1.5, 1.5),
        validation_shift=5.0,
        training_shift=5.0,
        in_channels=16 if task == "t2v" else 36,
        # Of so few pixels less noise hides the motion than of a large clip, so the experts change later than Wan's.
        boundary=0.6,
        stage=stage,
    )


def _staged(name: str, stage: str | None) -> str:
    return name if stage is None else f"{name}-{stage}"


def _wan21(name: str, repository: str, *, shift: float) -> Flavour:
    t2v = name.startswith("t2v")
    return Flavour(
        name=name,
        task="t2v" if t2v else "i2v",
        repository=f"Wan-AI/{repository}-Diffusers",
        vae=VAE_21,
        fps=16.0,
        steps=50 if t2v else 40,
        guidance=(5.0,),
        validation_shift=shift,
        in_channels=16 if t2v else 36,
        clip_conditioning=not t2v,
    )


def _ti2v(name: str, repository: str, *, fps: float, steps: int, guidance: float) -> Flavour:
    return Flavour(
        name=name,
        task="ti2v",
        repository=repository,
        vae=VAE_22,
        fps=fps,
        steps=steps,
        guidance=(guidance,),
        validation_shift=5.0,
        training_shift=5.0,
        in_channels=48,
    )


STAGES = (None, HIGH, LOW)
_ROWS = (
    _wan21("t2v-480p-1.3b-2.1", "Wan2.1-T2V-1.3B", shift=3.0),
    _wan21("t2v-480p-14b-2.1", "Wan2.1-T2V-14B", shift=3.0),
    _wan21("i2v-14b-2.1", "Wan2.1-I2V-14B-480P", shift=3.0),
    _wan21("i2v-14b-2.1-720p", "Wan2.1-I2V-14B-720P", shift=5.0),
    *(_a14b(task, stage) for task in ("t2v", "i2v") for stage in STAGES),
    _ti2v("ti2v-5b-2.2", "Wan-AI/Wan2.2-TI2V-5B-Diffusers", fps=24.0, steps=50, guidance=5.0),
    *(_mini(task, stage) for task in ("t2v", "i2v") for stage in STAGES),
    _ti2v("ti2v-mini", "", fps=16.0, steps=20, guidance=2.0),
)

FLAVOURS: dict[str, Flavour] = {row.name: row for row in _ROWS}
DEFAULT_FLAVOUR = "t2v-480p-1.3b-2.1"

# Other spellings of the same models: "14b" for "a14b", musubi's task names, and the I2V names with their resolution.
ALIASES: dict[str, str] = {
    "t2v-1.3b": "t2v-480p-1.3b-2.1",
    "t2v-1.3b-2.1": "t2v-480p-1.3b-2.1",
    "t2v-14b": "t2v-480p-14b-2.1",
    "t2v-14b-2.1": "t2v-480p-14b-2.1",
    "i2v-14b": "i2v-14b-2.1",
    "i2v-480p-14b-2.1": "i2v-14b-2.1",
    "i2v-14b-480p-2.1": "i2v-14b-2.1",
    "i2v-14b-2.1-480p": "i2v-14b-2.1",
    "i2v-720p-14b-2.1": "i2v-14b-2.1-720p",
    "i2v-14b-720p-2.1": "i2v-14b-2.1-720p",
    **dict.fromkeys(("ti2v", "ti2v-5b"), "ti2v-5b-2.2"),
    **{f"{task}-a14b": f"{task}-a14b-2.2" for task in ("t2v", "i2v")},
    **{
        _staged(f"{task}-14b-2.2", stage): _staged(f"{task}-a14b-2.2", stage)
        for task in ("t2v", "i2v")
        for stage in STAGES
    },
}
# Models of the family that are not trained here, by the word (or the words, with - between) in their names.
UNSUPPORTED = {
    "flf2v": "first-and-last-frame video",
    "vace": "VACE, video editing by control inputs",
    "s2v": "speech to video",
    "animate": "Animate, character animation",
    "fun-control": "Fun-Control, video by control inputs",
}
TASKS = ("t2v", "i2v", "ti2v")


def find_flavour(name: str) -> Flavour:
    """The row called `name`, aliases included. Raises KeyError when there is none."""
    lowered = name.lower()
    return FLAVOURS[ALIASES.get(lowered, lowered)]


def recorded_flavour(record: Mapping[str, Any]) -> Flavour | None:
    """The flavour that a record of a training names; None where it names none, or one that only others know."""
    name = record.get("model_flavour")
    try:
        return find_flavour(name) if isinstance(name, str) else None
    except KeyError:
        return None


def other_model(record: Mapping[str, Any], flavour: Flavour) -> Flavour | None:
    """The flavour that a record of a training names, if that is of another model than `flavour`."""
    recorded = recorded_flavour(record)
    return None if recorded is None or recorded.model_name == flavour.model_name else recorded


def of_repository(name: str) -> tuple[Flavour, ...]:
    """The rows whose model a repository holds, the one that trains all of it first; () for one that is not known."""
    return tuple(row for row in FLAVOURS.values() if name in row.repositories)


def unsupported(name: str) -> str | None:
    """What a name (flavour, repository) stands for if it is of a Wan model that is not trained here, else None."""
    words = set(re.split(r"[^a-z0-9]+", name.lower()))
    return next((what for told, what in UNSUPPORTED.items() if words.issuperset(told.split("-"))), None)


def not_trained(task: str | None, in_channels: int | None) -> str | None:
    """What a transformer is if it is of a Wan model that is not trained here, by what was recognised; else None."""
    if task in UNSUPPORTED:
        return f"{task} ({UNSUPPORTED[task]})"
    if task in TASKS or in_channels is None:
        return None
    return f"a model of {in_channels} input channels" + (f" ({task})" if task else "")
