"""Adapters, their files, and the two names of every module; diffusers' loaders and converters are the oracles."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny import seeded, tiny_pipeline, tiny_transformer

from simplewan.app.starts import start_from_lora
from simplewan.errors import UserError
from simplewan.flavours import find_flavour
from simplewan.models.adapters import (
    activate,
    adapter_parameters,
    adapter_scale,
    adapter_state,
    adapters_off,
    add_lora,
    load_adapter_state,
    matched_modules,
    train_fully,
)
from simplewan.models.keys import to_diffusers, to_original
from simplewan.models.lora.attach import attach_changes
from simplewan.models.lora.change import pairs_of
from simplewan.models.lora.read import read_lora
from simplewan.models.lora.verify import verify_lora_file
from simplewan.models.lora.write import lora_file_name, lora_metadata, save_lora
from simplewan.models.wan.forward import velocity


def options(**changes):
    values = {"lora_rank": 4, "lora_alpha": None, "lora_dropout": 0.0, "lora_targets": ("all",)}
    return SimpleNamespace(**(values | {"lora_init_type": "default"} | changes))


def trained(transformer, name: str = "default", **changes):
    """An adapter as training leaves it: B no longer zero."""
    add_lora(transformer, options(**changes), seed=3, name=name)
    with seeded(11), torch.no_grad():
        for key, parameter in adapter_parameters(transformer, name).items():
            if "lora_B" in key:
                parameter.normal_(std=0.1)
    return transformer


def predict(transformer):
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(1, 16, 2, 4, 4, generator=generator)
    text = torch.randn(1, 512, 32, generator=generator)
    with torch.no_grad():
        return velocity(transformer, latents, torch.tensor([500.0]), text)


def test_presets_hit_the_linears_of_the_blocks_and_nothing_else() -> None:
    transformer = tiny_transformer()
    assert len(matched_modules(transformer, ("attention",))) == 8 * 2
    assert len(matched_modules(transformer, ("all",))) == 10 * 2
    assert matched_modules(transformer, ("blocks.1.ffn.net.2", "attn2.to_q")) == (
        "blocks.0.attn2.to_q",
        "blocks.1.attn2.to_q",
        "blocks.1.ffn.net.2",
    )


def test_targets_without_a_match_are_all_named_with_a_guess() -> None:
    with pytest.raises(UserError) as raised:
        matched_modules(tiny_transformer(), ("to_qq", "attnetion"))
    assert 'did you mean "to_q"?' in str(raised.value)
    assert 'did you mean "attention"?' in str(raised.value)


def test_a_new_adapter_changes_nothing_and_only_it_is_trainable() -> None:
    transformer = tiny_transformer()
    before = predict(transformer)
    add_lora(transformer, options(), seed=1)
    assert torch.equal(predict(transformer), before)
    trainable = {id(parameter) for parameter in transformer.parameters() if parameter.requires_grad}
    assert trainable == {id(parameter) for parameter in adapter_parameters(transformer).values()}
    assert len(trainable) == 40


def test_alpha_is_the_rank_unless_set() -> None:
    assert adapter_scale(trained(tiny_transformer())) == 1
    assert adapter_scale(trained(tiny_transformer(), lora_alpha=2)) == 0.5


@pytest.mark.parametrize("init", ["default", "gaussian"])
def test_the_first_weights_depend_on_the_seed_alone(init: str) -> None:
    states = []
    for seed, noise in ((1, 0), (1, 9), (2, 0)):
        torch.manual_seed(noise)
        expected = torch.rand(1)
        torch.manual_seed(noise)
        transformer = tiny_transformer()
        add_lora(transformer, options(lora_init_type=init), seed=seed)
        assert torch.equal(torch.rand(1), expected)
        states.append(adapter_state(transformer))
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert not any(torch.equal(states[0][key], states[2][key]) for key in states[0] if "lora_A" in key)
    first, second = (states[0][f"blocks.0.attn1.{name}.lora_A.weight"] for name in ("to_q", "to_k"))
    assert not torch.equal(first, second)
    spread = 1 / 4 if init == "gaussian" else (1 / 32 / 3) ** 0.5
    values = torch.cat([states[0][key].flatten() for key in states[0] if "to_q.lora_A" in key])
    assert values.std().item() == pytest.approx(spread, rel=0.1)


def test_adapter_weights_are_float32_over_a_bfloat16_base() -> None:
    transformer = tiny_transformer().to(torch.bfloat16)
    add_lora(transformer, options(), seed=1)
    assert {parameter.dtype for parameter in adapter_parameters(transformer).values()} == {torch.float32}


def test_state_goes_out_and_in_and_a_wrong_one_changes_nothing() -> None:
    state = adapter_state(trained(tiny_transformer()))
    other = tiny_transformer()
    add_lora(other, options(), seed=8)
    before = adapter_state(other)
    first = next(iter(state))
    for wrong in (
        {key: value for key, value in state.items() if key != first},
        state | {"blocks.9.attn1.to_q.lora_A.weight": state[first]},
        state | {first: state[first][:1]},
    ):
        with pytest.raises(ValueError, match=r"do not fit|has shape"):
            load_adapter_state(other, wrong)
        assert all(torch.equal(before[key], value) for key, value in adapter_state(other).items())
    load_adapter_state(other, state)
    assert torch.equal(predict(other), predict(trained(tiny_transformer())))


def test_two_adapters_act_one_at_a_time_and_off_is_the_base_bit_for_bit() -> None:
    base = predict(tiny_transformer())
    transformer = trained(tiny_transformer())
    student = predict(transformer)
    trained(transformer, "critic", lora_rank=2)
    critic = predict(transformer)
    assert not torch.equal(student, critic)
    activate(transformer, "default")
    assert torch.equal(predict(transformer), student)
    trainable = [name for name, parameter in transformer.named_parameters() if parameter.requires_grad]
    assert trainable
    assert all(".default." in name for name in trainable)
    with adapters_off(transformer):
        assert torch.equal(predict(transformer), base)
        assert [name for name, parameter in transformer.named_parameters() if parameter.requires_grad] == trainable
    assert torch.equal(predict(transformer), student)


def test_a_full_fine_tune_has_float32_masters() -> None:
    parameters = train_fully(tiny_transformer().to(torch.bfloat16))
    assert all(parameter.requires_grad and parameter.dtype == torch.float32 for parameter in parameters.values())


@pytest.mark.parametrize("image", [None, 24])
def test_names_go_both_ways_as_diffusers_converts_them(image: int | None) -> None:
    names = list(tiny_transformer(image_dim=image).state_dict())
    original = {to_original(name): torch.tensor(index) for index, name in enumerate(names)}
    assert len(original) == len(names)
    assert [to_diffusers(name) for name in original] == names
    converted = convert_wan_transformer_to_diffusers(dict(original))
    assert {name: index.item() for name, index in converted.items()} == {n: i for i, n in enumerate(names)}
    assert to_original("blocks.7.attn1.to_out.0") == "blocks.7.self_attn.o"
    with pytest.raises(KeyError):
        to_original("blocks.0.attn3.to_q")


@pytest.mark.parametrize("expert", ["high", "low"])
def test_the_file_gives_diffusers_pipeline_the_trained_model(tmp_path: Path, expert: str) -> None:
    flavour = find_flavour(f"t2v-a14b-2.2-{expert}")
    pipeline = tiny_pipeline(two_experts=True)
    part = "transformer" if expert == "high" else "transformer_2"
    transformer = trained(tiny_pipeline(two_experts=True).components[part], lora_alpha=2)
    path = tmp_path / lora_file_name(flavour, expert)
    assert path.name == f"pytorch_lora_weights_{expert}_noise.safetensors"
    metadata = lora_metadata(flavour, expert, rank=4, alpha=2, base_model="tiny", shift=12.0)
    state = adapter_state(transformer)
    report = save_lora(path, state, scale=adapter_scale(transformer), metadata=metadata, transformer=transformer)
    assert (report.modules, report.ranks, report.zero_modules) == (20, (4,), 0)
    base = predict(pipeline.components[part])
    pipeline.load_lora_weights(tmp_path, weight_name=path.name, load_into_transformer_2=expert == "low")
    loaded = predict(pipeline.components[part])
    assert (loaded - predict(transformer)).abs().max() < 1e-6  # alpha folded into B rounds once
    assert (loaded - base).abs().max() > 1e-3
    with safe_open(path, framework="pt") as file:
        assert file.metadata()["expert"] == f"{expert}_noise"
        assert file.metadata()["boundary"] == "0.875"
        assert "diffusion_model.blocks.0.self_attn.q.lora_A.weight" in file.keys()  # noqa: SIM118


def write(tmp_path: Path, transformer) -> Path:
    path = tmp_path / lora_file_name(find_flavour("t2v-mini-high"), "high")
    save_lora(path, adapter_state(transformer), scale=1.0, metadata={}, transformer=transformer)
    return path


def test_norms_are_those_of_the_products(tmp_path: Path) -> None:
    transformer = trained(tiny_transformer(), lora_targets=("blocks.0.attn1.to_q",))
    report = verify_lora_file(write(tmp_path, transformer), transformer)
    layer = transformer.blocks[0].attn1.to_q
    expected = layer.get_delta_weight("default").norm() / layer.base_layer.weight.norm()
    assert report.smallest_norm == report.largest_norm == pytest.approx(expected.item(), rel=1e-5)


def test_files_that_do_not_fit_are_found(tmp_path: Path) -> None:
    path = write(tmp_path, trained(tiny_transformer(layers=3)))
    with pytest.raises(ValueError, match=r"no module blocks\.2"):
        verify_lora_file(path, tiny_transformer(layers=2))
    with pytest.raises(ValueError, match="do not fit"):
        verify_lora_file(path, tiny_transformer(dim=48, layers=3))


def test_weights_that_are_not_finite_leave_the_old_file(tmp_path: Path) -> None:
    transformer = trained(tiny_transformer())
    path = write(tmp_path, transformer)
    before = path.read_bytes()
    next(iter(adapter_parameters(transformer).values())).data[0, 0] = torch.nan
    with pytest.raises(ValueError, match="not finite"):
        write(tmp_path, transformer)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_files_of_other_tools_are_read(tmp_path: Path) -> None:
    transformer = trained(tiny_transformer())
    state = adapter_state(transformer)
    universal = load_file(write(tmp_path, transformer))
    comfy = {key.replace("lora_A", "lora_down").replace("lora_B", "lora_up"): v for key, v in universal.items()}
    comfy |= {key.replace(".lora_A.weight", ".alpha"): torch.tensor(2.0) for key in universal if "lora_A" in key}
    files = {
        "universal": (universal, 1.0),
        "bare": ({key.removeprefix("diffusion_model."): value for key, value in universal.items()}, 1.0),
        "diffusers": ({f"transformer.{key}": value for key, value in state.items()}, 1.0),
        "alpha": (comfy, 0.5),
    }
    for name, (tensors, scale) in files.items():
        save_file(tensors, tmp_path / f"{name}.safetensors")
        read, _ = read_lora(tmp_path / f"{name}.safetensors")
        assert read.keys() == state.keys(), name
        for key, value in read.items():
            assert torch.allclose(value, state[key] * (scale if "lora_B" in key else 1)), (name, key)
    save_file({"something": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match="no LoRA of a Wan transformer"):
        read_lora(tmp_path / "other.safetensors")


def test_a_lora_of_mixed_ranks_is_attached_at_any_strength() -> None:
    transformer = tiny_transformer()
    inputs = torch.randn(3, 32, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(1)
    ranks = {"blocks.0.attn1.to_q": 2, "blocks.1.attn2.to_out.0": 5, "blocks.7.attn1.to_q": 2}
    state = {}
    for module, rank in ranks.items():
        state[f"{module}.lora_A.weight"] = torch.randn(rank, 32, generator=generator)
        state[f"{module}.lora_B.weight"] = torch.randn(32, rank, generator=generator)
    before = {module: transformer.get_submodule(module)(inputs) for module in list(ranks)[:2]}
    drawn = torch.get_rng_state()
    found = attach_changes(transformer, pairs_of(state, scale=1.0), strength=0.5, name="first")
    assert found.lost == ("blocks.7.attn1.to_q",)
    assert torch.equal(torch.get_rng_state(), drawn)
    for module, base in before.items():
        down, up = state[f"{module}.lora_A.weight"], state[f"{module}.lora_B.weight"]
        expected = base + 0.5 * inputs @ down.T @ up.T
        torch.testing.assert_close(transformer.get_submodule(module)(inputs), expected, rtol=0, atol=1e-4)
    assert not any(parameter.requires_grad for parameter in transformer.parameters())


IMAGE = {"in_channels": 36, "image_dim": 24}
WITH_IMAGE = ("all", "add_k_proj", "add_v_proj")


def saved(tmp_path: Path, transformer, **changes) -> Path:
    """A LoRA trained on `transformer`, as a file."""
    trained(transformer, **changes)
    path = tmp_path / "lora.safetensors"
    save_lora(path, adapter_state(transformer), scale=adapter_scale(transformer), metadata={}, transformer=transformer)
    return path


@pytest.mark.parametrize("base", [IMAGE, {"in_channels": 36}])
def test_a_lora_of_t2v_goes_on_i2v(base: dict, tmp_path: Path) -> None:
    """Beside the base, and as the beginning of training, with the image tokens' linears trained too."""
    state, _ = read_lora(saved(tmp_path, tiny_transformer()))
    found = attach_changes(tiny_transformer(**base), pairs_of(state, scale=1.0), strength=1.0, name="t2v")
    assert found.lost == ()
    plain = tiny_transformer(**base)
    add_lora(plain, options(), seed=5)
    assert start_from_lora(plain, tmp_path / "lora.safetensors") is None
    assert all(torch.equal(value, state[key]) for key, value in adapter_state(plain).items())
    if "image_dim" not in base:
        return
    target = tiny_transformer(**base)
    add_lora(target, options(lora_targets=WITH_IMAGE), seed=5)
    before = adapter_state(target)
    assert start_from_lora(target, tmp_path / "lora.safetensors") == (
        "4 linears for image tokens are not in it and begin at nothing"
    )
    after = adapter_state(target)
    assert all(torch.equal(after[key], state.get(key, before[key])) for key in after)


def test_a_lora_of_i2v_goes_on_t2v_without_its_image_tokens(tmp_path: Path) -> None:
    state, _ = read_lora(saved(tmp_path, tiny_transformer(**IMAGE), lora_targets=WITH_IMAGE))
    transformer = tiny_transformer()
    found = attach_changes(transformer, pairs_of(state, scale=1.0), strength=1.0, name="i2v")
    assert sorted(found.lost) == [f"blocks.{n}.attn2.add_{side}_proj" for n in (0, 1) for side in "kv"]
    target = tiny_transformer()
    add_lora(target, options(), seed=5)
    remark = start_from_lora(target, tmp_path / "lora.safetensors")
    assert remark == "4 of its linears, for image tokens, are not trained here"
    assert all(torch.equal(value, state[key]) for key, value in adapter_state(target).items())
