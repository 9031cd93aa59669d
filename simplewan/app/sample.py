"""`simpletuner sample`: clips of prompts, by the base model or with what was trained, without any data set.

In order: which weights, which experts; the prompts encoded, the text encoder dropped; the experts loaded; then clip
after clip, each written as soon as it is rendered, so that an interrupt loses one clip at most.
"""

from __future__ import annotations

import fcntl
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from simplewan.app.boundaries import rendering_boundary
from simplewan.app.context import Context
from simplewan.app.device import make_accelerator
from simplewan.app.pictures import Picture, Rendering, cut_notices, first_frames, picture_of_file
from simplewan.app.rendering import Decoder, Turns, encode_pictures, encode_texts, expert_note, render_settings
from simplewan.app.settled import trained_on_others
from simplewan.app.validating import collect, without_pictures
from simplewan.app.weights import Weights, assign_loras, find_trained, load_weighted
from simplewan.checkpoints.files import read_record
from simplewan.checkpoints.store import RESOLVED
from simplewan.errors import EXIT_DONE, EXIT_FAILURE, Interrupted, Problem, UserError, counted
from simplewan.events import Emitter, ErrorHappened, Notice, SampleRendered
from simplewan.flavours import EXPERT_SUBFOLDER, other_model
from simplewan.models.wan.loading import check_files
from simplewan.models.wan.sources import present_experts, source
from simplewan.options import Loaded
from simplewan.options.sources import COMMAND_LINE
from simplewan.reporting.console import Console
from simplewan.reporting.quiet import quiet_loading_bars
from simplewan.training.signals import SignalWatch
from simplewan.validation.prompts import Asked, Prompt, safe_name, unique_prompts
from simplewan.validation.runner import Clip, Renderer, RenderSettings, noted, sized_name
from simplewan.validation.sampling import experts_used, make_scheduler

KEY = "sample"
NAME_WORDS, NAME_LENGTH = 8, 48
# Where a clip does not fit, the renderer says so.
OUT_OF_MEMORY = (
    "the GPU has too little memory for the model's weights: mixed_precision=bf16 halves those of float32; else end "
    "what also uses it, or take a smaller model"
)


@dataclass(frozen=True)
class Request:
    """What is asked for besides the options.

    Without `prompts` those of the configuration are taken, which then must have some. `images` are what the clips begin
    with: one for all prompts, or one for each; they win over those that prompts have. `seeds` empty takes
    validation_seed. `run` is the folder whose trained weights are used; None, or `adapters` that are not None, use none
    of them. `adapters` are LoRA files under "adapter", "adapter_high" and "adapter_low", and act times `adapter_scale`.
    """

    output: Path
    prompts: Sequence[Asked] = ()
    images: Sequence[Path] = ()
    seeds: Sequence[int] = ()
    run: Path | None = None
    adapters: Mapping[str, Sequence[Path]] | None = None
    adapter_scale: float = 1.0


@dataclass
class Outcome:
    """How it ended, and a record of each clip that was rendered, for people's programs."""

    exit_code: int = EXIT_DONE
    clips: list[dict[str, Any]] = field(default_factory=list)


def sample(loaded: Loaded, request: Request) -> Outcome:
    """Render what is asked for. Raises UserError for a mistake that only the files could show."""
    quiet_loading_bars()
    console, emit, outcome = Console(), Emitter(), Outcome()
    emit.add(console)
    with SignalWatch() as signals:
        try:
            for notice in loaded.notices:
                if notice.severity != "info":  # the others concern training, and were said then
                    emit(notice)
            if loaded.inferred is not None:
                emit(Notice(loaded.inferred))
            context = Context(loaded, request.output, emit, signals, make_accelerator(loaded.options, emit))
            with ExitStack() as claims:
                failed = _sample(context, request, outcome.clips, claims)
            outcome.exit_code = EXIT_FAILURE if failed else EXIT_DONE
        except Interrupted as stop:
            outcome.exit_code = stop.exit_code
        except torch.OutOfMemoryError:
            emit(ErrorHappened(OUT_OF_MEMORY, where="sample", fatal=True))
            outcome.exit_code = EXIT_FAILURE
        finally:
            console.close()
    return outcome


def _sample(context: Context, request: Request, records: list[dict[str, Any]], claims: ExitStack) -> int:
    """Renders; returns how many clips failed. A record of each is put into `records` when it is written."""
    prompts = wanted_prompts(context, request)
    weights = wanted_weights(context, request)
    experts = acting_experts(context, weights)
    settings = render_settings(context, prompts, folder=request.output, experts=experts)
    if settings.boundary is not None:
        settings = replace(settings, boundary=rendering_boundary(context, weights))
    note = expert_note(context, settings)
    pictures = wanted_pictures(context, settings, request)
    _make_folder(request.output)
    clips = plan_clips(settings, request.seeds or (settings.seed,), note=note, claims=claims)
    steps = announce(context, settings, experts, weights, scale=request.adapter_scale)
    if request.adapters is None:
        warn_of_other_base(context, weights)
    decoder = Decoder(context)
    decoder.load()
    needs = Rendering(settings, pictures).needs
    embeds = encode_texts(context, needs.texts)
    made = encode_pictures(context, needs, decoder)
    loads = {
        name: partial(load_weighted, context, name, weights.get(name, Weights()), scale=request.adapter_scale)
        for name in experts
    }
    turns = Turns(loads, device=context.device, text_tokens=context.flavour.text_tokens)
    turns.load_all()
    renderer = Renderer(
        settings,
        open_predict=turns.rendering,
        embeds=embeds.__getitem__,
        decode=decoder,
        first_frame=first_frames(context.flavour, needs, made.__getitem__),
        emit=context.emit,
        check=context.check,
        device=context.device,
        key=KEY,
        otherwise="the others go on",
    )

    def rendered(clip: Clip, seconds: float) -> None:
        event = SampleRendered(
            name=clip.video.stem,
            prompt=clip.prompt.text,
            seed=clip.seed,
            video=str(clip.video),
            sheet=str(clip.sheet),
            seconds=seconds,
            note=note,
        )
        context.emit(event)
        records.append(record_of(event, clip, settings, steps))

    label = f"Rendering {counted(len(clips), 'clip')} ({settings.clips})"
    return renderer.run(clips, label=label, where="sample", rendered=rendered)


def wanted_prompts(context: Context, request: Request) -> tuple[Prompt, ...]:
    """The prompts of the request, else those of the configuration, with the pictures that they begin with."""
    if request.prompts:
        prompts = [Prompt(asked.name or short_name(asked.text), asked.text, asked.image) for asked in request.prompts]
    else:
        prompts = list(collect(context, even_if_disabled=True))
    assert prompts, "who asks has looked that there are any"
    if request.images:
        images = request.images if len(request.images) > 1 else [request.images[0]] * len(prompts)
        prompts = [replace(prompt, image=str(image)) for prompt, image in zip(prompts, images, strict=True)]
    elif not context.flavour.takes_first_frame:
        prompts = without_pictures(context, prompts)
    return unique_prompts(prompts)


def wanted_pictures(context: Context, settings: RenderSettings, request: Request) -> dict[str, Picture]:
    """The pictures of the prompts, by name; says where much of one is cut off. Raises UserError with all bad ones."""
    found: dict[str, Picture] = {}
    problems: list[Problem] = []
    files = {asked.image: asked.where for asked in request.prompts}
    library = str(context.options.validation.user_prompt_library)
    for prompt in settings.prompts:
        image = prompt.image
        if image is None or image in found:
            continue
        where, key = files.get(image, library), f"{prompt.name}.image"
        if request.images:
            where, key = COMMAND_LINE, "input_image"
        try:
            found[image] = picture_of_file(image, where=where, key=key)
        except UserError as error:
            problems += error.problems
    if problems:
        raise UserError(*problems)
    for notice in cut_notices(list(found.values()), settings.sizes):
        context.say(notice)
    return found


def short_name(text: str) -> str:
    """A file name from a prompt's first words."""
    return safe_name(" ".join(text.split()[:NAME_WORDS]))[:NAME_LENGTH].rstrip("._-")


def wanted_weights(context: Context, request: Request) -> dict[str, Weights]:
    """What each expert gets: the LoRAs of the request, else what the run has trained; nothing where there is none."""
    if request.adapters is not None:
        return assign_loras(context.flavour, request.adapters, emit=context.emit)
    if request.run is None:
        return {}
    full = trained_fully(context, request.run)
    found = find_trained(request.run, context.flavour, full=full, emit=context.emit)
    if not found:
        context.say(f"{request.run} holds no trained weights yet: this is the base model")
    return found


def trained_fully(context: Context, run: Path) -> bool:
    """Whether the run was a full fine-tune, by its own record. Raises UserError when that speaks of another model."""
    record = read_record(run / RESOLVED)
    if (other := other_model(record, context.flavour)) is not None:
        message = f"has trained {other.name}, which is another model than {context.flavour.name}"
        fix = f"model_flavour={other.name}, or adapter=none for the base model"
        raise UserError(Problem(str(run), message, fix=fix))
    return bool(record.get("model_type", context.options.model.model_type) == "full")


def acting_experts(context: Context, weights: Mapping[str, Weights]) -> tuple[str, ...]:
    """The experts that are there, the first to act first; the files of those that the base must have are checked.

    Raises UserError for what they lack, and for a LoRA of an expert that is not there.
    """
    model, flavour = context.options.model, context.flavour
    whole = {name for name, each in weights.items() if each.transformer is not None}
    there = {*present_experts(model, flavour), *whole}
    experts = tuple(name for name in flavour.experts if name in there)
    if missing := [name for name in weights if name not in there]:
        place = model.pretrained_model_name_or_path or flavour.repository
        raise UserError(
            *(
                Problem(
                    str(place),
                    f"has no {EXPERT_SUBFOLDER[name]}, to which {weights[name]} belongs",
                    fix=f"leave it out, or name that with pretrained_{EXPERT_SUBFOLDER[name]}_model_name_or_path",
                )
                for name in missing
            )
        )
    check_files(model, flavour, experts=[name for name in experts if name not in whole])
    return experts


def plan_clips(settings: RenderSettings, seeds: Sequence[int], *, note: str | None, claims: ExitStack) -> list[Clip]:
    """Every prompt at every size and seed, each with files of its own: what is there already is not overwritten.

    `claims` keeps the names for these clips until it is closed, though nothing is written yet.
    """
    taken: set[str] = set()
    clips = []
    for prompt in settings.prompts:
        for size in settings.sizes:
            for seed in seeds:
                name = sized_name(prompt.name, size, settings.sizes)
                name = claim_name(settings.folder, name if len(seeds) == 1 else f"{name}_s{seed}", taken, claims)
                caption = noted(f"{name}, seed {seed}: {prompt.text}", note)
                video, sheet = (settings.folder / f"{name}.{ending}" for ending in ("mp4", "png"))
                clips.append(Clip(prompt, size, seed, video, sheet, caption))
    return clips


def claim_name(folder: Path, name: str, taken: set[str], claims: ExitStack) -> str:
    """`name`, with a number behind it if it is `taken`, claimed by another process, or a file's; taken from now on."""
    candidate, number = name, 1
    while (
        candidate.casefold() in taken
        or not _claim(folder / f".{candidate.casefold()}.claim", claims)
        or any((folder / f"{candidate}{end}").exists() for end in (".mp4", ".png"))
    ):
        number += 1
        candidate = f"{name}_{number}"
    taken.add(candidate.casefold())
    return candidate


def _claim(path: Path, claims: ExitStack) -> bool:
    """Whether nobody else holds a lock on this file; holds it then until `claims` is closed, or the process ends."""
    try:
        file = path.open("a")
    except OSError as error:
        raise _unusable(path.parent, error) from None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return False
    except OSError:  # this file system knows no locks
        pass
    claims.callback(file.close)
    claims.callback(path.unlink, missing_ok=True)
    return True


def announce(
    context: Context,
    settings: RenderSettings,
    experts: Sequence[str],
    weights: Mapping[str, Weights],
    *,
    scale: float,
) -> dict[str, int]:
    """Say what renders; returns the steps of each expert that makes any."""
    base = context.options.model.pretrained_model_name_or_path or context.flavour.repository
    used = experts_used(
        make_scheduler(settings.scheduler, settings.shift), num_steps=settings.num_steps, boundary=settings.boundary
    )
    single = settings.boundary is None
    steps = {experts[0]: len(used)} if single else {name: Counter(used)[name] for name in experts if name in used}
    for name in experts:
        own = weights.get(name, Weights())
        strength = f", strength {scale:g}" if own.loras and scale != 1 else ""
        place = source(context.options.model, context.flavour, EXPERT_SUBFOLDER[name])
        what = f"{own}{strength}" if str(own) else f"{place.part} of {place.name}, nothing added"
        if own.loras and not place.is_base:
            what += f", on {place.name}"
        context.say(f"{context.flavour.called(name)}, {steps.get(name, 0)} of {len(used)} steps: {what}")
    if scale != 1 and not any(each.loras for each in weights.values()):
        context.say(f"adapter_scale = {scale:g} has no effect: there is no LoRA", warning=True)
    if expert_note(context, settings) is not None:
        context.say(f"single expert: {base} has only the {experts[0]}-noise one, which makes all steps", warning=True)
    return steps


def warn_of_other_base(context: Context, weights: Mapping[str, Weights]) -> None:
    """Warn of the LoRAs of a run that were trained on other weights than they are put on now, by the run's record."""
    model, flavour = context.options.model, context.flavour
    for name, own in weights.items():
        part = EXPERT_SUBFOLDER[name]
        if any(trained_on_others(lora.path.parent, model, flavour, part) for lora in own.loras):
            base = f"{part} of {source(model, flavour, part).name}"
            context.say(
                f"{own} was trained on other weights than {base}: unless they are the same in another format, it fits "
                "them badly; adapter=none renders the base alone",
                warning=True,
            )


def record_of(event: SampleRendered, clip: Clip, settings: RenderSettings, steps: Mapping[str, int]) -> dict[str, Any]:
    """The JSON record of a clip. `experts` holds the steps of each, `boundary` the timestep at which they change."""
    return {
        "name": event.name,
        "prompt": event.prompt,
        "seed": event.seed,
        "width": clip.size[0],
        "height": clip.size[1],
        "num_frames": settings.num_frames,
        "image": clip.prompt.image,
        "video": event.video,
        "sheet": event.sheet,
        "seconds": round(event.seconds, 2),
        "experts": dict(steps),
        "boundary": None if settings.boundary is None else settings.boundary * 1000,
        "note": event.note,
    }


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unusable(folder, error) from None


def _unusable(folder: Path, error: OSError) -> UserError:
    message = f"cannot be written: {error.strerror}"
    return UserError(Problem(COMMAND_LINE, message, "output", str(folder), "name another folder"))
