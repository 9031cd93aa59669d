"""What the validation of a run renders: the prompts, and for each the picture that it begins with."""

from __future__ import annotations

from collections.abc import Sequence

from simplewan.app.context import Context
from simplewan.app.gathering import Gathered
from simplewan.app.pictures import (
    Picture,
    Rendering,
    cut_notices,
    picture_of_file,
    picture_of_sample,
    with_pictures,
)
from simplewan.app.rendering import render_settings
from simplewan.app.validating import collect, rendering_experts, without_pictures
from simplewan.data.captions import stem
from simplewan.data.media import MediaError
from simplewan.data.samples import Sample
from simplewan.errors import Problem, UserError, some
from simplewan.validation.prompts import Prompt, unique_prompts

USING = "validation_using_datasets"


def plan_rendering(context: Context, gathered: Gathered) -> Rendering | None:
    """The prompts at their sizes, with pictures where the model takes them; None when nothing is to be rendered.

    Raises UserError for a picture that does not decode, and when pictures are needed and there is none.
    """
    options, flavour = context.options.validation, context.flavour
    if options.validation_disable:
        return None
    prompts = list(collect(context))
    pictures: dict[str, Picture] = {}
    if flavour.takes_first_frame:
        lacking = flavour.needs_first_frame and any(prompt.image is None for prompt in prompts)
        if options.validation_using_datasets or lacking:
            pictures = _of_samples(context, gathered)
            begun = with_pictures(prompts, list(pictures))
            if not options.validation_using_datasets:
                _tell_borrowed(context, prompts, begun)
            prompts = begun
    else:
        prompts = without_pictures(context, prompts)
    if options.validation_using_datasets:
        shown = [gathered.samples[name] for name in pictures] or _chosen(context, gathered)
        prompts += [_prompt_of(sample, pictures) for sample in shown]
        what = "" if flavour.takes_first_frame else f"; {flavour.name} takes no picture, their captions alone are used"
        context.say(f"{USING}: validation renders {some([sample.id for sample in shown])}{what}")
    if not prompts:
        return None
    return _rendering(context, unique_prompts(prompts), pictures)


def _rendering(context: Context, prompts: tuple[Prompt, ...], pictures: dict[str, Picture]) -> Rendering:
    folder, experts = context.output / "validation", rendering_experts(context)
    settings = render_settings(context, prompts, folder=folder, experts=experts)
    where = str(context.options.validation.user_prompt_library)
    used: dict[str, Picture] = {}
    for prompt in prompts:
        if prompt.image is not None and prompt.image not in used:
            found = pictures.get(prompt.image)
            used[prompt.image] = found or picture_of_file(prompt.image, where=where, key=f"{prompt.name}.image")
    for notice in cut_notices(list(used.values()), settings.sizes):
        context.say(notice)
    return Rendering(settings, used)


def _chosen(context: Context, gathered: Gathered) -> list[Sample]:
    """The samples that are rendered: the first few by name of those that the loss is measured on."""
    options = context.options.validation
    return gathered.evaluation(options.eval_dataset_id)[: options.num_eval_images]


def _of_samples(context: Context, gathered: Gathered) -> dict[str, Picture]:
    """What the chosen samples begin with, by their ids; of those whose files do not decode the next ones."""
    options = context.options.validation
    found: dict[str, Picture] = {}
    for sample in gathered.evaluation(options.eval_dataset_id):
        if len(found) == options.num_eval_images:
            break
        context.check()
        try:
            found[sample.id] = picture_of_sample(gathered, sample)
        except MediaError as error:
            context.say(f"validation leaves out {sample.id}: {error}", warning=True)
    if not found:
        fix = "name another dataset with eval_dataset_id, or set validation_disable"
        raise UserError(Problem("validation", "finds no clip that could give a first frame", fix=fix))
    return found


def _tell_borrowed(context: Context, prompts: Sequence[Prompt], begun: Sequence[Prompt]) -> None:
    names = dict.fromkeys(str(after.image) for before, after in zip(prompts, begun, strict=True) if not before.image)
    context.say(
        f"{context.flavour.name} begins with a given picture: prompts without one take the first frames of "
        f"{some(list(names))}; {USING} = true renders those clips' captions too"
    )


def _prompt_of(sample: Sample, pictures: dict[str, Picture]) -> Prompt:
    """The caption of a sample under the sample's name, without the ending of its file."""
    path = sample.source.path
    name = stem(path) + sample.name.removeprefix(path)  # behind the path: which clip of the file it is
    text = sample.captions[0] if sample.captions else ""
    return Prompt(name, text, sample.id if sample.id in pictures else None)
