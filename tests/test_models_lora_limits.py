"""What is no plain LoRA, what diffusers' reader does not take, and what is refused: told by shapes and names alone."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from lora_files import lycoris_tensors, pairs, predict, spelled
from safetensors.torch import save_file
from tiny import tiny_transformer

from simplewan.errors import UserError
from simplewan.models.lora import read as read_module
from simplewan.models.lora.attach import attach_changes
from simplewan.models.lora.change import LORA, WHOLE, Change
from simplewan.models.lora.read import read_lora, shapes_in
from simplewan.models.lora.write import save_lora, unwritable

STYLES = ("universal", "bare", "kohya", "diffusers", "musubi", "peft", "lycoris")
PAIR = {"down": torch.ones(4, 32), "up": torch.ones(32, 4)}


def write(path: Path, tensors: dict[str, torch.Tensor]) -> Path:
    save_file(tensors, path)
    return path


def more_than_a_lora(kind: str) -> dict[str, torch.Tensor]:
    if kind == "biases":
        tensors = spelled(pairs(tiny_transformer()), "universal")
        return tensors | {"diffusion_model.blocks.0.self_attn.q.diff_b": torch.ones(32)}
    if kind == "convolutions":
        kernels = {"lora_A.weight": torch.ones(1, 16, 1, 2, 2), "lora_B.weight": torch.ones(32, 1, 1, 1, 1)}
        return {f"diffusion_model.patch_embedding.{key}": value for key, value in kernels.items()}
    if kind == "whole":
        return {f"diffusion_model.blocks.0.norm3.{word}": torch.ones(32) for word in ("diff", "diff_b")}
    return lycoris_tensors(kind, dora_wd=True)[1]


@pytest.mark.parametrize(
    ("kind", "what"),
    [
        ("whole", "whole, biases"),
        ("lora", "dora_scale"),
        ("lokr", "lokr, dora_scale"),
        ("biases", "biases"),
        ("convolutions", "LoRAs of convolutions"),
    ],
)
def test_what_more_than_a_lora_is_is_named(kind: str, what: str, tmp_path: Path) -> None:
    path = write(tmp_path / "x.safetensors", more_than_a_lora(kind))
    for read in (read_lora, shapes_in):
        with pytest.raises(UserError, match=re.escape(f"holds more than a LoRA ({what})")):
            read(path)


def faulty(kind: str, path: Path) -> Path:
    tensors = spelled(pairs(tiny_transformer()), "kohya", alpha=2.0)
    name = "diffusion_model.blocks.0.self_attn.q"
    if kind in ("dora_scale", "alpha"):
        tensors[f"{name}.{kind}"] = torch.ones(3)
    elif kind == "rank":
        tensors[f"{name}.lora_down.weight"] = torch.ones(3, 32)
    elif kind == "half":
        del tensors[f"{name}.lora_up.weight"]
    elif kind == "unknown":
        tensors["something"] = torch.ones(3)
    write(path, tensors)
    if kind == "cut":
        path.write_bytes(path.read_bytes()[:-1])
    elif kind == "offsets":
        path.write_bytes(path.read_bytes().replace(b'"data_offsets":[0,', b'"data_offsets":[4,'))
    elif kind == "missing":
        path.unlink()
    return path


@pytest.mark.parametrize("kind", ["dora_scale", "alpha", "rank", "half", "unknown", "cut", "offsets", "missing"])
def test_shapes_are_refused_as_the_weights_would_be(kind: str, tmp_path: Path) -> None:
    path = faulty(kind, tmp_path / "x.safetensors")
    said = []
    for read in (read_lora, shapes_in):
        with pytest.raises(UserError) as raised:
            read(path)
        said.append(str(raised.value))
    assert said[0] == said[1]


@pytest.mark.parametrize("style", STYLES)
def test_shapes_are_told_without_reading_the_weights(
    style: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "x.safetensors", spelled(pairs(tiny_transformer()), style, alpha=2.0))
    whole = {name: tuple(value.shape) for name, value in read_lora(path)[0].items()}
    monkeypatch.setattr(Change, "pair", lambda _change: pytest.fail("weights were read"))
    monkeypatch.setattr(read_module, "_described", described := counting(read_module._described))
    assert shapes_in(path) == whole and len(whole) == 40
    assert {value.device.type for value in described.made if value.numel() > 1} == {"meta"}


def counting(function):
    """`function`, with all that it made."""

    def counted(*arguments):
        counted.made.append(function(*arguments))
        return counted.made[-1]

    counted.made = []
    return counted


def test_a_strength_that_is_refused_leaves_the_transformer_as_it_was() -> None:
    transformer = tiny_transformer()
    before = predict(transformer)
    whole = Change("blocks.0.attn1.to_q", WHOLE, {"diff": torch.ones(32, 32)})
    dora = Change("blocks.1.attn1.to_q", LORA, {**PAIR}, dora=torch.ones(32, 1))
    with pytest.raises(ValueError, match="its strength is not a factor"):
        attach_changes(transformer, [whole, dora], strength=0.5, name="x")
    assert torch.equal(predict(transformer), before)


@pytest.mark.parametrize("dora", [torch.ones(1, 1), torch.ones(32, 1)], ids=["column", "row"])
def test_the_magnitudes_of_a_norm_are_refused(dora: torch.Tensor) -> None:
    pair = {"down": torch.ones(1, 1), "up": torch.ones(32, 1)}
    with pytest.raises(ValueError, match=r"the dora_scale of blocks\.0\.norm2 is"):
        attach_changes(tiny_transformer(), [Change("blocks.0.norm2", LORA, pair, dora=dora)], strength=1.0, name="x")


IN_BLOCK = "blocks.1.attn1.to_q"
ADDED_K, ADDED_V = (f"blocks.{block}.attn2.add_{side}_proj" for block, side in ((0, "k"), (1, "v")))


@pytest.mark.parametrize(
    ("modules", "lost"),
    [
        (["condition_embedder.time_proj"], None),
        (["proj_out", "condition_embedder.text_embedder.linear_1"], None),
        (["proj_out", "condition_embedder.text_embedder.linear_1", IN_BLOCK], []),
        (["condition_embedder.image_embedder.ff.net.2", ADDED_K, ADDED_V], []),
        ([IN_BLOCK, ADDED_K], [ADDED_K]),
        ([ADDED_V], None),
        ([IN_BLOCK, "patch_embedding", ADDED_K], ["patch_embedding", ADDED_K]),
        ([ADDED_V, "patch_embedding", ADDED_K], ["patch_embedding"]),
        (["patch_embedding", "proj_out"], None),
        (["something", IN_BLOCK], ["something"]),
        ([], []),
    ],
)
def test_what_diffusers_does_not_read_is_known_by_names(modules: list[str], lost: list[str] | None) -> None:
    assert unwritable(modules) == (modules if lost is None else lost)


def test_all_linears_together_are_read_by_diffusers() -> None:
    transformer = tiny_transformer(image_dim=24)
    linears = [name for name, module in transformer.named_modules() if isinstance(module, torch.nn.Linear)]
    assert len(linears) > 30 and unwritable(linears) == []


@pytest.mark.parametrize(
    ("module", "said"),
    [
        ("condition_embedder.time_proj", "reads no LoRA of condition_embedder.time_proj without one of a block beside"),
        (ADDED_K, f"diffusers reads no LoRA of {ADDED_K}$"),
    ],
)
def test_what_diffusers_does_not_read_is_not_written(module: str, said: str, tmp_path: Path) -> None:
    transformer = tiny_transformer(image_dim=24)
    out, inner = transformer.get_submodule(module).weight.shape
    state = {f"{module}.lora_A.weight": torch.ones(1, inner), f"{module}.lora_B.weight": torch.ones(out, 1)}
    with pytest.raises(ValueError, match=said):
        save_lora(tmp_path / "x.safetensors", state, scale=1.0, metadata={}, transformer=transformer)
    assert not list(tmp_path.iterdir())
