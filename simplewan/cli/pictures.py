"""The pictures that `sample` is given: whether they are there, and whether there are as many as are needed.

Imports options and what is known of media by name; nothing is decoded here.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from simplewan.cli.arguments import Arguments
from simplewan.data.media import IMAGE_SUFFIXES, VIDEO_SUFFIXES, is_media_name
from simplewan.errors import Problem, UserError
from simplewan.options import Loaded
from simplewan.options.sources import COMMAND_LINE
from simplewan.validation.prompts import Asked, Prompt, collect_prompts

KEY = "input_image"


def picture_files(arguments: Arguments) -> list[Path]:
    """The files of every input_image=; problems for those that are not there or of no kind that can be read."""
    files = []
    for value in arguments.own.get(KEY, []):
        path = Path(value).expanduser()
        if not path.is_file():
            fix = "name a picture, or a video, whose first frame is taken"
            arguments.problems.append(Problem(COMMAND_LINE, "is not there", KEY, value, fix))
        elif not is_media_name(path.name):
            fix = f"these are read: {', '.join((*IMAGE_SUFFIXES, *VIDEO_SUFFIXES))}"
            arguments.problems.append(Problem(COMMAND_LINE, "is neither a picture nor a video", KEY, value, fix))
        files.append(path)
    return files


def check_pictures(loaded: Loaded, prompts: Sequence[Asked], images: Sequence[Path]) -> None:
    """Whether the model takes pictures, and each prompt has one where it must. Raises UserError."""
    flavour = loaded.flavour
    if images and not flavour.takes_first_frame:
        fix = "leave it out, or take an image-to-video model_flavour"
        message = f"is not taken by {flavour.name}, which makes video from text alone"
        raise UserError(Problem(COMMAND_LINE, message, KEY, str(images[0]), fix))
    pictured = [prompt.image is not None for prompt in prompts or _configured(loaded)]
    if len(images) > 1 and len(images) != len(pictured):
        fix = f"give one for all prompts, or {len(pictured)}, one for each"
        raise UserError(
            Problem(COMMAND_LINE, f"is given {len(images)} times for {len(pictured)} prompts", KEY, fix=fix)
        )
    if flavour.needs_first_frame and not images and not all(pictured):
        message = f"is needed: {flavour.name} begins with a given picture"
        fix = "write --input_image PATH, a picture or a video; several: one for each prompt"
        raise UserError(Problem(COMMAND_LINE, message, KEY, fix=fix))


def _configured(loaded: Loaded) -> tuple[Prompt, ...]:
    """The prompts of the configuration, each once, as they are rendered."""
    options = loaded.options.validation
    return collect_prompts(
        validation_prompt=options.validation_prompt,
        user_library=loaded.prompts,
        use_built_in_library=options.validation_prompt_library,
        images={name: str(path) for name, path in loaded.prompt_images.items()},
    )
