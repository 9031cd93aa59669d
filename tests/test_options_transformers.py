"""Transformers with an option of their own, of which a run opens only what it trains, and LoRAs that it starts from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from simplewan.errors import UserError
from simplewan.options import Loaded, load

KEYS = {
    "high": "pretrained_transformer_model_name_or_path",
    "low": "pretrained_transformer_2_model_name_or_path",
}
OTHER = {"high": "low", "low": "high"}


def load_in(folder: Path, *, training: bool = True, **config: Any) -> Loaded:
    (folder / "clips").mkdir(exist_ok=True)
    dataset = {"id": "clips", "type": "local", "dataset_type": "video", "instance_data_dir": "clips"}
    (folder / "data.json").write_text(json.dumps([dataset | {"video": {"num_frames": 5}}]))
    path = folder / "config.json"
    path.write_text(json.dumps({"max_train_steps": 10, "data_backend_config": "data.json", **config}))
    return load(path, [], environ={}, base=folder, training=training)


@pytest.mark.parametrize("trained", ["high", "low"])
def test_a_transformer_that_the_run_does_not_open_is_refused(trained: str, tmp_path: Path) -> None:
    """Else the base model's, or the published one, would be trained in its stead."""
    key = KEYS[OTHER[trained]]
    config = {"model_flavour": f"t2v-a14b-2.2-{trained}", key: "some/where"}
    for base in ({}, {"pretrained_model_name_or_path": "Wan-AI/Wan2.2-T2V-A14B"}):
        with pytest.raises(UserError) as raised:
            load_in(tmp_path, **config, **base)
        (problem,) = raised.value.problems
        assert problem.key == key and f"{OTHER[trained]}-noise expert, which" in problem.message
        assert f"with {KEYS[trained]}" in problem.fix
    load_in(tmp_path, **config, wan_validation_load_other_stage=True)
    load_in(tmp_path, training=False, **config)  # rendering takes both
    load_in(tmp_path, **config | {"model_flavour": "t2v-a14b-2.2"})
    both = load_in(tmp_path, **config, **{KEYS[trained]: "some/other"})
    assert any(f"{key} has no effect here" in notice.message for notice in both.notices)


def lora(file: Path, **metadata: str) -> Path:
    save_file({"diffusion_model.blocks.0.ffn.0.lora_A.weight": torch.zeros(4, 4)}, file, metadata=metadata or None)
    return file


@pytest.mark.parametrize("trained", ["high", "low"])
def test_the_lora_of_the_other_expert_starts_nothing(trained: str, tmp_path: Path) -> None:
    other = OTHER[trained]
    by_name = lora(tmp_path / f"fox_{other}_noise.safetensors")
    by_metadata = lora(tmp_path / f"fox_{trained}_noise.safetensors", expert=f"{other}_noise")
    right = lora(tmp_path / "right.safetensors", expert=f"{trained}_noise", model_flavour=f"t2v-a14b-2.2-{trained}")
    one = {"model_flavour": f"t2v-a14b-2.2-{trained}"}
    both = {"model_flavour": "t2v-a14b-2.2"}
    for file in (by_name, by_metadata):
        for config, key, fix in (
            (one, "init_lora", f"model_flavour=t2v-a14b-2.2-{other}"),
            (both, f"init_lora_{trained}", f"name it with init_lora_{other}"),
        ):
            with pytest.raises(UserError) as raised:
                load_in(tmp_path, **config, **{key: str(file)})
            (problem,) = raised.value.problems
            assert problem.key == key and f"is of the {other}-noise expert" in problem.message and fix in problem.fix
    for config in (one | {"init_lora": str(right)}, both | {f"init_lora_{trained}": str(right)}):
        assert not any("was trained for" in notice.message for notice in load_in(tmp_path, **config).notices)


def test_a_lora_of_another_model_starts_with_a_warning(tmp_path: Path) -> None:
    file = lora(tmp_path / "fox.safetensors", model_flavour="i2v-a14b-2.2-high", expert="high_noise")
    loaded = load_in(tmp_path, model_flavour="t2v-a14b-2.2-high", init_lora=str(file))
    told = [notice for notice in loaded.notices if "was trained for i2v-a14b-2.2-high" in notice.message]
    assert [notice.severity for notice in told] == ["warning"]
    (tmp_path / "cut.safetensors").write_bytes(file.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"init_lora.*cannot be read: cut\.safetensors is cut off"):
        load_in(tmp_path, model_flavour="t2v-a14b-2.2-high", init_lora=str(tmp_path / "cut.safetensors"))


def test_the_loras_of_experts_where_there_are_none(tmp_path: Path) -> None:
    file = lora(tmp_path / "fox.safetensors")
    for key in ("init_lora_high", "init_lora_low"):
        with pytest.raises(UserError) as raised:
            load_in(tmp_path, model_flavour="t2v-1.3b", **{key: str(file)})
        (problem,) = raised.value.problems
        assert problem.key == key and problem.fix == "name it with init_lora"
    one = load_in(tmp_path, model_flavour="t2v-a14b-2.2-low", init_lora_high=str(tmp_path / "nowhere"), lora_rank_low=2)
    (told,) = (notice.message for notice in one.notices if "not read" in notice.message)
    assert "init_lora_high (needs a flavour that trains the high-noise expert)" in told
    assert "lora_rank_low" not in told
    with pytest.raises(UserError, match=r"init_lora_low.*is not there"):
        load_in(tmp_path, model_flavour="t2v-a14b-2.2-low", init_lora_low=str(tmp_path / "nowhere"))


def test_names_that_stand_for_both_experts_are_announced(tmp_path: Path) -> None:
    told = [notice.message for notice in load_in(tmp_path, model_flavour="t2v-A14B").notices]
    assert any(
        "model_flavour t2v-A14B trains both experts of t2v-a14b-2.2; t2v-a14b-2.2-high or" in text for text in told
    )
    for name in ("t2v-a14b-2.2", "t2v-14b-2.2-high", "ti2v"):
        told = [notice.message for notice in load_in(tmp_path, model_flavour=name).notices]
        assert not any("trains both" in text for text in told)


def test_a_share_in_percent_gets_a_hint(tmp_path: Path) -> None:
    for value in (71, "71"):
        with pytest.raises(UserError, match=r"must be at most 1; did you mean 0\.71\?"):
            load_in(tmp_path, model_flavour="t2v-a14b-2.2", expert_share=value)
    with pytest.raises(UserError, match=r"must be at most 1$"):
        load_in(tmp_path, model_flavour="t2v-a14b-2.2", expert_share=710)


def test_another_models_repository_names_the_flavour_that_fits(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"or set model_flavour to t2v-a14b-2\.2$"):
        load_in(tmp_path, model_flavour="ti2v-5b", pretrained_model_name_or_path="Wan-AI/Wan2.2-T2V-A14B")


def test_what_is_no_lora_file_is_told_at_once(tmp_path: Path) -> None:
    """All of it together, with the file in a folder that is meant."""
    (tmp_path / "fox.safetensors").write_bytes(b"\x89PNG\r\n\x1a\n and so on, and so on")
    (tmp_path / "run").mkdir()
    for name in ("high", "low"):
        lora(tmp_path / "run" / f"fox_{name}_noise.safetensors")
    with pytest.raises(UserError) as raised:
        load_in(tmp_path, model_flavour="t2v-a14b-2.2", init_lora_high="fox.safetensors", init_lora_low="run")
    high, low = raised.value.problems
    assert high.key == "init_lora_high" and "as PNG pictures do" in high.message
    assert low.message == "is a folder" and low.fix == f"name {tmp_path / 'run' / 'fox_low_noise.safetensors'}"


def test_one_lora_for_both_experts_is_one_mistake(tmp_path: Path) -> None:
    for name, fix in (("fox_high_noise", "init_lora_high"), ("fox", "init_lora_high or init_lora_low")):
        with pytest.raises(UserError) as raised:
            load_in(tmp_path, model_flavour="t2v-a14b-2.2", init_lora=str(lora(tmp_path / f"{name}.safetensors")))
        (problem,) = raised.value.problems
        assert problem.fix == f"name it with {fix}"
