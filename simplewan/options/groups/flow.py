"""Options of the objective: flow matching, and what regularises it (TREAD, CREPA, scheduled sampling)."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from simplewan.options.declare import Group, option
from simplewan.options.values import Shift, Timestep

_CREPA = "crepa_enabled"
_ROLLOUT = "scheduled_sampling_max_step_offset"


class TreadRoute(BaseModel):
    """One route: this share of the video tokens skips these layers (both ends count; negative from the end)."""

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    selection_ratio: float = Field(ge=0, lt=1)
    start_layer_idx: int
    end_layer_idx: int


class TreadOptions(BaseModel):
    """Token routing (arXiv 2501.04765)."""

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    routes: tuple[TreadRoute, ...] = ()


class FlowOptions(Group):
    flow_sampling: str = option(
        "sigmoid",
        choices=("uniform", "sigmoid", "logit_normal", "mode", "beta"),
        aliases={"logit-normal": "logit_normal"},
        help="Distribution of the training timesteps before the shift; sigmoid is a bell around the middle.",
    )
    flow_sigmoid_scale: float = option(
        1.0,
        minimum=1e-3,
        applies="flow_sampling=sigmoid",
        help="Width of the bell: sigmoid(scale * normal); below 1 narrower, above 1.4 with a peak at either end.",
    )
    flow_logit_mean: float = option(
        0.0, applies="flow_sampling=logit_normal", help="Mean of the normal under the sigmoid; above 0 means noisier."
    )
    flow_logit_std: float = option(
        1.0,
        minimum=1e-3,
        applies="flow_sampling=logit_normal",
        help="Standard deviation of the normal under the sigmoid.",
    )
    flow_mode_scale: float = option(
        1.29,
        minimum=-1,
        maximum=1.75,
        applies="flow_sampling=mode",
        help="Scale s of mode sampling: 1 - u - s (cos^2(pi u / 2) - 1 + u).",
    )
    flow_beta_schedule_alpha: float = option(
        2.0,
        minimum=0.5,
        maximum=100,
        applies="flow_sampling=beta",
        help="Exponent alpha of the beta distribution, x^(alpha - 1) (1 - x)^(beta - 1); larger means noisier.",
    )
    flow_beta_schedule_beta: float = option(
        2.0,
        minimum=0.5,
        maximum=100,
        applies="flow_sampling=beta",
        help="Exponent beta of the beta distribution; larger means cleaner.",
    )
    num_timestep_buckets: int = option(
        0,
        minimum=0,
        maximum=1000,
        help="Cut the distribution of timesteps into this many parts of equal probability, and draw from each of them "
        "once before any comes again: less chance in short runs and small batches; 0 draws each timestep by itself.",
    )
    flow_weighting: str = option(
        "none",
        choices=("none", "sigma_sqrt", "cosmap"),
        help="Weight of the loss at sigma: none 1, sigma_sqrt sigma^-2, cosmap 2 / (pi (1 - 2 sigma + 2 sigma^2)).",
    )
    flow_schedule_shift: Shift | None = option(
        None,
        help="Move the timesteps towards noise: s t / (1 + (s - 1) t). None takes the flavour's training shift; 1 (or "
        "0) leaves them alone.",
    )
    flow_schedule_auto_shift: bool = option(
        False, help="Take the shift from the resolution: more tokens a frame, more shift. Replaces flow_schedule_shift."
    )
    min_timestep: Timestep = option(
        0.0, help="Lowest training timestep, 0..1000; a value up to 1 is a fraction of 1000 (so 0.5 is 500)."
    )
    max_timestep: Timestep = option(
        1000.0, help="Highest training timestep, 0..1000; a value up to 1 is a fraction of 1000 (so 1 is 1000)."
    )
    timestep_boundary: Timestep | None = option(
        None,
        help="Timestep at and above which the high-noise expert of Wan 2.2 A14B acts, 0..1000; a value up to 1 is a "
        "fraction of 1000 (so 0.875 is 875). None takes the flavour's.",
    )
    tread_config: TreadOptions | None = option(
        None,
        later="TREAD token routing",
        help="Let a share of the video tokens skip layers: {routes: [{selection_ratio, start_layer_idx, "
        "end_layer_idx}]}; selection_ratio is the share that skips.",
    )
    crepa_enabled: bool = option(
        False,
        later="CREPA, alignment of neighbouring frames",
        help="Align hidden states with a vision encoder (CREPA).",
    )
    crepa_block_index: int = option(8, applies=_CREPA, help="Block whose output is aligned.")
    crepa_lambda: float = option(0.5, minimum=0, applies=_CREPA, help="Weight of the alignment loss.")
    crepa_adjacent_distance: int = option(
        1, minimum=0, unit="frames", applies=_CREPA, help="Distance of the neighbouring frames."
    )
    crepa_adjacent_tau: float = option(1.0, minimum=0, applies=_CREPA, help="Decay of the weight with that distance.")
    crepa_encoder: str = option(
        "dinov2_vitg14", applies=_CREPA, help="Vision encoder: dinov2_vitg14, dinov2_vits14, a hub id or a folder."
    )
    crepa_encoder_image_size: int = option(
        518, minimum=14, unit="pixels", applies=_CREPA, help="Edge of the square frames that the encoder sees."
    )
    crepa_drop_vae_encoder: bool = option(
        False, applies=_CREPA, help="Keep only the VAE's decoder: cached latents are decoded for the encoder."
    )
    crepa_scheduler: str = option(
        "constant",
        choices=("constant", "linear", "cosine", "polynomial"),
        applies=_CREPA,
        help="How the weight of the alignment loss changes over the run.",
    )
    crepa_warmup_steps: int = option(
        0, minimum=0, unit="steps", applies=_CREPA, help="Steps in which the weight grows."
    )
    crepa_cutoff_step: int = option(
        0, minimum=0, unit="steps", applies=_CREPA, help="Step after which the alignment loss is dropped; 0 is off."
    )
    scheduled_sampling_max_step_offset: int = option(
        0,
        minimum=0,
        unit="steps",
        later="scheduled sampling (rollout)",
        help="Let the model make its own inputs with up to this many solver steps; 0 is off.",
    )
    scheduled_sampling_strategy: str = option(
        "uniform",
        choices=("uniform", "biased_early", "biased_late"),
        applies=_ROLLOUT,
        help="How the number of solver steps is drawn.",
    )
    scheduled_sampling_probability: float = option(
        1.0, minimum=0, maximum=1, applies=_ROLLOUT, help="Share of samples that are rolled out."
    )
    scheduled_sampling_ramp_steps: int = option(
        0, minimum=0, unit="steps", applies=_ROLLOUT, help="Steps in which that share grows from 0."
    )
    scheduled_sampling_sampler: str = option(
        "unipc", choices=("unipc", "euler"), applies=_ROLLOUT, help="Solver of the rollout."
    )
