"""Checks of datasets that are not trained on but looked at: those of evaluation, and of first frames.

Imports the entries of the dataset file and flavours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from simplewan.flavours import Flavour
from simplewan.options.catalogue import Options
from simplewan.options.dataset_file import Entry
from simplewan.options.sources import Findings, Given, did_you_mean

MEASURED = ("video", "image", "eval")


def check_eval_dataset(
    options: Options,
    found: Mapping[str, Given],
    entries: Sequence[Entry],
    *,
    flavour: Flavour | None,
    findings: Findings,
) -> None:
    """Whether eval_dataset_id names a dataset, and which eval datasets nobody looks at."""
    validation = options.validation
    named, key = validation.eval_dataset_id, "eval_dataset_id"
    enabled = [entry for entry in entries if not entry.options.disabled and entry.options.dataset_type in MEASURED]
    known = [entry.options.id for entry in enabled]
    if named is not None and named not in known and entries:
        meant = did_you_mean(named, known)
        fix = f'did you mean "{meant}"? ' if meant else ""
        findings.problem(
            found[key].where,
            "names no enabled dataset of videos or pictures",
            key=key,
            value=named,
            fix=f"{fix}there are {', '.join(known)}" if known else fix,
        )
        return
    rendered = not validation.validation_disable and (
        validation.validation_using_datasets or (flavour is not None and flavour.needs_first_frame)
    )
    used = bool(validation.eval_steps_interval) or rendered
    for entry in enabled:
        if entry.options.dataset_type != "eval":
            continue
        if not used:
            findings.warn(f"{entry.where}: is not used: eval_steps_interval is 0")
        elif named is not None and entry.options.id != named:
            findings.warn(f"{entry.where}: is not used: {key} is {named}")
    if named is not None and not used and all(entry.options.dataset_type != "eval" for entry in enabled):
        findings.inform(f"{found[key].where}: {key} has no effect: eval_steps_interval is 0")


def check_first_frames(entries: Sequence[Entry], *, flavour: Flavour | None, findings: Findings) -> None:
    """Refuse what datasets ask of first frames and the flavour has no way to do."""
    if flavour is None:
        return
    name, of_i2v = flavour.name, flavour.extra_channels > 0
    for entry in entries:
        options = entry.options
        if options.disabled:
            continue
        if options.conditioning_data and not of_i2v:
            why = "begins clips with their own first frames" if flavour.holds_first_frame else "is given no first frame"
            findings.problem(
                entry.where,
                f"cannot act: {name} {why}",
                key="conditioning_data",
                value=", ".join(options.conditioning_data),
                fix="leave it out, or take an I2V model_flavour",
            )
        given = options.video.is_i2v
        if given is False and of_i2v:
            findings.problem(
                entry.where,
                f"cannot be: {name} is always given the first frame",
                key="video.is_i2v",
                value=given,
                fix="leave it out, or take a TI2V or T2V model_flavour",
            )
        elif given and not flavour.takes_first_frame:
            findings.problem(
                entry.where,
                f"cannot be: {name} is given no first frame",
                key="video.is_i2v",
                value=given,
                fix="leave it out, or take a TI2V or I2V model_flavour",
            )


def check_image_embeds(entries: Sequence[Entry], *, flavour: Flavour | None, findings: Findings) -> None:
    """Say which caches of CLIP embeddings stay empty: only I2V of Wan 2.1 is given any."""
    if flavour is None or flavour.clip_conditioning:
        return
    why = f"is not used: {flavour.name} takes no CLIP embeddings of first frames"
    for entry in entries:
        if entry.options.disabled:
            continue
        if entry.options.dataset_type == "conditioning_image_embeds":
            findings.inform(f"{entry.where}: {why}")
        elif entry.options.cache_dir_conditioning_image_embeds is not None:
            findings.inform(f"{entry.where}: cache_dir_conditioning_image_embeds {why}")
