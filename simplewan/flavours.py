"""The Wan flavours: what a `model_flavour` stands for. Pure data; no torch.

A flavour names a model and, for Wan 2.2 A14B, the expert ("stage") that is trained. Sources: the model cards and
configurations of the Wan 2.1 and 2.2 repositories. Shifts of validation are those of inference.
"""

from __future__ import annotations

from dataclasses import dataclass

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
class Flavour:
    """One row. `stage` is the trained expert ("high", "low") or None where the model has one transformer.

    `boundary` is a sigma (0..1): at and above it the high-noise expert acts. `training_shift` None means that the
    timesteps are not shifted unless the user asks. `guidance` holds (low, high) for two experts. With
    `clip_conditioning` the model takes CLIP's embeddings of the first frame.
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
    available: bool = True
    patch: int = 2
    text_tokens: int = 512

    @property
    def pixel_multiple(self) -> int:
        """Width and height must be multiples of this many pixels."""
        return self.vae.spatial_stride * self.patch

    @property
    def extra_channels(self) -> int:
        """Channels that I2V takes behind the noisy latents (mask and condition); 0 where there are none."""
        return self.in_channels - self.vae.latent_channels

    @property
    def trained_experts(self) -> tuple[str, ...]:
        """The experts this flavour trains; a model with one transformer has the one expert "high" (`transformer`)."""
        return (self.stage,) if self.stage else (HIGH,)

    @property
    def model_name(self) -> str:
        """The name without the expert that is trained: flavours that share it are of one model."""
        return self.name if self.stage is None else self.name.removesuffix(f"-{self.stage}")

    def sigma_bounds(self, expert: str) -> tuple[float, float]:
        """The sigmas (0..1) on which `expert` is trained: its side of the boundary, or all."""
        if self.boundary is None:
            return 0.0, 1.0
        return (self.boundary, 1.0) if expert == HIGH else (0.0, self.boundary)


def _a14b(task: str, stage: str) -> Flavour:
    t2v = task == "t2v"
    return Flavour(
        name=f"{task}-a14b-2.2-{stage}",
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
        available=t2v,
    )


def _mini(stage: str) -> Flavour:
    """The bundled example: the real classes, made small, two experts. No repository: it comes with the package."""
    return Flavour(
        name=f"t2v-mini-{stage}",
        task="t2v",
        repository="",
        vae=VAE_21,
        fps=16.0,
        steps=20,
        guidance=(2.0, 2.0),
        validation_shift=5.0,
        training_shift=5.0,
        boundary=0.875,
        stage=stage,
    )


def _wan21(name: str, task: str, repository: str) -> Flavour:
    return Flavour(
        name=name,
        task=task,
        repository=repository,
        vae=VAE_21,
        fps=16.0,
        steps=50 if task == "t2v" else 40,
        guidance=(5.0,),
        validation_shift=3.0 if "480" in name else 5.0,
        in_channels=16 if task == "t2v" else 36,
        clip_conditioning=task == "i2v",
        available=task == "t2v",
    )


_ROWS = (
    _wan21("t2v-480p-1.3b-2.1", "t2v", "Wan-AI/Wan2.1-T2V-1.3B-Diffusers"),
    _wan21("t2v-480p-14b-2.1", "t2v", "Wan-AI/Wan2.1-T2V-14B-Diffusers"),
    _wan21("i2v-480p-14b-2.1", "i2v", "Wan-AI/Wan2.1-I2V-14B-480P-Diffusers"),
    _wan21("i2v-720p-14b-2.1", "i2v", "Wan-AI/Wan2.1-I2V-14B-720P-Diffusers"),
    _a14b("t2v", HIGH),
    _a14b("t2v", LOW),
    _a14b("i2v", HIGH),
    _a14b("i2v", LOW),
    Flavour(
        name="ti2v-5b-2.2",
        task="ti2v",
        repository="Wan-AI/Wan2.2-TI2V-5B-Diffusers",
        vae=VAE_22,
        fps=24.0,
        steps=50,
        guidance=(5.0,),
        validation_shift=5.0,
        in_channels=48,
        available=False,
    ),
    _mini(HIGH),
    _mini(LOW),
)

FLAVOURS: dict[str, Flavour] = {row.name: row for row in _ROWS}
DEFAULT_FLAVOUR = "t2v-480p-1.3b-2.1"

# Other spellings of the same models: SimpleTuner's "14b" for "a14b", musubi's task names, the short I2V names.
ALIASES: dict[str, str] = {
    "t2v-14b-2.1": "t2v-480p-14b-2.1",
    "i2v-14b-2.1": "i2v-480p-14b-2.1",
    "i2v-14b-720p-2.1": "i2v-720p-14b-2.1",
    "t2v-14b-2.2-high": "t2v-a14b-2.2-high",
    "t2v-14b-2.2-low": "t2v-a14b-2.2-low",
    "i2v-14b-2.2-high": "i2v-a14b-2.2-high",
    "i2v-14b-2.2-low": "i2v-a14b-2.2-low",
}


def other_stage(flavour: Flavour) -> str | None:
    """The expert that `flavour` does not train; None where the model has one transformer."""
    return None if flavour.stage is None else LOW if flavour.stage == HIGH else HIGH


def experts_of(flavour: Flavour) -> tuple[str, ...]:
    """All experts of the model, the first to act first."""
    return (HIGH, LOW) if flavour.boundary is not None else flavour.trained_experts


def find_flavour(name: str) -> Flavour:
    """The row called `name`, aliases included. Raises KeyError when there is none."""
    lowered = name.lower()
    return FLAVOURS[ALIASES.get(lowered, lowered)]
