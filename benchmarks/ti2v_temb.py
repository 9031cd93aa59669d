"""TI2V's modulation: memory of one row a latent frame, against a timestep for every token as diffusers has it.

At the full size (704x1280, 121 frames, width 3,072, float32) tensors are fake: every allocation is counted, nothing is
computed. That they count as real ones do is checked at a small size, where whole forwards are compared and timed, too.
Asked for: 20x less.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any

import torch
from diffusers import WanTransformer3DModel
from diffusers.models.transformers.transformer_wan import WanTimeTextImageEmbedding
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from benchmarks.timing import Row, alternate, ratios, row
from simplewan.models.wan.block import spread
from simplewan.models.wan.conditioning import frame_timesteps
from simplewan.models.wan.forward import WanForward, modulation_rows

DIM, FREQ_DIM, TEXT_DIM = 3072, 256, 4096
FRAMES, GRID = 31, (22, 40)  # 121 frames of 704x1280: strides 4, 16, 16 and patches of 2 x 2
SMALL = {"num_attention_heads": 2, "attention_head_dim": 128, "ffn_dim": 1024, "num_layers": 4, "text_dim": 64}
SMALL_LATENTS_BCFHW = (1, 48, 6, 24, 28)
ASKED, PARITY, ROUNDS = 20, 1e-5, 9
MIB = 2**20

Rows = tuple[Tensor, Tensor]


class Allocations(TorchDispatchMode):
    """Counts the bytes of tensors that operations make: those alive now, and the most at any time."""

    def __init__(self) -> None:
        super().__init__()
        self.held, self.peak = 0, 0
        self._known: dict[int, weakref.finalize] = {}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = {tensor.untyped_storage()._cdata for tensor in tree_iter((args, kwargs)) if isinstance(tensor, Tensor)}
        result = function(*args, **kwargs)
        for tensor in tree_iter(result):
            if isinstance(tensor, Tensor) and (storage := tensor.untyped_storage())._cdata not in given:
                self._count(storage)
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        if storage._cdata in self._known:
            return
        self.held += storage.nbytes()
        self.peak = max(self.peak, self.held)
        self._known[storage._cdata] = weakref.finalize(storage, self._free, storage._cdata, storage.nbytes())

    def _free(self, key: int, size: int) -> None:
        del self._known[key]
        self.held -= size


def run() -> list[Row]:
    """MiB of each form, and the ratios; then time and parity of whole forwards. Raises RuntimeError without parity."""
    _check_counting()
    rows = []
    tokens = FRAMES * GRID[0] * GRID[1]
    counted = full_size()
    for what, place in (("held", 0), ("at most while embedding", 1), ("a block's own", 2)):
        for name, values in counted.items():
            rows.append(row(f"modulation of {tokens:,} tokens, {what}, {name}", [values[place] / MIB], "MiB"))
        theirs, ours, _ = (values[place] for values in counted.values())
        rows.append(row(f"modulation, {what}, ratio", [theirs / ours], "x", f"asked for: >= {ASKED}"))
    return rows + _forwards()


def full_size() -> dict[str, tuple[int, int, int]]:
    """For each form the bytes held after embedding, the most during it, and what one block adds to them."""
    with FakeTensorMode():
        return {name: _counted(form) for name, form in _forms(DIM, FRAMES, GRID).items()}


def _forms(dim: int, frames: int, grid: tuple[int, int]) -> dict[str, Callable[[], tuple[Rows, Any]]]:
    """Each form as a function that gives (time embedding, modulation) and a function of what a block makes of it."""
    per_frame = grid[0] * grid[1]
    conditions = WanTimeTextImageEmbedding(dim, FREQ_DIM, 6 * dim, TEXT_DIM).requires_grad_(False)
    table, text, timestep = torch.zeros(1, 6, dim), torch.zeros(1, 1, TEXT_DIM), torch.full((1,), 937.5)
    token_rows = (torch.arange(frames * per_frame) >= per_frame).long()
    per_token = frame_timesteps(timestep, frames).repeat_interleave(per_frame, dim=1)

    def theirs() -> tuple[Rows, Any]:
        temb, modulation = conditions(per_token.flatten(), text, timestep_seq_len=per_token.shape[1])[:2]
        modulation = modulation.unflatten(2, (6, -1))
        return (temb, modulation), lambda: (table.unsqueeze(0) + modulation.float()).chunk(6, dim=2)

    def a_row_a_frame() -> tuple[Rows, Any]:
        made = modulation_rows(conditions, frame_timesteps(timestep, frames), torch.float32)
        return made, lambda: [spread(part, None) for part in (table.unsqueeze(0) + made[1].float()).unbind(2)]

    def two_rows() -> tuple[Rows, Any]:
        made = modulation_rows(conditions, frame_timesteps(timestep, 2), torch.float32)
        return made, lambda: [spread(part, token_rows) for part in (table.unsqueeze(0) + made[1].float()).unbind(2)]

    return {"diffusers": theirs, "simplewan, a row a frame": a_row_a_frame, "two rows and an index": two_rows}


def _counted(form: Callable[[], tuple[Rows, Any]]) -> tuple[int, int, int]:
    with torch.no_grad(), Allocations() as count:
        made, block = form()
        held, peak = count.held, count.peak
        parts = block()
        added = count.held - held
        del parts, made
    return held, peak, added


def _check_counting() -> None:
    """Fake tensors count as real ones do. Raises RuntimeError otherwise."""
    counts = []
    for mode in (FakeTensorMode(), nullcontext()):
        with mode:
            counts.append([_counted(form) for form in _forms(96, 3, (4, 5)).values()])
    if counts[0] != counts[1]:
        raise RuntimeError(f"allocations of fake and real tensors differ: {counts}")


def _forwards() -> list[Row]:
    """Whole forwards at a small size: the same velocity, and seconds of each form."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        channels = SMALL_LATENTS_BCFHW[1]
        transformer = WanTransformer3DModel(in_channels=channels, out_channels=channels, **SMALL)
        latents, text = torch.randn(SMALL_LATENTS_BCFHW), torch.randn(1, 512, SMALL["text_dim"])
    transformer.requires_grad_(False).eval()
    ours, timestep = WanForward(transformer), torch.tensor([937.5])
    per_frame = frame_timesteps(timestep, latents.shape[2])
    per_token = per_frame.repeat_interleave(latents.shape[3] * latents.shape[4] // 4, dim=1)
    forms: Mapping[str, Callable[[], Tensor]] = {
        "diffusers": lambda: transformer(latents, per_token, text).sample,
        "simplewan, a row a frame": lambda: ours(latents, per_frame, text),
        "simplewan, one timestep (T2V)": lambda: ours(latents, timestep, text),
    }
    with torch.no_grad():
        difference = (forms["diffusers"]() - forms["simplewan, a row a frame"]()).abs().max().item()
        if difference > PARITY:
            raise RuntimeError(f"no parity: the velocities differ by {difference}")
        seconds = alternate(forms, rounds=ROUNDS)
    label = f"TI2V forward, {per_token.shape[1]:,} tokens, dim {transformer.config.num_attention_heads * 128}"
    theirs, frames, single = seconds.values()
    return [
        *(row(f"{label}, {name}", values, "s") for name, values in seconds.items()),
        row(f"{label}, diffusers / simplewan", ratios(theirs, frames), "x", f"largest difference {difference:.1e}"),
        row(f"{label}, a row a frame / one timestep", ratios(frames, single), "x"),
    ]
