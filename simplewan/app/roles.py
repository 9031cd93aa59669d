"""The roles of a run: for each trained expert a network, its adapter, optimiser, learning rate, sampler and loss."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from simplewan.app.context import Context
from simplewan.app.drawing import make_sampler
from simplewan.app.fetching import Fetch
from simplewan.app.starts import start_from_lora
from simplewan.batches.batch import Batch
from simplewan.batches.loader import Loader
from simplewan.events import Stage
from simplewan.flavours import EXPERT_SUBFOLDER, HIGH
from simplewan.models.adapters import (
    adapter_parameters,
    adapter_state,
    adapters_off,
    add_lora,
    load_adapter_state,
    train_fully,
)
from simplewan.models.placement import own_memory
from simplewan.models.wan.conditioning import extra_channels
from simplewan.models.wan.forward import WanForward
from simplewan.models.wan.loading import load_transformer
from simplewan.objectives.distributions import Sampling
from simplewan.objectives.supervised import Loss, Predict, SupervisedFlowMatching
from simplewan.options import Loaded
from simplewan.options.experts import adapter_of, key_of, learning_rate_of
from simplewan.training.optimizers import LION_BETAS, MUON_BETAS, OptimizerSettings, make_optimizer
from simplewan.training.roles import Role
from simplewan.training.schedules import learning_rate
from simplewan.training.seeding import derive_seed


@dataclass(frozen=True)
class Expert:
    """A trained transformer and what the objective sees of it; `base_predict` is that without the adapter."""

    name: str
    transformer: nn.Module
    predict: Predict
    sigma_bounds: tuple[float, float]
    base_predict: Predict | None = None


def boundary(context: Context | Loaded) -> float | None:
    """The sigma at and above which the high-noise expert acts: the user's, else the flavour's; None with one expert."""
    own = context.options.flow.timestep_boundary
    return context.flavour.boundary if own is None or context.flavour.boundary is None else own / 1000


def sigma_bounds(context: Context, expert: str) -> tuple[float, float]:
    """The sigmas `expert` is trained on: its side of the boundary, cut to min_timestep and max_timestep."""
    flow = context.options.flow
    low, high = context.flavour.sigma_bounds(expert)
    edge = boundary(context)
    if edge is not None:
        low, high = (edge, 1.0) if expert == HIGH else (0.0, edge)
    return max(low, flow.min_timestep / 1000), min(high, flow.max_timestep / 1000)


def training_shift(context: Context | Loaded) -> float:
    """The shift of training: the user's, else the flavour's, else none (1)."""
    shift = context.options.flow.flow_schedule_shift
    return (context.flavour.training_shift or 1.0) if shift is None else shift


def make_objective(context: Context) -> SupervisedFlowMatching:
    """The objective as the options say."""
    flow = context.options.flow
    return SupervisedFlowMatching(
        sampling=Sampling(
            flow.flow_sampling,
            sigmoid_scale=flow.flow_sigmoid_scale,
            logit_mean=flow.flow_logit_mean,
            logit_std=flow.flow_logit_std,
            mode_scale=flow.flow_mode_scale,
            beta_alpha=flow.flow_beta_schedule_alpha,
            beta_beta=flow.flow_beta_schedule_beta,
        ),
        shift=training_shift(context),
        auto_shift=flow.flow_schedule_auto_shift,
        weighting=flow.flow_weighting,
        num_buckets=flow.num_timestep_buckets,
        seed=context.options.run.seed,
        patch=context.flavour.patch,
    )


def load_expert(context: Context, name: str) -> Expert:
    """Load a transformer, put its adapter on (or make all of it trainable), and move it to the device."""
    options = context.options
    full = options.model.model_type == "full"
    dtype = torch.float32 if full else context.weight_dtype
    transformer = load_transformer(options.model, context.flavour, name, dtype)
    transformer.requires_grad_(False)
    if full:
        train_fully(transformer)
    else:
        adapter = adapter_of(options, context.flavour, name)
        add_lora(transformer, adapter, seed=derive_seed(options.run.seed, name, "adapter"))
        remark = None if adapter.init_lora is None else start_from_lora(transformer, adapter.init_lora)
        if remark is not None:
            key = key_of(options, context.flavour, name, "init_lora")
            context.say(f"{key} {adapter.init_lora}: {remark}", warning=True)
    transformer.to(context.device).train()
    own_memory(transformer)
    recompute = "full" if options.model.gradient_checkpointing else "none"
    # Padding tokens are equal and may be merged, unless dropout is to draw for each of them.
    merge = full or options.adapter.lora_dropout == 0
    predict = make_predict(context, transformer, merge_padding=merge, recompute=recompute)
    base = None if full else without_adapters(transformer, predict)
    return Expert(name, transformer, predict, sigma_bounds(context, name), base)


def without_adapters(transformer: nn.Module, predict: Predict) -> Predict:
    """`predict` with the adapters off."""

    def base(latents_BCFHW: Tensor, timesteps: Tensor, batch: Batch) -> Tensor:
        with adapters_off(transformer):
            return predict(latents_BCFHW, timesteps, batch)

    return base


def load_base(context: Context, name: str) -> Expert:
    """An expert as the base model has it, to render with: frozen, in eval mode, on the CPU."""
    context.check()
    context.emit(Stage("model", f"Loading {EXPERT_SUBFOLDER[name]}"))
    transformer = load_transformer(context.options.model, context.flavour, name, context.weight_dtype)
    return frozen_expert(context, name, transformer)


def frozen_expert(context: Context, name: str, transformer: nn.Module) -> Expert:
    """An expert to render with, around a transformer that is loaded."""
    if context.device.type == "cpu":  # a clip then has the same bits in validation and in `sample`
        own_memory(transformer)
    predict = make_predict(context, transformer, merge_padding=True)
    return Expert(name, transformer, predict, sigma_bounds(context, name))


def make_predict(context: Context, transformer: nn.Module, *, merge_padding: bool, recompute: str = "none") -> Predict:
    """The transformer as the objective and the sampling loop call it, in the run's precision.

    With wan_force_2_1_time_embedding there is one timestep a sample, that of its last frame.
    """
    forward = WanForward(transformer)
    one_timestep = context.options.model.wan_force_2_1_time_embedding

    def predict(latents_BCFHW: Tensor, timesteps: Tensor, batch: Batch) -> Tensor:
        if batch.condition_BCFHW is not None:
            condition = extra_channels(batch.condition_BCFHW.to(latents_BCFHW.dtype))
            latents_BCFHW = torch.cat([latents_BCFHW, condition], dim=1)
        with context.accelerator.autocast():
            return forward(
                latents_BCFHW,
                timesteps[:, -1] if one_timestep and timesteps.ndim == 2 else timesteps,
                batch.prompt_embeds_BLD,
                encoder_hidden_states_image=batch.image_embeds_BND,
                text_lengths=batch.text_lengths if merge_padding else None,
                recompute=recompute,
            )

    return predict


def make_role(
    context: Context,
    expert: Expert,
    *,
    fetch: Fetch,
    total_steps: int,
    state: Mapping | None,
    activate: Callable[[], None],
) -> Role:
    """A role around a loaded expert, with `total_steps` of its own.

    `state` is its sampler's state in a checkpoint, None at the start; `activate` puts the expert on the device.
    """
    options = context.options
    data = options.data
    sampler = make_sampler(
        context.loaded, fetch.gathered, expert.name, max_steps=max(1, total_steps), failed=fetch.caches.failed
    )
    if state is not None and (changed := sampler.load_state_dict(state)):
        what = ", ".join(changed)
        context.say(f"{what} of role {expert.name} changed since the checkpoint: its epoch begins anew", warning=True)
    start = sampler.state_dict()  # before the loader's thread owns the sampler
    full = options.model.model_type == "full"
    parameters = trained_parameters(expert.transformer, full=full)
    objective = make_objective(context)
    settings = options.optimizer

    def loss(batch: Batch, generator: torch.Generator, micro_batch: int) -> Loss:
        return objective.loss(expert, batch.to(context.device), generator, micro_batch)

    return Role(
        name=expert.name,
        parameters=parameters,
        optimizer=context.accelerator.prepare(make_optimizer(parameters, optimizer_settings(context, expert.name))),
        learning_rate=partial(
            learning_rate,
            name=settings.lr_scheduler,
            base=learning_rate_of(options, context.flavour, expert.name),
            end=settings.lr_end,
            power=settings.lr_power,
            warmup_steps=settings.lr_warmup_steps,
            total_steps=total_steps,
        ),
        loader=Loader(sampler, fetch, prefetch=data.dataloader_prefetch_qlen if data.dataloader_prefetch else 0),
        loss=loss,
        weights=partial(full_state if full else adapter_state, expert.transformer),
        load_weights=partial(load_full_state if full else load_adapter_state, expert.transformer),
        activate=activate,
        sampler_state=start,
    )


def trained_parameters(transformer: nn.Module, *, full: bool) -> list[nn.Parameter]:
    """What the optimiser is given, in the model's order."""
    return list(transformer.parameters() if full else adapter_parameters(transformer).values())


def full_state(transformer: nn.Module) -> dict[str, Tensor]:
    """All weights on the CPU."""
    return {name: tensor.detach().cpu() for name, tensor in transformer.state_dict().items()}


def load_full_state(transformer: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Put the weights of `full_state` back."""
    transformer.load_state_dict(state)


def optimizer_settings(context: Context, expert: str) -> OptimizerSettings:
    """The optimiser of `expert` as the options say; optimizer_beta1 and _beta2 win over AdamW's own keys."""
    settings = context.options.optimizer
    beta1, beta2 = settings.optimizer_beta1, settings.optimizer_beta2
    usual = {"muon": MUON_BETAS, "optimi-lion": LION_BETAS}
    own = usual.get(settings.optimizer, (settings.adam_beta1, settings.adam_beta2))
    betas = own[0] if beta1 is None else beta1, own[1] if beta2 is None else beta2
    return OptimizerSettings(
        name=settings.optimizer,
        lr=learning_rate_of(context.options, context.flavour, expert),
        betas=betas,
        eps=settings.adam_epsilon,
        weight_decay=settings.adam_weight_decay,
    )
