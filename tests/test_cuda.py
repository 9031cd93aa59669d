"""Whole runs on a CUDA device that is pretended: nothing mixes devices, and what a step waits for is known.

The numbers come from the CPU's kernels, as in the plain run that each is compared with; where the CPU has a way of its
own (`models/wan/normed.py`) the pretended device takes the other.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pretending import CUDA, Pretended, pretended_cuda
from runs import losses, records, start, write_run
from safetensors.torch import load_file
from tiny import save_tiny_image_model, save_tiny_model

from simplewan.models import placement
from simplewan.models.wan import forward, normed

pytestmark = pytest.mark.usefixtures("apart", "fresh_accelerator")
FLAVOURS = {"t2v": "t2v-a14b-2.2-low", "2.1": "i2v-14b-2.1", "2.2": "i2v-a14b-2.2-low", "ti2v": "ti2v-5b-2.2"}
SIZE = {"validation_resolution": "64x32", "validation_num_video_frames": 5, "validation_num_inference_steps": 4}
LOOKING = ("validation_disable=false", "validation_step_interval=2", "eval_steps_interval=1", "num_eval_images=1")


class Runs:
    """Runs of tiny models over two clips of one size, on the pretended device unless that is not wanted."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.picture = folder / "picture.png"
        Image.fromarray(np.random.default_rng(0).integers(0, 255, (32, 64, 3), np.uint8)).save(self.picture)

    def train(self, kind: str, out: str, *words: str, pretend: bool = True) -> Pretended:
        """Two steps of a kind, into `out`."""
        prompt: dict[str, Any] = {"ball": {"prompt": "a ball"} if kind == "t2v" else self._prompt()}
        (self.folder / "prompts.json").write_text(json.dumps(prompt))
        usual = {
            **self._model(kind),
            "output_dir": str(self.folder / out),
            "cache_dir": str(self.folder / f"cache-{kind}"),
            "max_train_steps": 2,
            "learning_rate": 1e-2,
            "caption_dropout_probability": 0.3,
            "disable_benchmark": True,
            "user_prompt_library": str(self.folder / "prompts.json"),
            **({"i2v_probability": 0.5} if kind == "ti2v" else {}),
        }
        config = write_run(self.folder, clips=2, frames=9, **usual)
        return self._start(pretend, "train", "--config", str(config), *words)

    def sample(self, kind: str, out: str, *, pretend: bool = True) -> Pretended:
        """A clip, by both experts where there are two; it begins with a picture where the model takes one."""
        picture = () if kind == "t2v" else (f"input_image={self.picture}",)
        settings = self._model(kind) | SIZE | {"model_flavour": FLAVOURS[kind].removesuffix("-low")}
        usual = (f"{key}={value}" for key, value in settings.items())
        place = (f"output={self.folder / out}", "prompt=a ball", "vae_dtype=fp32")
        return self._start(pretend, "sample", *usual, *place, *picture)

    def _prompt(self) -> dict[str, str]:
        return {"prompt": "a ball", "image": str(self.picture)}

    def _model(self, kind: str) -> dict[str, Any]:
        folder = self.folder / f"model-{kind}"
        if not folder.exists() and kind == "t2v":
            save_tiny_model(folder, two_experts=True)
        elif not folder.exists():
            save_tiny_image_model(folder, kind)  # type: ignore[arg-type]
        return {"model_flavour": FLAVOURS[kind], "pretrained_model_name_or_path": str(folder)}

    def _start(self, pretend: bool, *words: str) -> Pretended:
        if not pretend:
            assert start(*words) == 0
            return Pretended()
        with pretended_cuda() as pretended:
            assert start(*words) == 0
        return pretended


@pytest.fixture
def runs(tmp_path: Path) -> Runs:
    return Runs(tmp_path)


def test_the_pretended_device_refuses_what_cuda_refuses() -> None:
    with pretended_cuda() as pretended:
        here, there = torch.ones(2, 2, requires_grad=True), torch.ones(2, 2, device="cuda", requires_grad=True)
        assert there.device == CUDA and there.is_cuda and (there * 2)[0].device == CUDA
        assert (there * torch.tensor(2.0)).device == CUDA and here.device.type == "cpu"
        for mixing in (lambda: here @ there, lambda: torch.cat([here, there]), lambda: here * there.sum()):
            with pytest.raises(RuntimeError, match="same device"):
                mixing()
        with pytest.raises(TypeError, match="numpy"):
            there.detach().numpy()
        assert not pretended.waits
        (
            there.detach().to("cpu"),
            torch.ones(3).to("cuda"),
            float(there.detach().sum()),
            torch.ones(3).cuda(non_blocking=True),
        )
        assert pretended.waits == {"read elsewhere": 2, "write elsewhere": 1}
        with pytest.raises(AssertionError, match="before it is there"):
            there.detach().to("cpu", non_blocking=True)

        class Mixing(torch.autograd.Function):
            @staticmethod
            def forward(_ctx: Any, x: torch.Tensor) -> torch.Tensor:
                return x.clone()

            @staticmethod
            def backward(_ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
                return gradient * here.detach()

        with pytest.raises(RuntimeError, match="same device"):
            Mixing.apply(there).sum().backward()


CASES = [
    ("t2v", "mixed_precision=bf16"),
    ("t2v", "mixed_precision=bf16", "model_type=full", "gradient_checkpointing=true"),
    ("t2v", "gradient_checkpointing=true", "lora_dropout=0.1", "deterministic=true"),
    ("t2v", "mixed_precision=bf16", "model_flavour=t2v-a14b-2.2", "expert_run_steps=1", "idle_expert=cpu"),
    ("t2v", "optimizer=muon", "max_grad_norm=0.1", "grad_clip_method=value"),
    ("2.1", "mixed_precision=bf16", "gradient_checkpointing=true"),
    ("2.1", "model_type=full"),
    ("2.2", "mixed_precision=bf16", "gradient_checkpointing=true"),
    ("2.2", "model_type=full", "gradient_checkpointing=true"),
    ("ti2v", "mixed_precision=bf16", "gradient_checkpointing=true"),
    ("ti2v", "mixed_precision=bf16", "model_type=full"),
]


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=" ".join)
def test_a_run_on_the_device_does_what_it_does_here(case: tuple[str, ...], runs: Runs) -> None:
    """Caches, steps, evaluation, validation clips, checkpoint and export."""
    kind, *words = case
    words += [*LOOKING, *(f"{key}={value}" for key, value in SIZE.items())]
    was_deterministic = torch.are_deterministic_algorithms_enabled()
    try:
        pretended = runs.train(kind, "there", *words)
        runs.train(kind, "here", *words, pretend=False)
    finally:
        torch.use_deterministic_algorithms(was_deterministic)
    assert pretended.operations > 1000
    tolerance = 1e-4 if "mixed_precision=bf16" not in words else 4e-3  # autocast leaves more in float32 there
    assert losses(runs.folder / "there") == pytest.approx(losses(runs.folder / "here"), rel=tolerance)
    evaluated = [[each["loss"] for each in records(runs.folder / out, "eval_loss")] for out in ("there", "here")]
    assert evaluated[0] == pytest.approx(evaluated[1], rel=tolerance) and len(evaluated[0]) >= 3
    assert records(runs.folder / "there", "validation") and not records(runs.folder / "there", "error")


def reads(pretended: Pretended) -> Counter[str]:
    """What the loop, the objective and the batches waited for."""
    rooms = ("objectives/", "training/", "batches/")
    return Counter({what: n for what, n in pretended.waits.items() if any(room in what for room in rooms)})


@pytest.mark.slow
def test_a_step_waits_for_the_device_once(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the objective: with weights, with first frames, with more than one batch a step."""
    ways = ("gradient_accumulation_steps=2", "mixed_precision=bf16", "gradient_checkpointing=true")
    assert reads(runs.train("ti2v", "out", *ways)) == {"read training/loop.py:_update": 2}
    monkeypatch.setattr(forward, "run_blocks", lambda _blocks, hidden_BSD, _shared, **_how: hidden_BSD * 1)
    weighted = reads(runs.train("t2v", "weighted", "flow_weighting=sigma_sqrt", "model_type=full"))
    # The unweighted loss is read behind the loss, where nothing is to be waited for any more.
    assert weighted == {"read training/loop.py:_update": 2, "read training/loop.py:<genexpr>": 2}


@pytest.mark.slow
def test_a_half_precision_run_scales_its_loss_and_resumes_to_the_same_bits(runs: Runs) -> None:
    """Only CUDA has fp16: the scaler, the fused optimiser and what a checkpoint puts back on the device."""
    both = ("mixed_precision=fp16", "model_flavour=t2v-a14b-2.2", "expert_run_steps=1")
    waits = reads(runs.train("t2v", "straight", *both, "max_train_steps=4", "idle_expert=cpu"))
    assert waits == {"read training/loop.py:_update": 4}
    for steps in (2, 4):
        runs.train("t2v", "paused", *both, f"max_train_steps={steps}", "idle_expert=disk")
    assert losses(runs.folder / "paused") == losses(runs.folder / "straight")
    for expert in ("high", "low"):
        name = f"pytorch_lora_weights_{expert}_noise.safetensors"
        one, other = (load_file(runs.folder / out / name) for out in ("straight", "paused"))
        assert one and all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.slow
@pytest.mark.parametrize("kind", FLAVOURS)
def test_a_clip_is_rendered_on_the_device(kind: str, runs: Runs) -> None:
    """Text, picture, both experts in turns, decoding."""
    assert runs.sample(kind, "there").operations > 1000
    runs.sample(kind, "here", pretend=False)
    there, here = (next((runs.folder / out).glob("*.png")) for out in ("there", "here"))
    differences = np.asarray(Image.open(there), dtype=int) - np.asarray(Image.open(here), dtype=int)
    assert abs(differences).max() <= 8


def test_the_device_takes_the_way_that_is_not_the_cpus(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    turned: list[torch.device] = []
    rotate = normed.rotate
    monkeypatch.setattr(normed, "rotate", lambda x, table: (turned.append(x.device), rotate(x, table))[1])
    runs.train("t2v", "out", "max_train_steps=1")
    assert set(turned) == {CUDA}


def test_the_runtime_has_what_pins_memory() -> None:
    """The real binding, which needs no GPU to refuse: argument types, and a result that is a number."""
    runtime = pytest.importorskip("torch._C._cudart", reason="torch was built without CUDA")
    memory = np.empty(2 * placement.PAGESIZE, dtype=np.uint8)
    if int(runtime.cudaHostRegister(memory.ctypes.data, memory.nbytes, 0)) == 0:
        assert int(runtime.cudaHostUnregister(memory.ctypes.data)) == 0
