"""Adapters that do not fit the model: told at once, with the option that mends it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tiny import save_tiny_model, tiny_transformer

from simplewan.app import starts
from simplewan.app.starts import check_adapters
from simplewan.cli import main
from simplewan.errors import UserError
from simplewan.flavours import find_flavour
from simplewan.models.adapters import adapter_scale, adapter_state, add_lora
from simplewan.models.lora.write import save_lora
from simplewan.models.wan.loading import transformer_configuration
from simplewan.options.catalogue import Options, group_models
from simplewan.options.groups.adapter import AdapterOptions
from simplewan.options.groups.experts import ExpertOptions
from simplewan.options.groups.model import ModelOptions

BOTH, LOW = find_flavour("t2v-a14b-2.2"), find_flavour("t2v-a14b-2.2-low")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("starts") / "model", two_experts=True)


def options(model: Path, experts: Mapping[str, Any] | None = None, **adapter: Any) -> Options:
    groups: dict[str, Any] = {name: group() for name, group in group_models().items()}
    groups |= {
        "model": ModelOptions(pretrained_model_name_or_path=str(model)),
        "adapter": AdapterOptions(**{"lora_rank": 4, **adapter}),
        "experts": ExpertOptions(**experts or {}),
    }
    return Options(**groups)


def lora(file: Path, *, rank: int = 4, targets: tuple[str, ...] = ("attention",), **sizes: int) -> Path:
    """A LoRA file of a tiny model."""
    transformer = tiny_transformer(**sizes)
    add_lora(transformer, AdapterOptions(lora_rank=rank, lora_targets=targets), seed=1)
    state, scale = adapter_state(transformer), adapter_scale(transformer)
    save_lora(file, state, scale=scale, metadata={}, transformer=transformer)
    return file


def told(made: Options, flavour: Any = LOW) -> tuple[str, str, str]:
    with pytest.raises(UserError) as raised:
        check_adapters(made, flavour)
    (problem,) = raised.value.problems
    return str(problem.key), problem.message, str(problem.fix)


def test_a_target_without_a_linear(model: Path) -> None:
    assert told(options(model, lora_targets=("to_qq",))) == (
        "lora_targets", "matches no linear of the model", 'did you mean "to_q"?'
    )  # fmt: skip


def test_targets_whose_lora_nobody_could_read(model: Path, tmp_path: Path) -> None:
    """Else the first save would tell."""
    for targets in (("proj_out",), ("time_proj", "text_embedder.linear_1")):
        key, message, _ = told(options(model, lora_targets=targets))
        assert key == "lora_targets" and message.startswith("make a LoRA that diffusers does not read: ")
    check_adapters(options(model, lora_targets=("attention", "proj_out", "time_proj")), LOW)
    i2v = save_tiny_model(tmp_path / "i2v", in_channels=36, image_dim=24)
    made = options(i2v, lora_targets=("attention", "add_k_proj"))
    assert "add_k_proj" in told(made, find_flavour("i2v-14b-2.1"))[1]


@pytest.mark.parametrize(
    ("made", "message", "fix"),
    [
        ({"rank": 2}, "has rank 2, and 4 is trained", "set lora_rank to 2"),
        (
            {"layers": 1},
            "is of other linears than are trained: it does not change blocks.1.attn1.to_k",
            "name another LoRA",
        ),
        ({"layers": 3}, "is of another model: it changes blocks.2.attn1.to_k", "name a LoRA of this model"),
        (
            {"dim": 16},
            "is of another model: blocks.0.attn1.to_k has 16 inputs there, and 32 here",
            "name a LoRA of this model",
        ),
        (
            {"targets": ("all",)},
            "is of other linears than lora_targets: it has ffn.net.0.proj, ffn.net.2",
            "set lora_targets to all",
        ),
        (
            {"targets": ("to_q",)},
            "is of other linears than lora_targets: lacks attn1.to_k",
            "set lora_targets to attn1.to_q,attn2.to_q",
        ),
    ],
)
def test_a_lora_that_cannot_be_started_from(made: dict, message: str, fix: str, model: Path, tmp_path: Path) -> None:
    file = lora(tmp_path / "start.safetensors", **made)
    key, what, how = told(options(model, init_lora=file))
    assert key == "init_lora" and what.startswith(message) and how == fix


def test_a_lora_of_some_linears(model: Path, tmp_path: Path) -> None:
    """One block, or one of two kinds, of the same model: no word of another model."""
    file = lora(tmp_path / "start.safetensors", targets=("blocks.1.attn1.to_q",))
    check_adapters(options(model, init_lora=file, lora_targets=("blocks.1.attn1.to_q",)), LOW)
    assert told(options(model, init_lora=file, lora_targets=("blocks.0.attn1.to_q",)))[1:] == (
        "is of other linears than are trained: it changes blocks.1.attn1.to_q and does not change blocks.0.attn1.to_q",
        "name another LoRA",
    )
    two = ("blocks.1.attn1.to_q", "blocks.1.attn2.to_q")
    assert told(options(model, init_lora=file, lora_targets=two))[1] == (
        "is of other linears than lora_targets: lacks attn2.to_q"
    )


def test_targets_and_rank_are_told_together(model: Path, tmp_path: Path) -> None:
    file = lora(tmp_path / "start.safetensors", rank=2, targets=("all", "proj_out"))
    with pytest.raises(UserError) as raised:
        check_adapters(options(model, init_lora=file), LOW)
    assert [problem.fix for problem in raised.value.problems] == [
        "set lora_targets to all,proj_out",
        "set lora_rank to 2",
    ]


def test_the_rank_that_counts_is_named(model: Path, tmp_path: Path) -> None:
    file = lora(tmp_path / "start.safetensors", rank=2)
    assert told(options(model, {"lora_rank_low": 8}, init_lora=file))[2] == "set lora_rank_low to 2"


IMAGE = ("add_k_proj", "add_v_proj")


def test_linears_for_image_tokens(model: Path, tmp_path: Path) -> None:
    """They may be lacking where the model has none, and are not lost where it has them."""
    of_i2v = {"in_channels": 36, "image_dim": 24}
    i2v = save_tiny_model(tmp_path / "i2v", **of_i2v)
    file = lora(tmp_path / "start.safetensors", targets=("attention", *IMAGE), **of_i2v)
    check_adapters(options(model, init_lora=file), LOW)
    flavour = find_flavour("i2v-14b-2.1")
    assert (
        told(options(i2v, init_lora=file), flavour)[2]
        == "set lora_targets to attention,attn2.add_k_proj,attn2.add_v_proj"
    )
    check_adapters(options(i2v, init_lora=file, lora_targets=("attention", *IMAGE)), flavour)
    check_adapters(options(i2v, init_lora=lora(file), lora_targets=("attention", *IMAGE)), flavour)
    alone = lora(tmp_path / "alone.safetensors", targets=IMAGE, **of_i2v)
    assert told(options(model, init_lora=alone))[1] == "changes linears for image tokens alone, which the model lacks"


def test_several_ranks_cannot_be_started_from(model: Path, tmp_path: Path) -> None:
    file = lora(tmp_path / "start.safetensors")
    state = {}
    for name, rank in (("q", 4), ("k", 2)):
        state[f"diffusion_model.blocks.0.self_attn.{name}.lora_A.weight"] = torch.ones(rank, 32)
        state[f"diffusion_model.blocks.0.self_attn.{name}.lora_B.weight"] = torch.ones(32, rank)
    save_file(state, file)
    made = options(model, init_lora=file, lora_targets=("blocks.0.attn1.to_q", "blocks.0.attn1.to_k"))
    assert told(made)[1:] == (
        "has modules of ranks 2 to 4, and one rank is trained",
        "`simpletuner export FILE --as-lora 4` makes it one rank",
    )


def test_each_expert_has_its_own(model: Path, tmp_path: Path) -> None:
    """Alone or with the other: its own rank, and the LoRA that it starts from by its own option."""
    file = lora(tmp_path / "start.safetensors", rank=2)
    own = {"init_lora_low": file}
    for flavour in (LOW, BOTH):
        key, message, fix = told(options(model, own), flavour)
        assert key == "init_lora_low" and "has rank 2" in message and fix == "set lora_rank_low to 2"
        check_adapters(options(model, own | {"lora_rank_low": 2}), flavour)
    with pytest.raises(UserError) as raised:
        check_adapters(options(model, {"init_lora_high": file, "init_lora_low": file}), BOTH)
    assert [problem.key for problem in raised.value.problems] == ["init_lora_high", "init_lora_low"]


def test_it_is_told_before_anything_is_cached(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "clips").mkdir()
    (tmp_path / "data.json").write_text(
        '[{"id": "clips", "dataset_type": "video", "instance_data_dir": "clips", "video": {"num_frames": 5}}]'
    )
    monkeypatch.chdir(tmp_path)
    for command in ("train", "cache"):
        words = [f"pretrained_model_name_or_path={model}", "model_flavour=t2v-a14b-2.2-low", "output_dir=out",
         "data_backend_config=data.json", "max_train_steps=1", "lora_targets=to_qq"]  # fmt: skip
        assert main([command, *words]) == 2 and 'did you mean "to_q"?' in capsys.readouterr().err
        assert not (tmp_path / "out").exists() and not (tmp_path / "cache").exists()


def test_what_tells_no_configuration_is_not_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "wan.pth"
    torch.save({"patch_embedding.weight": torch.zeros(4, 16, 1, 2, 2)}, file)
    made = options(file, lora_targets=("to_qq",))
    assert transformer_configuration(made.model, LOW, "low") is None
    monkeypatch.setattr(starts, "empty_model", lambda _config: pytest.fail("there is no configuration"))
    check_adapters(made, LOW)
