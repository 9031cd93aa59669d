"""Steps per second of our LoRA step against a plain loop of diffusers, PEFT and torch's AdamW, on the same tiny model.

Before anything is timed, both train from the same weights on the same noise and must report the same losses. The rows:
a prompt that fills all 512 text tokens (nothing can be merged), and one of 96 tokens, a long caption, whose padding
our forward merges. Required: a ratio of at least 1 for both.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from diffusers import WanTransformer3DModel
from torch import Tensor

from benchmarks.timing import Row, alternate, ratios, row
from simplewan.batches.batch import Batch, collate
from simplewan.models.adapters import adapter_parameters, add_lora
from simplewan.models.wan.forward import WanForward
from simplewan.objectives.distributions import Sampling
from simplewan.objectives.flow import sample_sigmas
from simplewan.objectives.supervised import FlowRole, SupervisedFlowMatching
from simplewan.training.optimizers import OptimizerSettings, make_optimizer

DIM, HEADS, LAYERS, FFN_DIM, TEXT_DIM, TEXT_TOKENS = 256, 2, 8, 1024, 64, 512
LATENTS_BCFHW = (1, 16, 6, 24, 28)  # 6 * 12 * 14 = 1,008 tokens
PROMPT_TOKENS = (TEXT_TOKENS, 96)
LEARNING_RATE, MAX_NORM = 1e-4, 1.0
PARITY_STEPS, PARITY = 3, 1e-5
STEPS_PER_BLOCK, ROUNDS = 2, 9

Step = Callable[[], float]


@dataclass(frozen=True)
class Lora:
    """Rank 16 on the attentions, as by default."""

    lora_rank: int = 16
    lora_alpha: float | None = None
    lora_dropout: float = 0.0
    lora_targets: tuple[str, ...] = ("attention",)
    lora_init_type: str = "default"


def run() -> list[Row]:
    """Steps per second of both loops and their ratio, for each prompt length. Raises RuntimeError without parity."""
    rows = []
    for prompt_tokens in PROMPT_TOKENS:
        steps = {"diffusers + PEFT": _plain_step(prompt_tokens), "simplewan": _our_step(prompt_tokens)}
        _check_parity(steps)
        blocks = {name: _block(step) for name, step in steps.items()}
        seconds = alternate(blocks, rounds=ROUNDS)
        label = f"step: {math.prod(LATENTS_BCFHW[2:]) // 4:,} tokens, prompt of {prompt_tokens}"
        for name, values in seconds.items():
            rows.append(row(f"{label}, {name}", [STEPS_PER_BLOCK / value for value in values], "steps/s"))
        plain, ours = seconds.values()
        rows.append(row(f"{label}, ratio", ratios(plain, ours), "x", "asked for: >= 1"))
    return rows


def _batch(prompt_tokens: int) -> Batch:
    generator = torch.Generator().manual_seed(0)
    embeds = torch.randn(prompt_tokens, TEXT_DIM, generator=generator)
    latents = torch.randn(LATENTS_BCFHW[1:], generator=generator)
    return collate([latents], [embeds], names=("benchmark",), text_tokens=TEXT_TOKENS)


def _transformer() -> WanTransformer3DModel:
    """The tiny model with its adapter, the same weights at each call."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        transformer = WanTransformer3DModel(
            num_attention_heads=HEADS,
            attention_head_dim=DIM // HEADS,
            text_dim=TEXT_DIM,
            ffn_dim=FFN_DIM,
            num_layers=LAYERS,
        )
    transformer.requires_grad_(False)
    add_lora(transformer, Lora(), seed=1)
    return transformer.train()


def _plain_step(prompt_tokens: int) -> Step:
    """diffusers' forward over PEFT's modules, torch's AdamW as it comes."""
    transformer, batch = _transformer(), _batch(prompt_tokens)
    parameters = [parameter for parameter in transformer.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE, weight_decay=0.01)
    generator = torch.Generator().manual_seed(7)

    def step() -> float:
        sigmas = sample_sigmas(1, sampling=Sampling(), shift=3.0, bounds=(0.0, 1.0), generator=generator)
        noise = torch.randn(LATENTS_BCFHW, generator=generator)
        sigma = sigmas.view(-1, 1, 1, 1, 1)
        noisy = (1 - sigma) * batch.latents_BCFHW + sigma * noise
        velocity = transformer(noisy, sigmas * 1000, batch.prompt_embeds_BLD, return_dict=False)[0]
        loss = F.mse_loss(velocity.float(), noise - batch.latents_BCFHW)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, MAX_NORM)
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return step


def _our_step(prompt_tokens: int) -> Step:
    """The project's forward, objective and optimiser."""
    transformer, batch = _transformer(), _batch(prompt_tokens)
    forward, objective = WanForward(transformer), SupervisedFlowMatching(shift=3.0)
    parameters = list(adapter_parameters(transformer).values())
    settings = OptimizerSettings("adamw", lr=LEARNING_RATE, betas=None, eps=None, weight_decay=0.01)
    optimizer = make_optimizer(parameters, settings)
    generator = torch.Generator().manual_seed(7)

    def predict(latents: Tensor, timesteps: Tensor, batch: Batch) -> Tensor:
        return forward(latents, timesteps, batch.prompt_embeds_BLD, text_lengths=batch.text_lengths)

    role = FlowRole("high", (0.0, 1.0), predict)

    def step() -> float:
        loss = objective.loss(role, batch, generator).value
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, MAX_NORM)
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return step


def _check_parity(steps: Mapping[str, Step]) -> None:
    losses = [[step() for _ in range(PARITY_STEPS)] for step in steps.values()]
    for number, values in enumerate(zip(*losses, strict=True), start=1):
        if not math.isclose(*values, rel_tol=PARITY):
            raise RuntimeError(f"no parity: the losses of step {number} are {dict(zip(steps, values, strict=True))}")


def _block(step: Step) -> Callable[[], None]:
    def block() -> None:
        for _ in range(STEPS_PER_BLOCK):
            step()

    return block
