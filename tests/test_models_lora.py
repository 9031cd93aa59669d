"""LoRA and LyCORIS files of all tools, read, written and verified; the oracles are diffusers and lycoris-lora."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from lora_files import LINEARS, lycoris_tensors, merged_by_hand, pairs, predict, spelled
from safetensors.torch import load_file, save_file
from tiny import tiny_pipeline, tiny_transformer

from simplewan.errors import UserError
from simplewan.flavours import find_flavour
from simplewan.models.lora.approximate import as_lora
from simplewan.models.lora.attach import attach_changes
from simplewan.models.lora.change import LORA, WHOLE, Change
from simplewan.models.lora.doctor import LOADS, _same_product, verdicts
from simplewan.models.lora.formats import CONVENTIONS, parse_key
from simplewan.models.lora.read import examine_file, gather, read_file
from simplewan.models.lora.skeleton import shapes_of, shapes_told
from simplewan.models.lora.verify import verify_export
from simplewan.models.lora.write import describe, fitted, tensors_of, write_tensors

STYLES = ("universal", "bare", "kohya", "diffusers", "musubi", "peft", "lycoris")
LYCORIS = {
    "lokr": ("lokr", {"factor": 4}),
    "lokr of rank": ("lokr", {"factor": 2, "linear_dim": 2}),
    "lokr both": ("lokr", {"factor": 8, "linear_dim": 1, "decompose_both": True}),
    "loha": ("loha", {}),
    "locon": ("lora", {}),
    "dora": ("lora", {"dora_wd": True}),
    "dokr": ("lokr", {"factor": 4, "dora_wd": True}),
    "full": ("full", {}),
}
CLOSE = 2e-6  # sums in another order, float32
PAIR = {"down": torch.ones(4, 32), "up": torch.ones(32, 4)}


def write(path: Path, tensors: dict[str, torch.Tensor], **metadata: str) -> Path:
    save_file(tensors, path, metadata=metadata or None)
    return path


def acting(changes, *, strength: float = 1.0) -> torch.Tensor:
    transformer = tiny_transformer()
    assert attach_changes(transformer, changes, strength=strength, name="x").lost == ()
    return predict(transformer)


def distance(first: torch.Tensor, second: torch.Tensor) -> float:
    return (first - second).abs().max().item()


def export(changes, to: str, path: Path, dtype: torch.dtype = torch.float32) -> Path:
    """Written and verified against the real model's own weights."""
    shapes = {name: tuple(value.shape) for name, value in tiny_transformer().named_parameters()}
    write_tensors(path, tensors_of(changes, CONVENTIONS[to], dtype), {})
    verify_export(path, changes, convention=to, shapes=shapes, dtype=dtype)
    return path


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("alpha", [None, 2.0])
def test_a_lora_is_read_in_every_spelling(tmp_path: Path, style: str, alpha: float | None) -> None:
    found = pairs(tiny_transformer())
    file = read_file(write(tmp_path / "x.safetensors", spelled(found, style, alpha=alpha)))
    scale = 1.0 if alpha is None else alpha / 4
    assert {change.scale for change in file.changes} == {scale}
    by_hand = predict(merged_by_hand(found, scale=scale))
    assert distance(acting(file.changes), by_hand) < CLOSE
    assert distance(acting(file.changes, strength=0.5), by_hand) > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("to", ["universal", "diffusers", "musubi"])
@pytest.mark.parametrize("expert", ["high", "low"])
def test_pipelines_load_what_is_written(tmp_path: Path, to: str, expert: str) -> None:
    part = "transformer" if expert == "high" else "transformer_2"
    seed = 0 if expert == "high" else 1
    found = pairs(tiny_transformer(seed=seed))
    file = read_file(write(tmp_path / "source.safetensors", spelled(found, "kohya", alpha=2.0)))
    export(file.changes, to, tmp_path / "x.safetensors")
    pipeline = tiny_pipeline(two_experts=True)
    other = "transformer_2" if expert == "high" else "transformer"
    untouched = predict(pipeline.components[other])
    pipeline.load_lora_weights(tmp_path, weight_name="x.safetensors", load_into_transformer_2=expert == "low")
    by_hand = predict(merged_by_hand(found, scale=0.5, seed=seed))
    assert distance(predict(pipeline.components[part]), by_hand) < CLOSE
    assert torch.equal(predict(pipeline.components[other]), untouched)


@pytest.mark.parametrize("to", list(CONVENTIONS))
def test_keys_are_those_that_the_tool_looks_for(tmp_path: Path, to: str) -> None:
    found = pairs(tiny_transformer())
    file = read_file(write(tmp_path / "source.safetensors", spelled(found, "peft")))
    style, alpha = {"comfyui": ("universal", None), "musubi": ("musubi", 4.0), "lycoris": ("lycoris", 4.0)}.get(
        to, (to, None)
    )
    written = load_file(export(file.changes, to, tmp_path / "x.safetensors"))
    expected = spelled(found, style, alpha=alpha)
    assert written.keys() == expected.keys()
    assert all(torch.equal(written[key], expected[key]) for key in expected)


def test_the_alpha_of_pefts_configuration_counts(tmp_path: Path) -> None:
    found = pairs(tiny_transformer())
    config = {"lora_alpha": 2, "r": 4, "alpha_pattern": {"attn2.to_q": 8}}
    in_metadata = {f"transformer.{key}": value for key, value in config.items()}
    metadata = {"lora_adapter_metadata": json.dumps(in_metadata)}
    files = [write(tmp_path / "x.safetensors", spelled(found, "diffusers"), **metadata)]
    files.append(write(tmp_path / "adapter_model.safetensors", spelled(found, "peft")))
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    for path in files:
        scales = {change.module: change.scale for change in read_file(path).changes}
        assert scales["blocks.0.attn1.to_q"] == 0.5
        assert scales["blocks.1.attn2.to_q"] == 2
    (tmp_path / "adapter_config.json").write_text(json.dumps({**config, "use_rslora": True}))
    assert {change.scale for change in read_file(files[1]).changes} == {1.0, 4.0}


def test_the_pattern_of_alphas_may_use_either_naming(tmp_path: Path) -> None:
    """PEFT's patterns are for the names of the model that was trained: Wan's own, in tools that train that one."""
    found = pairs(tiny_transformer())
    for number, pattern in enumerate(("cross_attn.q", "attn2.to_q")):
        config = {"lora_alpha": 2, "alpha_pattern": {pattern: 8}}
        metadata = {"lora_adapter_metadata": json.dumps(config)}
        path = write(tmp_path / f"{number}.safetensors", spelled(found, "bare"), **metadata)
        scales = {change.module: change.scale for change in read_file(path).changes}
        assert (scales["blocks.0.attn1.to_q"], scales["blocks.1.attn2.to_q"]) == (0.5, 2)


def test_a_flat_pair_of_a_convolution_acts() -> None:
    generator = torch.Generator().manual_seed(4)
    down, up = torch.randn(2, 64, generator=generator) / 8, torch.randn(32, 2, generator=generator)
    changes = [Change("patch_embedding", LORA, {"down": down, "up": up}, alpha=4.0)]
    for linears in ((), ("attn1.to_q",)):
        found = pairs(tiny_transformer(), linears=linears)
        others = [Change(name, LORA, {"down": a, "up": b}) for name, (a, b) in found.items()]
        by_hand = merged_by_hand(found, scale=0.5)
        with torch.no_grad():
            by_hand.patch_embedding.weight += 0.5 * 2 * (up @ down).reshape(by_hand.patch_embedding.weight.shape)
        assert distance(acting([*changes, *others], strength=0.5), predict(by_hand)) < CLOSE
        assert distance(predict(merged_by_hand(found, scale=0.5)), predict(by_hand)) > 1e-3


def test_what_the_model_has_no_place_for_is_told_or_refused() -> None:
    transformer = tiny_transformer()
    q = Change("blocks.0.attn1.to_q", WHOLE, {"diff": torch.ones(32, 32)})
    absent = [Change(f"blocks.0.{name}", WHOLE, {"diff": torch.ones(32)}) for name in ("norm1", "attn2.norm_added_k")]
    absent.append(Change("condition_embedder.image_embedder.pos_embed", WHOLE, {"diff": torch.ones(1, 2, 3)}))
    found = attach_changes(transformer, [q, *absent], strength=1.0, name="x")
    assert (found.kept, found.lost) == ((q,), tuple(each.module for each in absent))
    assert "only 1 of its 4 modules are in the base, not blocks.0.norm1, " in str(found)
    for change, why in (
        (
            Change("blocks.0.attn1.norm_q", WHOLE, {}, bias=torch.ones(32)),
            r"none of its 1 modules .* such as blocks\.0\.attn1\.norm_q\.bias",
        ),
        (replace(q, bias=torch.ones(31)), r"is \(31,\), the base's is \(32,\)"),
        (Change("blocks.0.ffn.net.0.proj", WHOLE, {"diff": torch.ones(32, 64)}), r"the base's is \(64, 32\)"),
        (Change("blocks.0.attn1.to_q", LORA, {**PAIR}, dora=torch.ones(31, 1)), r"dora_scale .* is \(31, 1\)"),
    ):
        with pytest.raises(ValueError, match=why):
            attach_changes(tiny_transformer(), [change], strength=1.0, name="x")


def test_metadata_of_a_source_are_kept_but_for_those_of_its_own_format() -> None:
    pair = {"down": torch.ones(4, 32), "up": torch.ones(32, 4)}
    old = {"author": "me", "lora_adapter_metadata": "{}", "alpha": "2", "rank": "8", "lora_format": "theirs"}
    told = describe(old, [Change("blocks.0.attn1.to_q", LORA, pair)], text="ours", expert="low", flavour=None)
    assert told == {"author": "me", "format": "pt", "lora_format": "ours", "expert": "low_noise", "rank": "4"}


def test_what_a_source_tells_of_its_training_wins_over_its_flavour() -> None:
    flavour = find_flavour("t2v-mini-low")
    changes = [Change("blocks.0.attn1.to_q", LORA, {"down": torch.ones(4, 32), "up": torch.ones(32, 4)})]

    def told(**old: str) -> tuple[str | None, str | None]:
        found = describe(old, changes, text="ours", expert="low", flavour=flavour)
        return found.get("boundary"), found.get("shift")

    assert told(model_flavour="t2v-mini-low", boundary="0.5", shift="2.0") == ("0.5", "2.0")
    assert told(model_flavour="t2v-mini-low", boundary="0.5") == (
        "0.5",
        None,
    )  # trained with a shift for each resolution
    assert told() == ("0.6", "5.0")


def test_the_doctor_sees_when_diffusers_makes_another_product_of_a_pair() -> None:
    pair = {"lora_A": torch.ones(4, 32), "lora_B": torch.ones(32, 4)}
    change = Change("blocks.0.attn1.to_q", LORA, {"down": pair["lora_A"], "up": pair["lora_B"]}, alpha=4.0)
    assert _same_product(change, pair)
    for other in (replace(change, alpha=2.0), replace(change, dora=torch.ones(32, 1))):
        assert not _same_product(other, pair)
    assert not _same_product(change, {"lora_A": pair["lora_A"]})


def test_the_doctor_knows_that_diffusers_reads_its_own_metadata(tmp_path: Path) -> None:
    config = {
        f"transformer.{key}": value for key, value in {"r": 4, "lora_alpha": 2, "target_modules": LINEARS}.items()
    }
    tensors = spelled(pairs(tiny_transformer()), "diffusers")
    path = write(tmp_path / "x.safetensors", tensors, lora_adapter_metadata=json.dumps(config))
    pipeline = tiny_pipeline()
    pipeline.load_lora_weights(tmp_path, weight_name="x.safetensors")
    assert distance(predict(pipeline.transformer), acting(read_file(path).changes)) < CLOSE
    assert next(verdict for verdict in verdicts(read_file(path)) if verdict.tool == "diffusers").outcome == LOADS


@pytest.mark.parametrize("name", list(LYCORIS))
def test_lycoris_acts_as_in_lycoris_lora(name: str) -> None:
    algorithm, settings = LYCORIS[name]
    trained, tensors = lycoris_tensors(algorithm, **settings)
    file = gather(Path("x"), tensors, {}, {})
    assert file.faults() == []
    assert distance(acting(file.changes), predict(trained)) < CLOSE
    assert distance(predict(trained), predict(tiny_transformer())) > 1e-2
    norms = [change.delta().norm().item() for change in file.changes]
    assert [change.norm() for change in file.changes] == pytest.approx(norms, rel=1e-4)


@pytest.mark.parametrize("name", list(LYCORIS))
@pytest.mark.parametrize("to", ["comfyui", "lycoris", "musubi"])
def test_lycoris_keeps_its_factors_in_other_keys(tmp_path: Path, name: str, to: str) -> None:
    algorithm, settings = LYCORIS[name]
    trained, tensors = lycoris_tensors(algorithm, **settings)
    file = gather(Path("x"), tensors, {}, {})
    kept, lost = fitted(file.changes, CONVENTIONS[to])
    if name in ("dora", "dokr", "full") and to == "musubi":
        assert kept == []
        with pytest.raises(ValueError, match="musubi files cannot say"):
            tensors_of(file.changes, CONVENTIONS[to], torch.float32)
        return
    assert lost == []
    path = export(kept, to, tmp_path / "x.safetensors")
    assert distance(acting(read_file(path).changes), predict(trained)) < CLOSE
    if to == "lycoris":
        again = load_file(path)
        assert again.keys() == tensors.keys()
        assert all(torch.equal(again[key], tensors[key]) for key in tensors if not key.endswith("alpha"))


def test_lycoris_lora_loads_what_is_written(tmp_path: Path) -> None:
    from lycoris import create_lycoris_from_weights

    trained, tensors = lycoris_tensors("lokr", factor=2, linear_dim=2)
    comfy = tensors_of(gather(Path("x"), tensors, {}, {}).changes, CONVENTIONS["comfyui"], torch.float32)
    path = export(gather(Path("y"), comfy, {}, {}).changes, "lycoris", tmp_path / "x.safetensors")
    other = tiny_transformer()
    network, _ = create_lycoris_from_weights(1.0, str(path), other)
    network.apply_to()
    assert distance(predict(other.eval()), predict(trained)) < CLOSE


def distilled() -> dict[str, torch.Tensor]:
    """Whole differences of biases, norms, modulations and the head, as distillation files carry them."""
    found = spelled(pairs(tiny_transformer(), linears=("attn1.to_q",)), "kohya")
    generator = torch.Generator().manual_seed(1)
    for name, shape in {
        "blocks.0.self_attn.q.diff_b": (32,),
        "blocks.0.self_attn.norm_q.diff": (32,),
        "blocks.1.norm3.diff": (32,),
        "blocks.1.norm3.diff_b": (32,),
        "blocks.1.diff_m": (1, 6, 32),
        "head.diff_m": (1, 2, 32),
        "head.head.diff": (64, 32),
        "head.head.diff_b": (64,),
        "blocks.1.ffn.0.diff_b": (64,),
    }.items():
        found[f"diffusion_model.{name}"] = torch.randn(shape, generator=generator) / 8
    return found


def by_hand_distilled(tensors: dict[str, torch.Tensor]) -> torch.nn.Module:
    transformer = merged_by_hand(pairs(tiny_transformer(), linears=("attn1.to_q",)), scale=1.0)
    block0, block1 = transformer.blocks
    with torch.no_grad():
        for parameter, name in (
            (block0.attn1.to_q.bias, "blocks.0.self_attn.q.diff_b"),
            (block0.attn1.norm_q.weight, "blocks.0.self_attn.norm_q.diff"),
            (block1.norm2.weight, "blocks.1.norm3.diff"),  # Wan's norm3 is diffusers' norm2
            (block1.norm2.bias, "blocks.1.norm3.diff_b"),
            (block1.scale_shift_table, "blocks.1.diff_m"),
            (transformer.scale_shift_table, "head.diff_m"),
            (transformer.proj_out.weight, "head.head.diff"),
            (transformer.proj_out.bias, "head.head.diff_b"),
            (block1.ffn.net[0].proj.bias, "blocks.1.ffn.0.diff_b"),
        ):
            parameter += tensors[f"diffusion_model.{name}"]
    return transformer


def test_whole_differences_of_norms_biases_and_modulation_are_kept(tmp_path: Path) -> None:
    tensors = distilled()
    expected = predict(by_hand_distilled(tensors))
    file = read_file(write(tmp_path / "source.safetensors", tensors))
    assert distance(acting(file.changes), expected) < CLOSE
    for to, word in (("universal", "blocks.1.diff_m"), ("comfyui", "blocks.1.modulation.diff")):
        path = export(file.changes, to, tmp_path / f"{to}.safetensors")
        assert f"diffusion_model.{word}" in load_file(path)
        assert distance(acting(read_file(path).changes), expected) < CLOSE
    for to, known in (("diffusers", 2), ("musubi", 2), ("lycoris", 5)):
        kept, lost = fitted(file.changes, CONVENTIONS[to])
        assert len(kept) == known, to
        assert any("blocks.1.scale_shift_table" in reason for reason in lost)
        export(kept, to, tmp_path / f"{to}.safetensors")


def test_diffusers_gets_the_bias_of_a_lora(tmp_path: Path) -> None:
    tensors = spelled(pairs(tiny_transformer()), "universal")
    tensors["diffusion_model.blocks.0.self_attn.q.diff_b"] = torch.full((32,), 0.25)
    file = read_file(write(tmp_path / "source.safetensors", tensors))
    path = export(file.changes, "diffusers", tmp_path / "x.safetensors")
    assert "transformer.blocks.0.attn1.to_q.lora_B.bias" in load_file(path)
    pipeline = tiny_pipeline()
    pipeline.load_lora_weights(tmp_path, weight_name="x.safetensors")
    assert distance(predict(pipeline.transformer), acting(file.changes)) < CLOSE
    assert distance(acting(read_file(path).changes), acting(file.changes)) < CLOSE


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_dtype_rounds_and_is_verified_as_such(tmp_path: Path, dtype: torch.dtype) -> None:
    changes = read_file(write(tmp_path / "s.safetensors", spelled(pairs(tiny_transformer()), "kohya"))).changes
    path = export(changes, "universal", tmp_path / "x.safetensors", dtype)
    assert {value.dtype for value in load_file(path).values()} == {dtype}


def damage(tensors: dict[str, torch.Tensor], kind: str) -> None:
    key = "lora_unet_blocks_1_cross_attn_v.lora_up.weight"
    if kind == "value":
        tensors[key] = tensors[key] * 1.001
    elif kind == "alpha":
        tensors[key.replace("lora_up.weight", "alpha")] *= 2
    elif kind == "swapped":
        other = key.replace("_v.", "_k.")
        tensors[key], tensors[other] = tensors[other], tensors[key]
    elif kind == "missing":
        for word in ("lora_up.weight", "lora_down.weight", "alpha"):
            del tensors[key.replace("lora_up.weight", word)]
    elif kind == "half":
        del tensors[key]
    elif kind == "strange":
        tensors["lora_unet_blocks_1_cross_attn_w.alpha"] = torch.tensor(1.0)
    else:
        tensors["lora_unet_blocks_1.something"] = torch.tensor(1.0)


@pytest.mark.parametrize("kind", ["value", "alpha", "swapped", "missing", "half", "strange", "key"])
def test_a_file_that_reads_back_otherwise_is_refused(tmp_path: Path, kind: str) -> None:
    changes = read_file(write(tmp_path / "s.safetensors", spelled(pairs(tiny_transformer()), "kohya"))).changes
    tensors = tensors_of(changes, CONVENTIONS["musubi"], torch.float32)
    damage(tensors, kind)
    path = write(tmp_path / "x.safetensors", tensors)
    with pytest.raises(ValueError, match=r"x\.safetensors|the model has no"):
        verify_export(path, changes, convention="musubi", shapes=shapes_told(changes), dtype=torch.float32)


def test_what_has_no_place_in_the_model_is_refused(tmp_path: Path) -> None:
    changes = read_file(write(tmp_path / "s.safetensors", spelled(pairs(tiny_transformer(layers=3)), "kohya"))).changes
    with pytest.raises(ValueError, match="the model has no"):
        export(changes, "universal", tmp_path / "x.safetensors")
    wide = pairs(tiny_transformer(dim=48))
    changes = read_file(write(tmp_path / "w.safetensors", spelled(wide, "kohya"))).changes
    with pytest.raises(ValueError, match="the base's is"):
        export(changes, "universal", tmp_path / "x.safetensors")


@pytest.mark.parametrize(
    ("key", "module", "part"),
    [
        ("diffusion_model.blocks.3.cross_attn.k_img.lora_up.weight", "blocks.3.attn2.add_k_proj", "up"),
        ("model.diffusion_model.blocks.3.ffn.2.alpha", "blocks.3.ffn.net.2", "alpha"),
        ("lora_unet__blocks_12_ffn_0.lora_down.weight", "blocks.12.ffn.net.0.proj", "down"),
        ("lora_unet_img_emb_proj_1.lora_down.weight", "condition_embedder.image_embedder.ff.net.0.proj", "down"),
        ("diffusion_model.blocks.0.norm2.diff", "blocks.0.norm3", "diff"),
        ("lora_unet_time_projection_1.lokr_w2_a", "condition_embedder.time_proj", "lokr_w2_a"),
        ("pipe.dit.blocks.0.self_attn.o.lora_B.default.weight", "blocks.0.attn1.to_out.0", "up"),
        ("lora_unet_blocks_0_diff_m", None, None),
        ("lora_te_text_model_encoder_layers_0.lora_up.weight", None, None),
        ("diffusion_model.blocks.0.self_attn.lora_up.weight", None, None),
        ("something", None, None),
    ],
)
def test_keys_are_told_apart(key: str, module: str | None, part: str | None) -> None:
    found = parse_key(key, naming="original")
    assert (found and found.module, found and found.part) == (module, part)


def test_what_is_not_understood_is_named_and_refused(tmp_path: Path) -> None:
    tensors = spelled(pairs(tiny_transformer()), "universal")
    del tensors["diffusion_model.blocks.0.self_attn.q.lora_B.weight"]
    tensors["diffusion_model.blocks.0.attention.lora_A.weight"] = torch.zeros(4, 32)
    tensors["diffusion_model.blocks.0.self_attn.k.lora_down.weight"] = torch.zeros(4, 32)
    path = write(tmp_path / "x.safetensors", tensors)
    file = examine_file(path)
    assert file.unknown == ("diffusion_model.blocks.0.attention.lora_A.weight",)
    assert file.unpaired == ("blocks.0.attn1.to_q (down)",)
    assert len(file.duplicated) == 1
    with pytest.raises(UserError) as raised:
        read_file(path)
    assert all(word in str(raised.value) for word in ("1 keys", "1 incomplete", "1 tensors that are there twice"))
    del tensors["diffusion_model.blocks.0.self_attn.q.lora_A.weight"]
    del tensors["diffusion_model.blocks.0.self_attn.k.lora_down.weight"]
    assert len(read_file(write(path, tensors), drop=True).changes) == 19


def test_a_strength_multiplies_every_kind() -> None:
    tensors = distilled() | {
        key.replace("lycoris_blocks_0_attn1_to_k", "diffusion_model.blocks.0.self_attn.k"): value
        for key, value in lycoris_tensors("lokr", factor=4)[1].items()
        if "blocks_0_attn1_to_k" in key
    }
    changes = gather(Path("x"), tensors, {}, {}).changes
    for change in changes:
        twice = change.times(2.0)
        if change.factors:
            torch.testing.assert_close(twice.delta(), 2 * change.delta())
        if change.bias is not None:
            torch.testing.assert_close(twice.bias, 2 * change.bias)
    dora = replace(changes[0], kind=LORA, dora=torch.ones(32, 1))
    with pytest.raises(ValueError, match="not a factor"):
        dora.times(2.0)


def test_the_nearest_lora_is_the_truncated_decomposition() -> None:
    generator = torch.Generator().manual_seed(0)
    delta = torch.randn(48, 32, generator=generator)
    near, error = as_lora(Change("m", WHOLE, {"diff": delta}), 5)
    values = torch.linalg.svdvals(delta)
    assert error == pytest.approx(float(values[5:].norm() / values.norm()), rel=1e-4)
    assert ((near.delta() - delta).norm() / delta.norm()).item() == pytest.approx(error, rel=1e-4)
    down, up = torch.randn(8, 32, generator=generator), torch.randn(48, 8, generator=generator)
    pair = Change("m", LORA, {"down": down, "up": up}, alpha=4.0)
    smaller, error = as_lora(pair, 3)
    values = torch.linalg.svdvals(pair.delta())
    assert smaller.rank == 3
    assert error == pytest.approx(float(values[3:].norm() / values.norm()), rel=1e-3)
    assert as_lora(pair, 8) == (pair, 0.0)
    large = up.new_tensor(torch.randn(1100, 4, generator=generator)) @ torch.randn(4, 1040, generator=generator)
    near, error = as_lora(Change("m", WHOLE, {"diff": large}), 4)
    assert error < 1e-3
    torch.testing.assert_close(near.delta(), large, rtol=1e-3, atol=1e-3)


def test_the_skeleton_is_the_model_that_the_shapes_tell_of(tmp_path: Path) -> None:
    transformer = tiny_transformer(image_dim=24)
    found = pairs(transformer, linears=(*LINEARS, "attn2.add_k_proj", "attn2.add_v_proj"))
    changes = read_file(write(tmp_path / "s.safetensors", spelled(found, "universal"))).changes
    real, told = shapes_of(transformer.config), shapes_told(changes)
    assert real == {name: tuple(value.shape) for name, value in transformer.named_parameters()}
    assert told.keys() == real.keys()
    assert all(told[f"{module}.weight"] == real[f"{module}.weight"] for module in found)
    published = [Change("blocks.29.attn1.to_q", LORA, {"down": torch.zeros(1, 1536), "up": torch.zeros(1536, 1)})]
    assert shapes_told(published)["blocks.29.ffn.net.2.weight"] == (1536, 8960)
