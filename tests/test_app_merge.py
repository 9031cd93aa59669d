"""`simpletuner export --to merged`: which base, which expert, and what is refused, through the real parser."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffusers import WanTransformer3DModel
from lora_files import merged_by_hand, pairs, predict, spelled, wan_name
from originals import fp8_scaled, original_transformer, save_original_model, save_shards
from safetensors.torch import load_file, save_file
from tiny import save_tiny_model, tiny_transformer

from simplewan.cli import main
from simplewan.models.lora import merge as merge_module
from simplewan.models.lora.change import LORA, WHOLE, Change
from simplewan.models.lora.fit import Misfit, fit

CLOSE = 2e-6
WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("merge") / "model", two_experts=True)


@pytest.fixture(autouse=True)
def alone(apart: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda **_: pytest.fail("the hub was asked"))


def lora(name: str, *, seed: int = 3, **metadata: str) -> dict:
    found = pairs(tiny_transformer(), seed=seed)
    save_file(spelled(found, "universal"), f"{name}.safetensors", metadata=metadata or None)
    return found


def merged(*words: str) -> int:
    return main(["export", *words, "--to", "merged", "output=there"])


def distance(folder: Path, other: torch.nn.Module) -> float:
    return (predict(WanTransformer3DModel.from_pretrained(folder).eval()) - predict(other)).abs().max().item()


def nothing_there() -> bool:
    return not Path("there").exists() or not list(Path("there").iterdir())


@pytest.mark.parametrize("to", ["merged", "musubi"])
def test_an_expert_that_the_files_contradict_is_refused(
    model: Path, to: str, capfd: pytest.CaptureFixture[str]
) -> None:
    Path("run").mkdir()
    for name, metadata in (("a_high_noise", {}), ("b", {"expert": "low_noise"})):
        lora(f"run/{name}", **metadata)
    words = ["run", "--to", to, f"base={model}", "output=there"]
    assert main(["export", *words, "expert=high"]) == 2
    said = capfd.readouterr().err
    assert "which is for low noise" in said and "b.safetensors" in said and "a_high_noise" not in said
    assert nothing_there()
    assert main(["export", *words]) == 0


def test_a_file_that_tells_no_expert_is_asked_for_one(model: Path, capfd: pytest.CaptureFixture[str]) -> None:
    found = lora("untold")
    lora("older", model_flavour="t2v-480p-14b-2.1")
    original = save_original_model(Path("original"), "t2v-a14b")
    for base in (model, original, "Wan-AI/Wan2.2-T2V-A14B-Diffusers"):
        for file in ("untold", "older"):
            assert merged(f"{file}.safetensors", f"base={base}") == 2
            assert "say expert=high or expert=low" in capfd.readouterr().err
    assert nothing_there()
    assert merged("untold.safetensors", f"base={original}", "expert=low") == 0
    assert merged("older.safetensors", f"base={model}", "expert=high") == 0
    assert distance(Path("there/transformer_2"), merged_by_hand(found, scale=1.0, seed=1)) < CLOSE
    assert distance(Path("there/transformer"), merged_by_hand(found, scale=1.0)) < CLOSE


@pytest.mark.parametrize("other", ["high", "low"])
def test_the_base_of_the_other_expert_is_refused(
    other: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A transformer tells its expert by the name of its file, of its folder, or by where diffusers puts it."""
    own = "low" if other == "high" else "high"
    parts = {"high": "transformer", "low": "transformer_2"}
    lora(f"pytorch_lora_weights_{own}_noise")
    lora("x", expert=f"{own}_noise")
    save_original_model(Path("repo"), "t2v-a14b")
    for expert in ("high", "low"):
        save_file(original_transformer(tiny_transformer()), f"wan2.2_t2v_{expert}_noise_14B_fp16.safetensors")
    named = f"wan2.2_t2v_{other}_noise_14B_fp16.safetensors"
    bases = [named, f"repo/{other}_noise_model", f"{model}/{parts[other]}", f"{model}/{parts[other]}/{WEIGHTS}"]
    names = [f"pretrained_transformer{number}_model_name_or_path={named}" for number in ("", "_2")]
    wrong = [*([f"base={base}"] for base in bases), [names[own == "low"], "model_flavour=t2v-a14b-2.2"]]
    with monkeypatch.context() as patch:
        patch.setattr("simplewan.app.merging.open_base", lambda _: pytest.fail("the base was opened"))
        for words in wrong:
            for file in (f"pytorch_lora_weights_{own}_noise", "x"):
                assert merged(f"{file}.safetensors", *words, "layout=original") == 2
                said = capfd.readouterr().err
                assert f"is the {other}-noise expert, expected the {own}-noise one, which {file}.safetensors" in said
                assert f"name the {own}-noise transformer, or a LoRA of the {other}-noise expert" in said
                assert ("command line: base = " in said) == words[0].startswith("base=")
    monkeypatch.chdir(model / parts[other])
    assert merged(str(tmp_path / "x.safetensors"), "base=.") == 2
    monkeypatch.chdir(tmp_path)
    assert "is the" in capfd.readouterr().err and nothing_there()
    for base in bases:
        right = base.replace(f"{other}_noise", f"{own}_noise").replace(f"{parts[other]}/", f"{parts[own]}/")
        right = f"{model}/{parts[own]}" if right == f"{model}/{parts[other]}" else right
        assert merged("x.safetensors", f"base={right}", "layout=original", "--overwrite") == 0


def test_a_transformer_beside_no_other_is_any_experts() -> None:
    lora("x_low_noise")
    tiny_transformer().save_pretrained("alone/transformer")
    assert merged("x_low_noise.safetensors", "base=alone/transformer") == 0


def test_a_merged_file_is_called_what_it_is() -> None:
    """In other tools' lists it is a model, and no LoRA."""
    lora("pytorch_lora_weights_low_noise")
    lora("fox_low_noise")
    tiny_transformer().save_pretrained("base")
    for file in ("pytorch_lora_weights", "fox"):
        assert merged(f"{file}_low_noise.safetensors", "base=base", "layout=original") == 0
    names = {"transformer_merged_low_noise.safetensors", "fox_merged_low_noise.safetensors"}
    assert {path.name for path in Path("there").iterdir()} == names


def test_two_transformers_that_are_named_are_two_experts(capfd: pytest.CaptureFixture[str]) -> None:
    lora("untold")
    words = []
    for number, part in enumerate(("", "_2")):
        tiny_transformer(seed=number).save_pretrained(f"base{number}")
        words += [f"pretrained_transformer{part}_model_name_or_path=base{number}"]
        words += [f"pretrained_transformer{part}_subfolder=none"]
    assert merged("untold.safetensors", *words) == 2
    assert "say expert=high or expert=low" in capfd.readouterr().err
    assert merged("untold.safetensors", *words[:2]) == 0


def test_an_original_base_becomes_a_folder_of_diffusers(capfd: pytest.CaptureFixture[str]) -> None:
    found = lora("x")
    base = save_original_model(Path("original"), "t2v")
    assert merged("x.safetensors", f"base={base}") == 0
    config = json.loads(Path("there/transformer/config.json").read_text())
    assert config["_class_name"] == "WanTransformer3DModel" and config["num_attention_heads"] == 2
    assert "dim" not in config
    assert distance(Path("there/transformer"), merged_by_hand(found, scale=1.0)) < CLOSE
    assert main(["export", "x.safetensors", "--to", "diffusers", f"base={base}"]) == 0
    lora_of_another = pairs(tiny_transformer(layers=3))
    save_file(spelled(lora_of_another, "universal"), "deeper.safetensors")
    assert main(["export", "deeper.safetensors", "--to", "diffusers", f"base={base}"]) == 2
    assert "the model has no" in capfd.readouterr().err


def test_shards_without_a_configuration_tell_by_their_shapes(capfd: pytest.CaptureFixture[str]) -> None:
    wide = tiny_transformer(dim=128, heads=1)
    save_file(spelled(pairs(wide), "universal"), "wide.safetensors")
    lora("narrow")
    save_shards(wide, Path("wide"), config=False)
    save_shards(tiny_transformer(), Path("narrow"), config=False)
    assert merged("wide.safetensors", "base=wide") == 0
    written = WanTransformer3DModel.from_pretrained("there/transformer")
    assert written.config.attention_head_dim == 128
    assert merged("narrow.safetensors", "base=narrow", "--overwrite") == 2
    assert "how many heads" in capfd.readouterr().err
    next(Path("wide").glob("*-00002-of-*")).unlink()
    assert merged("wide.safetensors", "base=wide", "--overwrite") == 2
    assert "cannot be read" in capfd.readouterr().err


def test_weights_of_another_shape_than_the_configuration_says_are_refused(capfd: pytest.CaptureFixture[str]) -> None:
    lora("x")
    tiny_transformer().save_pretrained("base")
    config = json.loads(Path("base/config.json").read_text())
    Path("base/config.json").write_text(json.dumps({**config, "ffn_dim": 96}))
    assert merged("x.safetensors", "base=base") == 2
    assert "not those that its config.json speaks of" in capfd.readouterr().err
    assert nothing_there()


@pytest.mark.parametrize("fault", ["not applied", "half", "bias", "other", "ulp"])
def test_a_merge_of_bf16_is_read_back_to_the_last_bit(
    fault: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The LoRA changes weights by about a thousandth, less than bf16 rounds most of them."""
    tensors = spelled(pairs(tiny_transformer()), "kohya", alpha=0.02)
    tensors["diffusion_model.blocks.0.self_attn.q.diff_b"] = torch.full((32,), 0.02)
    save_file(tensors, "x.safetensors")
    tiny_transformer().to(torch.bfloat16).save_pretrained("base")
    assert merged("x.safetensors", "base=base") == 0
    load = merge_module._load

    def faulty(tensor, changes, *, dtype, progress):
        value, bias = load(tensor, changes, dtype=dtype, progress=progress), tensor.key.endswith(".bias")
        if fault == "not applied" and changes and not bias:
            return tensor.read().to(dtype)
        if fault == "half" and changes and not bias:
            return load(tensor, [change.times(0.5) for change in changes], dtype=dtype, progress=progress)
        if fault == "bias" and changes and bias:
            return tensor.read().to(dtype)
        if fault == "other" and tensor.key == "blocks.1.attn2.to_out.0.bias":
            return -value
        if fault == "ulp" and tensor.key == "blocks.1.attn2.to_q.weight":
            value.view(torch.int16)[0, 0] += 1
        return value

    monkeypatch.setattr(merge_module, "_load", faulty)
    assert merged("x.safetensors", "base=base", "--overwrite") == 2
    said = capfd.readouterr().err
    assert ("reads back otherwise" in said) != (fault == "other")
    assert ("is not the base's" in said) == (fault == "other")


def test_what_a_dtype_cannot_hold_is_refused(capfd: pytest.CaptureFixture[str]) -> None:
    save_file({"diffusion_model.blocks.0.self_attn.q.diff_b": torch.full((32,), 1e5)}, "x.safetensors")
    tiny_transformer().save_pretrained("base")
    assert merged("x.safetensors", "base=base", "dtype=fp16") == 2
    assert "not finite" in capfd.readouterr().err
    assert merged("x.safetensors", "base=base") == 0


def test_changes_without_a_place_are_left_out_when_asked(capfd: pytest.CaptureFixture[str]) -> None:
    found = pairs(tiny_transformer())
    tensors = spelled(found, "universal")
    for name, width in (("blocks.0.cross_attn.k_img", 32), ("img_emb.proj.1", 32)):
        tensors[f"diffusion_model.{name}.lora_A.weight"] = torch.ones(4, width)
        tensors[f"diffusion_model.{name}.lora_B.weight"] = torch.ones(width, 4)
    tensors["diffusion_model.blocks.0.cross_attn.norm_k_img.diff"] = torch.ones(32)
    tensors["diffusion_model.blocks.0.cross_attn.norm_q.diff_b"] = torch.ones(32)
    save_file(tensors, "x.safetensors")
    tiny_transformer().save_pretrained("base")
    assert merged("x.safetensors", "base=base") == 2
    said = capfd.readouterr().err
    assert "the base has no" in said and "--drop" in said and "Traceback" not in said
    assert merged("x.safetensors", "base=base", "--drop") == 0
    said = capfd.readouterr().err
    assert "left out" in said and "image_embedder.ff.net.0.proj" in said and "add_k_proj" in said
    assert distance(Path("there/transformer"), merged_by_hand(found, scale=1.0)) < CLOSE
    only = {key: value for key, value in tensors.items() if "img" in key}
    save_file(only, "image.safetensors")
    assert merged("image.safetensors", "base=base", "--drop", "--overwrite") == 2
    assert "none of its 3 modules is in the base" in capfd.readouterr().err


def test_a_bias_of_another_length_is_refused(capfd: pytest.CaptureFixture[str]) -> None:
    save_file({"diffusion_model.blocks.0.self_attn.q.diff_b": torch.ones(31)}, "x.safetensors")
    tiny_transformer().save_pretrained("base")
    assert merged("x.safetensors", "base=base") == 2
    said = capfd.readouterr().err
    assert "the bias of blocks.0.attn1.to_q is (31,), the base's is (32,)" in said and "Traceback" not in said


def test_overwriting_takes_nothing_but_what_a_merge_wrote(capfd: pytest.CaptureFixture[str]) -> None:
    lora("x")
    tiny_transformer().save_pretrained("there/transformer")
    base = f"base=there/transformer/{WEIGHTS}"
    before = Path("there/transformer", WEIGHTS).read_bytes()
    assert merged("x.safetensors", base, "--overwrite") == 2
    assert "holds what is read" in capfd.readouterr().err
    tiny_transformer(seed=1).save_pretrained("base")
    assert merged("x.safetensors", "base=base", "--overwrite") == 2
    assert f"holds {WEIGHTS}, which no merge wrote" in capfd.readouterr().err
    assert Path("there/transformer", WEIGHTS).read_bytes() == before
    assert main(["export", "x.safetensors", "--to", "merged", "base=base", "output=free"]) == 0
    again = ["export", "x.safetensors", "--to", "merged", "base=base", "output=free", "--overwrite", "scale=2"]
    first = load_file(Path("free/transformer", WEIGHTS))
    assert main(again) == 0
    key = "blocks.0.attn1.to_q.weight"
    assert not torch.equal(first[key], load_file(Path("free/transformer", WEIGHTS))[key])
    Path("free/transformer/notes.txt").write_text("mine")
    assert main(again) == 2
    assert "holds notes.txt" in capfd.readouterr().err
    assert Path("free/transformer/notes.txt").read_text() == "mine"
    Path("one.safetensors").mkdir()
    assert main([*again[:-3], "layout=original", "output=one.safetensors", "--overwrite"]) == 2
    assert "is a folder" in capfd.readouterr().err


def another(layers: int, dim: int = 32) -> str:
    save_file(spelled(pairs(tiny_transformer(layers=layers, dim=dim)), "universal"), f"{layers}x{dim}.safetensors")
    return f"{layers}x{dim}.safetensors"


@pytest.mark.parametrize(
    ("layers", "dim", "blocks", "said"),
    [
        (4, 32, 2, "only 20 of its 40 modules are in the base, not blocks.2.attn1.to_k, "),
        (2, 48, 2, "blocks.0.attn1.to_k is (48, 48), the base's is (32, 32)"),
        (2, 32, 0, "none of its 20 modules is in the base, such as blocks.0.attn1.to_k, "),
    ],
)
def test_a_lora_of_another_model_is_refused_and_both_are_named(
    layers: int, dim: int, blocks: int, said: str, capfd: pytest.CaptureFixture[str]
) -> None:
    tiny_transformer(layers=blocks).save_pretrained("base")
    assert merged(another(layers, dim), "base=base") == 2
    error = capfd.readouterr().err
    assert said in error and "Traceback" not in error
    if blocks:
        assert f"it is for a model of no published size ({dim} wide, at least {layers} blocks)" in error
    assert f", the base is a model of no published size ({32 if blocks else '?'} wide, {blocks} blocks)" in error
    assert nothing_there()


def test_a_lora_that_touches_little_is_not_accused_of_another_model() -> None:
    """The inputs and the image tokens of a model are told by few layers, which most LoRAs leave alone."""
    base = {f"blocks.{block}.attn1.to_q.weight": (5120, 5120) for block in range(40)}
    base |= {f"blocks.{block}.ffn.net.2.weight": (5120, 13824) for block in range(40)}
    base |= {"patch_embedding.weight": (5120, 36, 1, 2, 2), "blocks.0.attn2.add_k_proj.weight": (5120, 5120)}

    def change(module: str, out: int = 5120, inner: int = 5120) -> Change:
        return Change(module, LORA, {"down": torch.empty(1, inner), "up": torch.empty(out, 1)})

    def told(*changes: Change, of: dict[str, tuple[int, ...]] = base) -> str:
        return str(fit(changes, of))

    attention = [change(f"blocks.{block}.attn1.to_q") for block in range(40)]
    lost = change("condition_embedder.time_proj", 6 * 5120)
    assert told(*attention, lost) == "only 40 of its 41 modules are in the base, not condition_embedder.time_proj"
    norm = Change("blocks.0.norm2", WHOLE, {"diff": torch.ones(5120)})
    assert told(norm, change("patch_embedding", inner=144)).endswith("not blocks.0.norm2")
    image = change("blocks.0.attn2.add_k_proj")
    without = {name: shape for name, shape in base.items() if "add_" not in name}
    assert told(*attention, image, of=without).endswith(
        "; it is for Wan 2.1 I2V 14B (CLIP's image tokens), the base is Wan I2V 14B"
    )
    patch = Change("patch_embedding", WHOLE, {"diff": torch.empty(5120, 16, 1, 2, 2, device="meta")})
    with pytest.raises(Misfit, match=r"; it is for Wan 14B: 2\.1, or an expert of 2\.2 A14B, the base is Wan 2\.1 I2V"):
        fit([*attention, patch], base)
    with pytest.raises(Misfit, match="; its feed-forward is 8960 wide, the base's 13824"):
        fit([*attention, change("blocks.0.ffn.net.2", inner=8960)], base)


def test_a_base_that_is_damaged_is_refused_without_a_traceback(capfd: pytest.CaptureFixture[str]) -> None:
    lora("x")
    save_file(original_transformer(tiny_transformer()), "base.safetensors")
    whole = Path("base.safetensors").read_bytes()
    Path("base.safetensors").write_bytes(whole + b"\0\0")
    assert merged("x.safetensors", "base=base.safetensors", "layout=original") == 2
    assert "base.safetensors is damaged: it has 2 bytes after its end" in capfd.readouterr().err
    Path("base.safetensors").write_bytes(whole.replace(b'"data_offsets":[0,', b'"data_offsets":[4,'))
    assert merged("x.safetensors", "base=base.safetensors", "layout=original") == 2
    said = capfd.readouterr().err
    assert "base.safetensors is damaged (" in said and "Traceback" not in said
    assert nothing_there()


def test_how_many_modules_were_merged_is_always_said(capfd: pytest.CaptureFixture[str]) -> None:
    tiny_transformer(layers=4).save_pretrained("base")
    assert merged(another(4), "base=base") == 0
    captured = capfd.readouterr()
    assert captured.out.startswith("there/transformer: 40 of 40 modules") and "warning" not in captured.err
    assert merged(another(2), "base=base", "--overwrite") == 0
    captured = capfd.readouterr()
    assert captured.out.startswith("there/transformer: 20 of 20 modules")
    assert "2x32.safetensors changes nothing behind block 1, and the base has 4 blocks" in captured.err
    assert merged(another(6), "base=base", "--overwrite", "--drop", "--json") == 0
    captured = capfd.readouterr()
    (record,) = json.loads(captured.out)
    assert (record["modules"], record["modules_of_source"]) == (40, 60)
    assert "only 40 of its 60 modules" in captured.err


def test_files_for_another_flavour_than_the_one_named_are_warned_of(
    model: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    lora("x", model_flavour="t2v-mini-low", expert="low_noise")
    assert merged("x.safetensors", f"base={model}", "model_flavour=t2v-mini") == 0
    assert "trained for" not in capfd.readouterr().err
    assert merged("x.safetensors", f"base={model}", "model_flavour=t2v-a14b-2.2", "--overwrite") == 0
    assert "was trained for t2v-mini-low, and is put on t2v-a14b-2.2" in capfd.readouterr().err


@pytest.mark.parametrize("metadata", [{}, {"model_flavour": "t2v-mini"}])
def test_how_a_base_is_named_is_told(metadata: dict[str, str], capfd: pytest.CaptureFixture[str]) -> None:
    lora("x_high_noise", **metadata)
    assert merged("x_high_noise.safetensors") == 2
    said = capfd.readouterr().err
    assert "example=mini, env=NAME or --config FILE" in said
    assert ("base=PLACE" in said) != bool(metadata)


@pytest.mark.parametrize("kind", ["plain", "scale_weight", "weight_scale", "shards"])
@pytest.mark.parametrize("layout", ["diffusers", "original"])
def test_an_fp8_base_is_taken_for_what_it_stands_for(kind: str, layout: str, capfd: pytest.CaptureFixture[str]) -> None:
    state = original_transformer(tiny_transformer(dim=128, heads=1))
    found = pairs(tiny_transformer(dim=128, heads=1))
    save_file(spelled(found, "universal"), "x.safetensors")
    if kind == "plain":
        stored = {key: value.to(torch.float8_e4m3fn) if value.ndim == 2 else value for key, value in state.items()}
        meant = {key: value.float() for key, value in stored.items()}
    else:
        suffix = "scale_weight" if kind == "shards" else kind
        stored = fp8_scaled(state, marker=suffix == "scale_weight", suffix=suffix)
        meant = {
            key: stored[key].float() * stored.get(f"{key.removesuffix('.weight')}.{suffix}", torch.tensor(1.0))
            for key in state
        }
    base = Path("base.safetensors")
    if kind == "shards":  # the scales in another file than the weights
        base = Path("base")
        base.mkdir()
        scales = {key: value for key, value in stored.items() if "scale" in key}
        rest = {key: value for key, value in stored.items() if key not in scales}
        for number, tensors in enumerate((rest, scales), start=1):
            save_file(tensors, base / f"diffusion_pytorch_model-0000{number}-of-00002.safetensors")
    else:
        save_file(stored, base)
    assert merged("x.safetensors", f"base={base}", f"layout={layout}") == 0
    captured = capfd.readouterr()
    assert "20 of 20 modules" in captured.out
    assert f"{base} holds weights in fp8: they are written in bf16" in captured.err
    if layout == "original":
        written = load_file("there/x_merged.safetensors")
        assert written.keys() == state.keys()
        changed = {f"{wan_name(module)}.weight": up @ down for module, (down, up) in found.items()}
        for key, value in written.items():
            expected = meant[key] + changed.get(key, 0)
            assert value.dtype == (torch.bfloat16 if stored[key].dtype == torch.float8_e4m3fn else torch.float32)
            torch.testing.assert_close(value.float(), expected, rtol=2**-8, atol=1e-6)
    else:
        whole = WanTransformer3DModel.from_pretrained("there/transformer").state_dict()
        torch.testing.assert_close(
            whole["blocks.1.attn1.to_k.weight"].float(),
            meant["blocks.1.self_attn.k.weight"] + found["blocks.1.attn1.to_k"][1] @ found["blocks.1.attn1.to_k"][0],
            rtol=2**-8,
            atol=1e-6,
        )
    assert merged("x.safetensors", f"base={base}", f"layout={layout}", "dtype=fp32", "--overwrite") == 0
    assert "written in fp32" in capfd.readouterr().err


def test_an_fp8_base_without_one_of_its_scales_is_refused(capfd: pytest.CaptureFixture[str]) -> None:
    lora("x")
    stored = fp8_scaled(original_transformer(tiny_transformer()), marker=False)
    del stored["blocks.1.ffn.0.scale_weight"]
    save_file(stored, "base.safetensors")
    assert merged("x.safetensors", "base=base.safetensors") == 2
    assert "blocks.1.ffn.0.weight is fp8 and has no scale" in capfd.readouterr().err


def test_numbers_that_nobody_here_reads_are_refused(capfd: pytest.CaptureFixture[str]) -> None:
    lora("x")
    tensors = original_transformer(tiny_transformer())
    tensors["blocks.0.self_attn.q.weight"] = tensors["blocks.0.self_attn.q.weight"].to(torch.int8)
    save_file(tensors, "base.safetensors")
    assert merged("x.safetensors", "base=base.safetensors") == 2
    assert "self_attn.q.weight is stored as I8: merge into bf16, fp16, fp32 or fp8 weights" in capfd.readouterr().err


def test_nothing_is_merged_into_the_folder_of_the_base(model: Path, capfd: pytest.CaptureFixture[str]) -> None:
    lora("x", expert="high_noise")
    words = ["export", "x.safetensors", "--to", "merged", f"base={model}", "layout=original", "--overwrite"]
    assert main([*words, f"output={model / 'transformer'}"]) == 2
    assert "is inside what is read" in capfd.readouterr().err
    base = save_shards(tiny_transformer(), Path("Wan2.1"))  # would be read as the merged one from then on
    lora("Wan2.1/y")
    words = ["export", "Wan2.1/y.safetensors", "--to", "merged", f"base={base}"]
    assert main([*words, "output=Wan2.1"]) == 2
    assert "is inside what is read" in capfd.readouterr().err
    assert main(words) == 0
    assert Path("Wan2.1/merged/transformer").is_dir()


def test_what_diffusers_passes_over_in_a_base_is_left_out(model: Path) -> None:
    tiny_transformer(in_channels=36, image_dim=24).save_pretrained("base")
    state = load_file(Path("base", WEIGHTS))
    save_file({**state, "blocks.0.attn2.norm_added_q.weight": torch.ones(32)}, Path("base", WEIGHTS))
    lora("x")
    assert merged("x.safetensors", "base=base") == 0
    assert load_file(Path("there/transformer", WEIGHTS)).keys() == state.keys()
