"""The device a run uses, and accelerate's Accelerator for it: refusals that would otherwise come after an hour."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import GradientAccumulationPlugin

from simplewan.errors import Problem, UserError
from simplewan.events import Emit, Notice
from simplewan.options import Options


def make_accelerator(options: Options, emit: Emit) -> Accelerator:
    """The Accelerator of a run. Raises UserError for a precision that this device cannot compute."""
    precision = options.optimizer.mixed_precision
    cuda = torch.cuda.is_available()
    if precision == "fp16" and not cuda:
        raise UserError(
            Problem("config", "needs a CUDA device", "mixed_precision", "fp16", 'use "bf16" or "no" on this machine')
        )
    if precision == "bf16" and cuda and not torch.cuda.is_bf16_supported(including_emulation=False):
        name = torch.cuda.get_device_name()
        raise UserError(
            Problem("config", f"cannot be computed by {name}", "mixed_precision", "bf16", 'use "fp16" with this card')
        )
    if options.run.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        # Not warn_only: with it the attention kernels keep their nondeterministic backward and only warn.
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = False
    # As a plugin: a plain number gives way to ACCELERATE_GRADIENT_ACCUMULATION_STEPS.
    accumulation = GradientAccumulationPlugin(num_steps=options.optimizer.gradient_accumulation_steps)
    accelerator = Accelerator(mixed_precision=precision, gradient_accumulation_plugin=accumulation)
    if torch.cuda.device_count() > 1:
        emit(Notice(f"{torch.cuda.device_count()} GPUs are present; this run uses one, {accelerator.device}"))
    return accelerator


def memory_text() -> Callable[[], str] | None:
    """What tells the most CUDA memory that tensors have taken so far, for the progress bar; None without CUDA."""
    if not torch.cuda.is_available():
        return None
    return lambda: f"{torch.cuda.max_memory_allocated() / 2**30:.1f} GiB"


def free_memory(cgroup: Path = Path("/sys/fs/cgroup")) -> tuple[int, int]:
    """Bytes of the machine's memory that are free, and all there are; in a container, those of the container."""
    import psutil

    machine = psutil.virtual_memory()
    try:
        limit = int((cgroup / "memory.max").read_text())  # "max", where there is no limit
        held = int((cgroup / "memory.current").read_text())
        stat = dict(line.split() for line in (cgroup / "memory.stat").read_text().splitlines())
        held -= int(stat["inactive_file"])  # of files that were read: given back when it is needed
    except (OSError, ValueError, KeyError):
        return machine.available, machine.total
    return min(machine.available, max(limit - held, 0)), min(machine.total, limit)


def release_memory() -> None:
    """Give memory of dropped models back to the device."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
