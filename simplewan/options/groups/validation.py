"""Options of validation: clips rendered during training, and the loss on fixed samples."""

from __future__ import annotations

from pathlib import Path

from simplewan.options.declare import Group, option
from simplewan.options.values import Integers, Numbers, ValidationSizes

MAX_SEED = 2**64 - 1  # of torch's generators
_SKIP = "validation_guidance_skip_layers"


class ValidationOptions(Group):
    validation_disable: bool = option(False, restart_safe=True, help="Render no validation clips at all.")
    validation_prompt: str | None = option(None, restart_safe=True, help="The main prompt that is rendered.")
    validation_negative_prompt: str = option(
        "static, blurry, low quality, watermark, text",
        restart_safe=True,
        help="What the rendered clips are guided away from.",
    )
    user_prompt_library: Path | None = option(
        None,
        restart_safe=True,
        help='JSON file {"name": "prompt"} of further prompts; the name becomes a file name. With a picture to begin '
        'with: {"name": {"prompt": "...", "image": "PATH"}}.',
    )
    validation_prompt_library: bool = option(False, restart_safe=True, help="Render the built-in prompts too.")
    validation_step_interval: int = option(
        100, minimum=0, unit="steps", restart_safe=True, help="Render every so many steps; 0 is off."
    )
    validation_epoch_interval: int = option(
        0,
        minimum=0,
        unit="epochs",
        later="validation by epochs",
        restart_safe=True,
        help="Render every so many epochs; 0 is off.",
    )
    validation_resolution: ValidationSizes = option(
        ((832, 480),), unit="pixels", restart_safe=True, help='Size of the clips: "832x480"; a list renders each.'
    )
    validation_num_video_frames: int = option(
        81, minimum=1, unit="frames", restart_safe=True, help="Frames of a clip; rounded down to 4n+1."
    )
    validation_num_inference_steps: int | None = option(
        None, minimum=1, unit="steps", restart_safe=True, help="Denoising steps; none takes the flavour's."
    )
    validation_guidance: Numbers | None = option(
        None,
        restart_safe=True,
        help="Guidance scale; for Wan 2.2 A14B one number, or [low noise, high noise]. None takes the flavour's.",
    )
    validation_shift: float | None = option(
        None, minimum=0, restart_safe=True, help="Timestep shift of rendering; none (or 0) takes the flavour's."
    )
    validation_seed: int = option(42, minimum=0, maximum=MAX_SEED, restart_safe=True, help="Seed of the first noise.")
    validation_noise_scheduler: str = option(
        "unipc",
        choices=("unipc", "euler", "euler-beta"),
        aliases={"euler_beta": "euler-beta", "euler-betas": "euler-beta"},
        restart_safe=True,
        help="Solver: unipc is what Wan ships; euler-beta is Euler over a beta schedule.",
    )
    validation_preview: bool = option(
        False, later="previews while a clip is rendered", restart_safe=True, help="Decode intermediate steps cheaply."
    )
    validation_preview_steps: int = option(
        1, minimum=1, unit="steps", applies="validation_preview", restart_safe=True, help="Steps between two previews."
    )
    validation_guidance_skip_layers: Integers = option(
        (),
        later="skip-layer guidance",
        restart_safe=True,
        help="Blocks that are left out in a third, worse prediction.",
    )
    validation_guidance_skip_layers_start: float = option(
        0.01, minimum=0, maximum=1, applies=_SKIP, restart_safe=True, help="Share of the steps after which it starts."
    )
    validation_guidance_skip_layers_stop: float = option(
        0.2, minimum=0, maximum=1, applies=_SKIP, restart_safe=True, help="Share of the steps after which it ends."
    )
    validation_guidance_skip_scale: float = option(
        2.8, minimum=0, applies=_SKIP, restart_safe=True, help="Scale of skip-layer guidance."
    )
    validation_using_datasets: bool = option(
        False,
        restart_safe=True,
        help="Render the first samples of the evaluation (eval_dataset_id) too, each with its caption and, but for "
        "text-to-video models, from its first frame; other prompts begin with their first frames in turn.",
    )
    wan_validation_load_other_stage: bool = option(
        False,
        restart_safe=True,
        help="Wan 2.2 A14B: load the base of the expert that is not trained too, and render with both, changing at the "
        "boundary. Otherwise the trained expert renders all steps.",
    )
    eval_steps_interval: int = option(
        0, minimum=0, unit="steps", restart_safe=True, help="Measure the loss on fixed samples this often; 0 is off."
    )
    num_eval_images: int = option(
        4,
        minimum=1,
        unit="samples",
        restart_safe=True,
        help="Samples it is measured on, and whose first frames validation takes.",
    )
    eval_timesteps: int = option(
        4, minimum=1, applies="eval_steps_interval", restart_safe=True, help="Fixed timesteps it is measured at."
    )
    eval_dataset_id: str | None = option(
        None,
        restart_safe=True,
        help="Dataset the loss is measured on, and whose first frames validation takes; none takes those of type eval, "
        "else those that are trained on.",
    )

    @property
    def loads_other_stage(self) -> bool:
        """Whether the expert that is not trained is needed."""
        return self.wan_validation_load_other_stage and not self.validation_disable
