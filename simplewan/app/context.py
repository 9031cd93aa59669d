"""What every step of putting a run together is handed: the loaded options, the output folder, who listens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator

from simplewan.events import Emit, Notice
from simplewan.flavours import Flavour
from simplewan.options import Loaded, Options
from simplewan.training.signals import SignalWatch

DTYPES = {"no": torch.float32, "fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Context:
    """One attempt of one run."""

    loaded: Loaded
    output: Path
    emit: Emit
    signals: SignalWatch
    accelerator: Accelerator

    @property
    def options(self) -> Options:
        return self.loaded.options

    @property
    def flavour(self) -> Flavour:
        return self.loaded.flavour

    @property
    def check(self) -> Callable[[], None]:
        """What long work calls at safe points; raises Interrupted."""
        return self.signals.check

    @property
    def device(self) -> torch.device:
        return self.accelerator.device

    @property
    def weight_dtype(self) -> torch.dtype:
        """The dtype of frozen weights: base_model_default_dtype, else that of mixed precision."""
        return DTYPES[self.options.model.base_model_default_dtype or self.options.optimizer.mixed_precision]

    def say(self, message: str, *, warning: bool = False) -> None:
        self.emit(Notice(message, severity="warning" if warning else "info"))
