"""Checks of options against each other, and the choice of the flavour.

Imports flavours and the catalogue. A check reads the values of all groups and adds problems, announcements or requests
for what is to come; none of them changes a value.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from simplewan.errors import Problem
from simplewan.flavours import (
    ALIASES,
    EXPERT_SUBFOLDER,
    FLAVOURS,
    HIGH,
    LOW,
    Flavour,
    find_flavour,
    of_repository,
    unsupported,
)
from simplewan.options.catalogue import Options, catalogue
from simplewan.options.experts import adapter_of, budgets_of, has_own, key_of
from simplewan.options.groups.flow import FlowOptions
from simplewan.options.inference import BASE, TRANSFORMER_KEYS, infer_flavour
from simplewan.options.paths import Paths
from simplewan.options.problems import is_address, shown
from simplewan.options.sources import Findings, Given, did_you_mean
from simplewan.options.starts import check_starts

IMAGE_ENCODER_KEY = "pretrained_image_encoder_model_name_or_path"


def choose_flavour(
    options: Options, found: Mapping[str, Given], *, config: str, paths: Paths, findings: Findings
) -> Flavour | None:
    """The flavour by name, else the one that the named model tells, which is announced."""
    name = options.model.model_flavour
    if name is None or name.lower() == "none":
        return _inferred(options, found, config=config, paths=paths, findings=findings)
    try:
        flavour = find_flavour(name)
    except KeyError:
        message, fix = _unknown_flavour(name)
        findings.problem(found["model_flavour"].where, message, key="model_flavour", value=name, fix=fix)
        return None
    if name.lower() != flavour.name and flavour.trains_both:
        where, both = found["model_flavour"].where, flavour.name
        findings.inform(
            f"{where}: model_flavour {name} trains both experts of {both}; {both}-high or {both}-low trains one"
        )
    base = options.model.pretrained_model_name_or_path
    rows = of_repository(base) if base else ()
    if base and not paths(Path(base)).exists() and (what := unsupported(base)) is not None:
        findings.problem(found[BASE].where, f"is {what}, which is not trained here", key=BASE, value=base)
    elif rows and flavour not in rows:
        findings.problem(
            found[BASE].where,
            f"is another model than model_flavour {flavour.name}",
            key=BASE,
            value=base,
            fix=f"leave it out ({flavour.repository} is taken), or set model_flavour to {rows[0].name}"
            if flavour.repository
            else f"set model_flavour to {rows[0].name}",
        )
    return flavour


def _unknown_flavour(name: str) -> tuple[str, str]:
    """What is wrong with a name that no flavour has, and the fix."""
    known = f"known: {', '.join(FLAVOURS)}"
    if (what := unsupported(name)) is not None:
        return f"is {what}, which is not trained here", known
    meant = did_you_mean(name, (*FLAVOURS, *ALIASES))
    return "is not a flavour of Wan", f'did you mean "{meant}"? {known}' if meant else known


def _inferred(
    options: Options, found: Mapping[str, Given], *, config: str, paths: Paths, findings: Findings
) -> Flavour | None:
    result = infer_flavour(options.model, paths)
    if isinstance(result, Problem):
        where = found[result.where].where if result.where in found else config
        findings.problems.append(replace(result, where=where))
        return None
    if result.source is not None:
        findings.inform(result.announcement)
        findings.inferred = result.told
    return result.flavour


def check_options(
    options: Options,
    found: Mapping[str, Given],
    *,
    flavour: Flavour | None,
    config: str,
    paths: Paths,
    findings: Findings,
    training: bool = True,
) -> None:
    """Every check that needs more than one key or the disk; without `training` those that rendering needs.

    Options that are wholly to come have no checks: there is nothing to mend in what is refused anyway.
    """
    where = {key: given.where for key, given in found.items()}
    _check_files(options, found, paths, flavour, findings, training=training)
    _check_guidance(options, where, flavour, findings)
    if training:
        _check_transformers(options, where, flavour, findings)
    _check_parts(options, where, flavour, findings)
    if not training:
        return
    _check_length(options, where, config, flavour, findings)
    _check_timesteps(options, where, config, flavour, findings)
    _check_experts(options, where, config, flavour, findings)
    if flavour is not None:
        check_starts(options, where, config, flavour, paths, findings)
        _tell_of_alpha(options, where, flavour, findings)
    _check_memory(where, findings)
    if options.validation.wan_validation_load_other_stage and flavour is not None and flavour.other_stage is None:
        key = "wan_validation_load_other_stage"
        findings.inform(f"{where[key]}: {key} has no effect: {flavour.name} trains all that the model has")


def _check_parts(options: Options, where: Mapping[str, str], flavour: Flavour | None, findings: Findings) -> None:
    """Parts of a model that are given, and that the flavour has no place for."""
    if flavour is None:
        return
    second, image = options.model.pretrained_transformer_2_model_name_or_path, IMAGE_ENCODER_KEY
    if second is not None and flavour.boundary is None:
        findings.problem(
            where[TRANSFORMER_KEYS[LOW]],
            f"has no meaning: {flavour.name} has one transformer",
            key=TRANSFORMER_KEYS[LOW],
            value=second,
            fix=f"name it with {TRANSFORMER_KEYS[HIGH]}, or choose the model_flavour of Wan 2.2",
        )
    if options.model.pretrained_image_encoder_model_name_or_path is not None and not flavour.clip_conditioning:
        findings.inform(f"{where[image]}: {image} has no effect: {flavour.name} takes no image embeddings")


def _check_transformers(
    options: Options, where: Mapping[str, str], flavour: Flavour | None, findings: Findings
) -> None:
    """A transformer of its own that the run does not open, while the one that it trains comes from elsewhere."""
    other = None if flavour is None else flavour.other_stage
    if flavour is None or flavour.stage is None or other is None or options.validation.loads_other_stage:
        return
    key, trained = TRANSFORMER_KEYS[other], TRANSFORMER_KEYS[flavour.stage]
    name: str | None = getattr(options.model, key)
    if name is None:
        return
    message = f"is given for the {other}-noise expert, which {flavour.name} does not train"
    if getattr(options.model, trained) is not None:
        findings.inform(f"{where[key]}: {key} has no effect here: it {message}")
        return
    fix = f"name the {flavour.stage}-noise expert with {trained}, set wan_validation_load_other_stage, or leave it out"
    findings.problem(where[key], message, key=key, value=name, fix=fix)


def _check_guidance(options: Options, where: Mapping[str, str], flavour: Flavour | None, findings: Findings) -> None:
    given = options.validation.validation_guidance
    if flavour is None or given is None:
        return
    experts = 1 if flavour.boundary is None else 2
    if len(given) in (1, experts):
        return
    fix = "give one number, or two: low noise, then high" if experts == 2 else "give one number: it has one transformer"
    key = "validation_guidance"
    message = f"is too many numbers for {flavour.name}" if given else "is empty"
    findings.problem(where[key], message, key=key, value=list(given), fix=fix)


def _check_length(
    options: Options, where: Mapping[str, str], config: str, flavour: Flavour | None, findings: Findings
) -> None:
    run, optimizer = options.run, options.optimizer
    budgets = budgets_of(options, flavour) if flavour is not None else {}
    ends_with_budgets = flavour is not None and set(budgets) == set(flavour.trained_experts)
    if {"max_train_steps", "num_train_epochs"} & {problem.key for problem in findings.problems}:
        return
    if not run.max_train_steps and not run.num_train_epochs and not ends_with_budgets:
        place = where.get("max_train_steps", where.get("num_train_epochs", config))
        findings.problem(
            place, "and num_train_epochs are both 0, which is off", key="max_train_steps", fix="set one of them"
        )
    elif run.ignore_final_epochs and not run.max_train_steps and not ends_with_budgets:
        findings.problem(
            where["ignore_final_epochs"],
            "leaves the end to max_train_steps, which is 0",
            key="ignore_final_epochs",
            value=True,
            fix="set max_train_steps",
        )
    if 0 < run.max_train_steps <= optimizer.lr_warmup_steps:
        findings.warn(
            f"{where.get('lr_warmup_steps', config)}: lr_warmup_steps {optimizer.lr_warmup_steps} is the whole run of "
            f"{run.max_train_steps} steps: the learning rate only reaches {optimizer.learning_rate:g} at its end"
        )


def _check_timesteps(
    options: Options, where: Mapping[str, str], config: str, flavour: Flavour | None, findings: Findings
) -> None:
    flow = options.flow
    if flow.min_timestep >= flow.max_timestep:
        findings.problem(
            where.get("min_timestep", where.get("max_timestep", config)),
            f"is not below max_timestep {flow.max_timestep:g} (values up to 1 are fractions of 1000)",
            key="min_timestep",
            value=flow.min_timestep,
        )
    elif flavour is not None and flavour.boundary is not None:
        boundary = flavour.boundary * 1000 if flow.timestep_boundary is None else flow.timestep_boundary
        for expert in flavour.trained_experts:
            high = expert == HIGH
            if (flow.max_timestep > boundary) if high else (flow.min_timestep < boundary):
                continue
            _nothing_to_train(flavour, flow, where, config, expert=expert, boundary=boundary, findings=findings)


def _nothing_to_train(
    flavour: Flavour,
    flow: FlowOptions,
    where: Mapping[str, str],
    config: str,
    *,
    expert: str,
    boundary: float,
    findings: Findings,
) -> None:
    """The key that was given is told: the bound, else the boundary."""
    bound, side, other = ("max_timestep", "at or above", LOW) if expert == HIGH else ("min_timestep", "below", HIGH)
    limit, end = getattr(flow, bound), f"the boundary {boundary:g}"
    key, value = bound, limit
    if bound not in where and "timestep_boundary" in where:
        key, value, end = "timestep_boundary", boundary, f"it, and {bound} is {limit:g}"
    who = f"the {expert}-noise expert of {flavour.name}" if flavour.trains_both else flavour.name
    findings.problem(
        where.get(key, config),
        f"leaves nothing to train: {who} is trained {side} {end}",
        key=key,
        value=value,
        fix=f"train the other alone, with model_flavour={flavour.name.removesuffix(f'-{expert}')}-{other}",
    )


def _check_experts(
    options: Options, where: Mapping[str, str], config: str, flavour: Flavour | None, findings: Findings
) -> None:
    """What concerns the two experts: starts of one where there is one transformer, and a run of both."""
    if flavour is None:
        return
    if flavour.boundary is None and options.model.model_type == "lora":
        for expert in EXPERT_SUBFOLDER:
            if (start := getattr(options.experts, key := f"init_lora_{expert}")) is not None:
                message, fix = f"has no meaning: {flavour.name} has one transformer", "name it with init_lora"
                findings.problem(where.get(key, config), message, key=key, value=str(start), fix=fix)
    if not flavour.trains_both:
        return
    share = options.experts.expert_share
    if share in (0, 1):
        expert = HIGH if share else LOW
        findings.problem(
            where["expert_share"],
            f"leaves no step to the {LOW if share else HIGH}-noise expert",
            key="expert_share",
            value=share,
            fix=f"train the other alone, with model_flavour={flavour.name}-{expert}",
        )


def _tell_of_alpha(options: Options, where: Mapping[str, str], flavour: Flavour, findings: Findings) -> None:
    """An alpha that is not the rank weakens or strengthens what is learnt: configurations copy it without a thought."""
    if options.model.model_type != "lora":
        return
    told = {}
    for expert in flavour.trained_experts:
        alpha, rank = (key_of(options, flavour, expert, key) for key in ("lora_alpha", "lora_rank"))
        adapter = adapter_of(options, flavour, expert)
        if adapter.lora_alpha is not None and adapter.lora_alpha != adapter.lora_rank:
            scale = adapter.lora_alpha / adapter.lora_rank
            told[alpha] = (
                f"{where[alpha]}: {alpha} = {adapter.lora_alpha:g} with {rank} = {adapter.lora_rank}: what is learnt "
                f"acts at a scale of {scale:.3g}, alpha / rank; leave {alpha} out for 1"
            )
    for text in told.values():
        findings.inform(text)


def _check_memory(where: Mapping[str, str], findings: Findings) -> None:
    if "offload_during_startup" in where:
        findings.inform(
            f"{where['offload_during_startup']}: offload_during_startup has no effect: text encoder and VAE are on the "
            "device only while they encode, always"
        )


def _check_files(
    options: Options,
    found: Mapping[str, Given],
    paths: Paths,
    flavour: Flavour | None,
    findings: Findings,
    *,
    training: bool,
) -> None:
    adapter = options.adapter
    needed: dict[str, Path | None] = {"user_prompt_library": options.validation.user_prompt_library}
    if training and isinstance(webhooks := options.reporting.webhook_config, Path):
        _check_webhook_file(webhooks, found["webhook_config"], paths, findings)
    if training and options.model.model_type == "lora":
        needed["init_lora"] = adapter.init_lora
        own = [f"init_lora_{expert}" for expert in EXPERT_SUBFOLDER if flavour is not None and has_own(flavour, expert)]
        needed |= {key: getattr(options.experts, key) for key in own}
    for key, path in needed.items():
        if path is not None:
            paths.require_file(path, found[key].value, where=found[key].where, key=key, findings=findings)
    for key, value in options.model.__dict__.items():
        if key.endswith("_name_or_path") and isinstance(value, str) and _is_local(value):
            paths.require_file(Path(value), found[key].value, where=found[key].where, key=key, findings=findings)


def _check_webhook_file(path: Path, given: Given, paths: Paths, findings: Findings) -> None:
    """An address in the file's place is a secret: it is not shown."""
    key = "webhook_config"
    if is_address(given.value):
        fix = 'write the object itself, {"webhook_url": "https://..."}, or the path of a file that holds it'
        findings.problem(given.where, "is an address, not a file", key=key, fix=fix)
        return
    told = shown(key, str(given.value), catalogue()[key])
    paths.require_file(path, given.value, where=given.where, key=key, findings=findings, told=told)


def _is_local(name: str) -> bool:
    """Whether the name of a model can only be a local path."""
    return name.startswith(("/", "./", "../", "~")) or name.endswith((".safetensors", ".pth", ".pt", ".bin"))
