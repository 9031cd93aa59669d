"""Modules from files in the original naming: equal, bit for bit, to what the libraries read from their own folders."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLWan
from diffusers.loaders.single_file_utils import convert_wan_vae_to_diffusers
from originals import (
    CLIP_WIDTH,
    fp8_scaled,
    original_clip,
    original_text,
    original_transformer,
    original_vae,
    save_original_model,
    save_shards,
    sentencepiece,
)
from safetensors.torch import load_file, save_file
from tiny import WORDS, Model, save_tiny_model, tiny_clip, tiny_text, tiny_transformer, tiny_vae, tiny_vae_ti2v
from torch import Tensor
from transformers import CLIPVisionModel, UMT5EncoderModel

from simplewan.errors import UserError
from simplewan.flavours import find_flavour
from simplewan.models.wan import hub
from simplewan.models.wan.checking import check_files
from simplewan.models.wan.loading import (
    image_encoder_fingerprint,
    load_image_encoder,
    load_text_encoder,
    load_transformer,
    load_vae,
)
from simplewan.models.wan.vae_names import MEAN_22, STD_22, original_vae_name

MINI, A14B, TI2V, I2V_21 = (
    find_flavour(name) for name in ("t2v-mini-high", "t2v-a14b-2.2", "ti2v-mini", "i2v-14b-2.1")
)


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_arguments: object, **_keys: object) -> Path:
        raise AssertionError("the hub was asked")

    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A diffusers folder with the same weights as `save_original_model` writes."""
    return save_tiny_model(tmp_path_factory.mktemp("diffusers"), two_experts=True)


def equal(one: Any, other: Any) -> None:
    """The same tensors, in the same number formats; buffers that no file holds included."""
    mine, theirs = dict(one.state_dict()) | dict(one.named_buffers()), other.state_dict() | dict(other.named_buffers())
    assert mine.keys() == theirs.keys()
    for name, value in mine.items():
        assert value.dtype == theirs[name].dtype, name
        assert torch.equal(value, theirs[name]), name
    assert not any(parameter.requires_grad or parameter.is_meta for parameter in one.parameters())


def forward(transformer: Any) -> Tensor:
    draws = torch.Generator().manual_seed(0)
    with torch.no_grad():
        return transformer(
            hidden_states=torch.randn(1, transformer.config.in_channels, 2, 8, 8, generator=draws),
            timestep=torch.tensor([700.0]),
            encoder_hidden_states=torch.randn(1, 8, transformer.config.text_dim, generator=draws),
        ).sample


# the transformer


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_original_repository_is_the_diffusers_folder(folder: Path, tmp_path: Path, dtype: torch.dtype) -> None:
    theirs, ours = Model(str(folder)), Model(str(save_original_model(tmp_path, "t2v-a14b")))
    check_files(ours, A14B, with_other_stage=True)
    for expert in ("high", "low"):
        one, other = (load_transformer(model, A14B, expert, dtype) for model in (ours, theirs))
        assert torch.equal(one.rope.freqs_cos[:64], other.rope.freqs_cos)
        one.rope = other.rope  # the original's table is longer
        equal(one, other)
    assert torch.equal(forward(one.float()), forward(other.float()))
    equal(load_vae(ours, A14B, dtype), load_vae(theirs, A14B, dtype))
    (tokens, one), (their_tokens, other) = (load_text_encoder(model, A14B, dtype) for model in (ours, theirs))
    equal(one, other)
    prompt = "a red circle moves left, quickly"
    assert tokens(prompt).input_ids == their_tokens(prompt).input_ids


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model.", "diffusion_model."])
def test_a_single_file_needs_no_configuration(prefix: str, tmp_path: Path) -> None:
    """A head is 128 wide; all other sizes are in the header."""
    expected = tiny_transformer(dim=256, heads=2, ffn_dim=96, in_channels=36, image_dim=40)
    file = tmp_path / "wan2.1_i2v_14B.safetensors"
    save_file(original_transformer(expected, prefix), file)
    loaded = load_transformer(of_file(file), I2V_21, "high", torch.float32)
    for name in (
        "num_attention_heads",
        "ffn_dim",
        "freq_dim",
        "text_dim",
        "image_dim",
        "added_kv_proj_dim",
        "num_layers",
    ):
        assert loaded.config[name] == expected.config[name], name
    loaded.rope = expected.rope
    equal(loaded, expected.requires_grad_(False))


def of_file(file: Path, **others: str) -> Model:
    return Model(pretrained_transformer_model_name_or_path=str(file), **others)


def test_a_folder_of_shards_without_subfolder(tmp_path: Path) -> None:
    """What the official repositories hold at their top, or in high_noise_model/, taken by itself."""
    expected = tiny_transformer(dim=128, heads=1)
    folder = save_shards(expected, tmp_path / "high_noise_model", config=False)
    for subfolder in (None, "none"):
        model = of_file(folder, pretrained_transformer_subfolder=subfolder)
        loaded = load_transformer(model, MINI, "high", torch.float32)
        assert torch.equal(loaded.proj_out.weight, expected.proj_out.weight)
    (folder / "diffusion_pytorch_model.safetensors.index.json").unlink()
    (folder / "diffusion_pytorch_model-00002-of-00002.safetensors").unlink()
    with pytest.raises(UserError, match="lacks diffusion_pytorch_model-00002-of-00002"):
        load_transformer(model, MINI, "high", torch.float32)


def test_an_unknown_number_of_heads_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "small.safetensors"
    save_file(original_transformer(tiny_transformer()), file)
    with pytest.raises(UserError, match="32 wide, and no config"):
        load_transformer(of_file(file), MINI, "high", torch.float32)


@pytest.mark.parametrize("change", [{"head.head.bias": None}, {"extra.weight": torch.zeros(2)},
                                    {"blocks.0.ffn.2.bias": torch.zeros(3)}])  # fmt: skip
def test_a_tensor_too_few_too_many_or_misshapen_is_refused(change: dict[str, Tensor | None], tmp_path: Path) -> None:
    state = original_transformer(tiny_transformer(dim=128, heads=1)) | change
    file = tmp_path / "wan.safetensors"
    save_file({name: value for name, value in state.items() if value is not None}, file)
    with pytest.raises(UserError, match=next(iter(change)).replace("head.head.bias", "proj_out.bias")):
        load_transformer(of_file(file), MINI, "high", torch.float32)


# fp8


@pytest.mark.parametrize(("suffix", "marker"), [("scale_weight", True), ("weight_scale", False)])
def test_scaled_fp8_is_the_product_in_the_wanted_dtype(suffix: str, marker: bool, tmp_path: Path) -> None:
    state = original_transformer(tiny_transformer(dim=128, heads=1))
    scaled = fp8_scaled(state, marker=marker, suffix=suffix)
    file = tmp_path / "wan_fp8_scaled.safetensors"
    save_file(scaled, file)
    loaded = load_transformer(of_file(file), MINI, "high", torch.bfloat16)
    name = "blocks.0.self_attn.q"
    expected = (scaled[f"{name}.weight"].float() * scaled[f"{name}.{suffix}"]).bfloat16()
    assert torch.equal(loaded.blocks[0].attn1.to_q.weight, expected)
    assert (expected - state[f"{name}.weight"]).abs().max() < state[f"{name}.weight"].abs().max() / 16
    assert loaded.condition_embedder.time_embedder.linear_1.weight.dtype == torch.float32
    assert torch.equal(loaded.blocks[1].ffn.net[2].bias, state["blocks.1.ffn.2.bias"].bfloat16())


@pytest.mark.parametrize("shape", [(-1,), (-1, 1), (-1, 4, 1)])
def test_scales_of_rows_and_blocks(shape: tuple[int, ...], tmp_path: Path) -> None:
    state = original_transformer(tiny_transformer(dim=128, heads=1))
    name = "blocks.0.self_attn.q"
    weight = state[f"{name}.weight"].to(torch.float8_e4m3fn)
    scale = torch.rand(128, 4)[:, : shape[1] if len(shape) == 3 else 1].reshape(shape) + 0.5
    save_file(state | {f"{name}.weight": weight, f"{name}.scale_weight": scale}, tmp_path / "wan.safetensors")
    loaded = load_transformer(of_file(tmp_path / "wan.safetensors"), MINI, "high", torch.float32)
    factors = scale.reshape(128, -1).repeat_interleave(128 // (4 if len(shape) == 3 else 1), dim=1)
    assert torch.equal(loaded.blocks[0].attn1.to_q.weight, weight.float() * factors)


def test_plain_fp8_and_fp8_in_a_diffusers_folder(folder: Path, tmp_path: Path) -> None:
    state = original_transformer(tiny_transformer(dim=128, heads=1))
    plain = {name: value.to(torch.float8_e4m3fn) if value.ndim == 2 else value for name, value in state.items()}
    save_file(plain, tmp_path / "wan_fp8.safetensors")
    loaded = load_transformer(of_file(tmp_path / "wan_fp8.safetensors"), MINI, "high", torch.bfloat16)
    assert torch.equal(loaded.blocks[0].attn1.to_q.weight, plain["blocks.0.self_attn.q.weight"].bfloat16())
    transformer = tmp_path / "transformer"
    transformer.mkdir()
    (transformer / "config.json").write_text((folder / "transformer/config.json").read_text())
    state = load_file(next((folder / "transformer").glob("*.safetensors")))
    scaled = fp8_scaled(state, marker=True)
    save_file(scaled, transformer / "diffusion_pytorch_model.safetensors")
    loaded = load_transformer(of_file(tmp_path), MINI, "high", torch.float32)
    name = "blocks.0.attn1.to_q"
    assert torch.equal(
        loaded.blocks[0].attn1.to_q.weight, scaled[f"{name}.weight"].float() * scaled[f"{name}.scale_weight"]
    )


# the VAEs


def real_vae(kind: str) -> AutoencoderKLWan:
    """Two residual blocks and growing widths, as the published VAEs have, with their statistics."""
    base = tiny_vae() if kind == "2.1" else tiny_vae_ti2v()
    further = (
        {} if kind == "2.1" else {"latents_mean": list(MEAN_22), "latents_std": list(STD_22), "decoder_base_dim": 8}
    )
    config = dict(base.config) | {"dim_mult": [1, 2, 4, 4], "num_res_blocks": 2} | further
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return AutoencoderKLWan.from_config(config).eval().requires_grad_(False)


@pytest.mark.slow
@pytest.mark.parametrize("ending", [".pth", ".safetensors"])
@pytest.mark.parametrize(("kind", "flavour"), [("2.1", MINI), ("2.2", TI2V)])
def test_a_vae_of_one_file_is_that_of_diffusers(kind: str, flavour: Any, ending: str, tmp_path: Path) -> None:
    vae = real_vae(kind)
    vae.save_pretrained(tmp_path / "diffusers/vae")
    file = tmp_path / f"wan{kind}_vae{ending}"
    (torch.save if ending == ".pth" else save_file)(original_vae(vae), file)
    for dtype in (torch.float32, torch.bfloat16):
        model, theirs = Model(pretrained_vae_model_name_or_path=str(file)), Model(str(tmp_path / "diffusers"))
        loaded, expected = (load_vae(each, flavour, dtype) for each in (model, theirs))
        equal(loaded, expected)
    sizes = {key: value for key, value in expected.config.items() if not key.startswith("_")}
    assert {key: loaded.config[key] for key in sizes} == sizes
    pixels = torch.rand(1, 3, 5, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        latents = [each.float().encode(pixels).latent_dist.mode() for each in (loaded, expected)]
        assert torch.equal(*latents)
        assert torch.equal(loaded.decode(latents[0]).sample, expected.decode(latents[0]).sample)


def test_the_names_of_the_first_vae_are_those_that_diffusers_converts() -> None:
    vae = real_vae("2.1")
    converted = convert_wan_vae_to_diffusers(original_vae(vae))
    expected = vae.state_dict()
    assert converted.keys() == expected.keys()
    assert all(torch.equal(converted[name], value) for name, value in expected.items())


def test_names_of_the_second_vae() -> None:
    """Names that stand in Wan2.2_VAE.pth."""
    names = {original_vae_name(name, blocks=2, residual=True) for name in real_vae("2.2").state_dict()}
    assert names > {
        "encoder.downsamples.0.downsamples.0.residual.2.weight",
        "encoder.downsamples.0.downsamples.2.resample.1.weight",
        "encoder.downsamples.1.downsamples.2.time_conv.weight",
        "encoder.downsamples.1.downsamples.0.shortcut.weight",
        "decoder.upsamples.1.upsamples.2.residual.6.bias",
        "decoder.upsamples.0.upsamples.3.time_conv.weight",
        "decoder.middle.1.to_qkv.weight",
        "decoder.head.0.gamma",
        "conv1.weight",
    }


def test_a_vae_with_a_tensor_too_many_is_refused(tmp_path: Path) -> None:
    save_file(original_vae(tiny_vae()) | {"encoder.extra.weight": torch.zeros(2)}, tmp_path / "vae.safetensors")
    with pytest.raises(UserError, match=r"1 that Wan has not, encoder\.extra\.weight among them"):
        load_vae(Model(pretrained_vae_model_name_or_path=str(tmp_path / "vae.safetensors")), MINI, torch.float32)


@pytest.mark.parametrize("prefix", ["model.", "vae.", "first_stage_model."])
@pytest.mark.parametrize("naming", ["original", "diffusers"])
def test_a_vae_behind_a_prefix(naming: str, prefix: str, tmp_path: Path) -> None:
    vae = tiny_vae()
    vae.save_pretrained(tmp_path)
    state = original_vae(vae) if naming == "original" else vae.state_dict()
    file = tmp_path / "prefixed_vae.safetensors"
    save_file({prefix + name: value for name, value in state.items()} | {"loss.logvar": torch.zeros(1)}, file)
    model = Model(pretrained_vae_model_name_or_path=str(file))
    equal(load_vae(model, MINI, torch.float32), vae.requires_grad_(False))
    save_file({prefix + name: value for name, value in [*state.items()][:-1]}, file)
    with pytest.raises(UserError, match="lacks 1 tensors"):
        load_vae(model, MINI, torch.float32)


def test_the_statistics_of_the_second_vae_are_the_published_ones() -> None:
    """Of latents_mean and latents_std in vae/config.json of Wan-AI/Wan2.2-TI2V-5B-Diffusers, in tenthousandths."""
    digests = {
        hashlib.sha256(",".join(str(round(value * 10000)) for value in values).encode()).hexdigest()[:16]
        for values in (MEAN_22, STD_22)
    }
    assert digests == {"14d0ff000a498b1e", "b7058d27bab6e863"}


def test_a_vae_file_in_diffusers_naming_needs_its_configuration(folder: Path, tmp_path: Path) -> None:
    file = next((folder / "vae").glob("*.safetensors"))
    equal(
        load_vae(Model(pretrained_vae_model_name_or_path=str(file)), MINI, torch.float32),
        load_vae(Model(str(folder)), MINI, torch.float32),
    )
    copy = tmp_path / file.name
    copy.write_bytes(file.read_bytes())
    with pytest.raises(UserError, match="which it needs, is not beside it"):
        load_vae(Model(pretrained_vae_model_name_or_path=str(copy)), MINI, torch.float32)


# the text encoder


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("naming", ["original", "comfyui"])
def test_a_text_encoder_of_one_file(naming: str, dtype: torch.dtype, folder: Path, tmp_path: Path) -> None:
    tokenizer, encoder = tiny_text()
    if naming == "original":
        file = tmp_path / "models_t5_umt5-xxl-enc-bf16.pth"
        torch.save(original_text(encoder), file)
        tokenizer.save_pretrained(tmp_path / "google/umt5-xxl")
    else:
        file = tmp_path / "umt5_xxl_fp16.safetensors"
        state = {name: value for name, value in encoder.state_dict().items() if "embed_tokens" not in name}
        pieces = sentencepiece(list(vocabulary()))
        save_file(state | {"spiece_model": torch.tensor(list(pieces), dtype=torch.uint8)}, file)
    model = Model(pretrained_t5_model_name_or_path=str(file))
    tokens, loaded = load_text_encoder(model, MINI, dtype)
    equal(loaded, UMT5EncoderModel.from_pretrained(folder / "text_encoder", dtype=dtype).requires_grad_(False))
    for prompt in ("a red circle moves left", "Ä 3 zebra!"):
        assert tokens(prompt, padding="max_length", max_length=16) == tokenizer(
            prompt, padding="max_length", max_length=16
        )


def vocabulary() -> list[tuple[str, float]]:
    """That of tiny.tiny_text."""
    characters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,;:!?'\"()-_/&<>"
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\u2581", -3.0)]
    pieces += [(f"\u2581{word}", -2.0) for word in dict.fromkeys(WORDS)]
    return pieces + [(character, -6.0) for character in characters]


def test_a_scaled_text_encoder(tmp_path: Path) -> None:
    _, encoder = tiny_text()
    state = {name: value for name, value in encoder.state_dict().items() if "embed_tokens" not in name}
    scaled = fp8_scaled(state, marker=True)
    pieces = torch.tensor(list(sentencepiece(vocabulary())), dtype=torch.uint8)
    save_file(scaled | {"spiece_model": pieces}, tmp_path / "umt5_xxl_fp8_e4m3fn_scaled.safetensors")
    model = Model(pretrained_t5_model_name_or_path=str(tmp_path / "umt5_xxl_fp8_e4m3fn_scaled.safetensors"))
    loaded = load_text_encoder(model, MINI, torch.float32)[1].state_dict()
    name = "encoder.block.1.layer.1.DenseReluDense.wo"
    assert torch.equal(loaded[f"{name}.weight"], scaled[f"{name}.weight"].float() * scaled[f"{name}.scale_weight"])


def test_what_a_text_encoder_lacks_is_refused(tmp_path: Path) -> None:
    state = original_text(tiny_text()[1])
    del state["blocks.1.ffn.fc2.weight"]
    torch.save(state, tmp_path / "t5.pth")
    tiny_text()[0].save_pretrained(tmp_path / "google/umt5-xxl")
    with pytest.raises(UserError, match=r"lacks 1 of its weights, .*block\.1\.layer\.1\.DenseReluDense\.wo"):
        load_text_encoder(Model(pretrained_t5_model_name_or_path=str(tmp_path / "t5.pth")), MINI, torch.float32)


# the image encoder


@pytest.mark.parametrize("naming", ["original", "comfyui"])
def test_an_image_encoder_of_one_file(naming: str, tmp_path: Path) -> None:
    processor, encoder = tiny_clip(dim=CLIP_WIDTH)
    encoder.save_pretrained(tmp_path / "image_encoder")
    if naming == "original":
        file = tmp_path / "models_clip.pth"
        torch.save(original_clip(encoder), file)
    else:
        file = tmp_path / "clip_vision_h.safetensors"
        state = {
            f"vision_model.{key.removeprefix('vision_model.')}": value for key, value in encoder.state_dict().items()
        }
        save_file(state | {"visual_projection.weight": torch.zeros(8, CLIP_WIDTH)}, file)
    model = Model(pretrained_image_encoder_model_name_or_path=str(file))
    found, loaded = load_image_encoder(model, I2V_21, torch.bfloat16)
    expected = CLIPVisionModel.from_pretrained(tmp_path / "image_encoder", dtype=torch.bfloat16).requires_grad_(False)
    equal(loaded, expected)
    pixels = torch.rand(1, 3, 224, 224, generator=torch.Generator().manual_seed(0)).bfloat16()
    hidden = [each(pixels, output_hidden_states=True).hidden_states[-2] for each in (loaded, expected)]
    assert torch.equal(*hidden)
    assert found.to_dict() == processor.to_dict()


def test_an_image_to_video_repository(tmp_path: Path) -> None:
    model = Model(str(save_original_model(tmp_path, "i2v-2.1")))
    check_files(model, I2V_21)
    assert load_transformer(model, I2V_21, "high", torch.float32).config.image_dim == CLIP_WIDTH
    assert load_image_encoder(model, I2V_21, torch.float32)[1].config.hidden_size == CLIP_WIDTH
    assert load_vae(Model(str(save_original_model(tmp_path / "ti2v", "ti2v"))), TI2V, torch.float32).config.z_dim == 48


def test_pickles_with_code_are_not_run(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
            return exec, ("raise SystemExit(3)",)

    torch.save({"conv2.weight": Evil()}, tmp_path / "Wan2.1_VAE.pth")
    with pytest.raises(UserError, match="has a vae that cannot be read"):
        load_vae(Model(pretrained_vae_model_name_or_path=str(tmp_path / "Wan2.1_VAE.pth")), MINI, torch.float32)


# repositories on a hub


@pytest.fixture
def publish(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[Path], list[str]]:
    """Let every repository be this folder; returns the list of the files that are downloaded from then on."""

    def put(published: Path) -> list[str]:
        local, fetched = tmp_path / "cache", []

        def download(repo_id: str, *, allow_patterns: list[str], dry_run: bool = False, **_keys: object) -> Any:
            files = [file for file in published.rglob("*") if file.is_file()]
            names = [str(file.relative_to(published)) for file in files]
            wanted = [name for name in names if any(fnmatch(name, pattern) for pattern in allow_patterns)]
            if dry_run:
                return [SimpleNamespace(file_size=1, will_download=True) for _ in wanted]
            for name in wanted:
                (local / name).parent.mkdir(parents=True, exist_ok=True)
                (local / name).write_bytes((published / name).read_bytes())
            fetched.extend(wanted)
            local.mkdir(exist_ok=True)
            return local

        monkeypatch.setattr("huggingface_hub.snapshot_download", download)
        return fetched

    return put


def test_only_what_is_needed_is_downloaded(publish: Callable[[Path], list[str]], tmp_path: Path) -> None:
    published = save_original_model(tmp_path / "published", "t2v-a14b")
    fetched = publish(published)
    model = Model("Wan-AI/Wan2.2-T2V-A14B")
    check_files(model, A14B)
    assert all(name.endswith("config.json") for name in fetched)
    load_vae(model, A14B, torch.float32)
    assert "Wan2.1_VAE.pth" in fetched
    load_transformer(model, A14B, "low", torch.float32)
    load_text_encoder(model, A14B, torch.float32)
    assert not any(name.startswith("high_noise_model/diffusion") for name in fetched)
    (published / "low_noise_model/config.json").write_text(json.dumps({"dim": 1536, "num_layers": 30, "in_dim": 16}))
    with pytest.raises(UserError, match="is another size of Wan"):
        check_files(model, A14B)


def test_repositories_without_subfolders_and_in_the_other_layout(
    publish: Callable[[Path], list[str]], folder: Path, tmp_path: Path
) -> None:
    fetched = publish(save_original_model(tmp_path / "published", "i2v-2.1"))
    model = Model("Wan-AI/Wan2.1-I2V-14B-480P")
    check_files(model, I2V_21)
    assert image_encoder_fingerprint(model, I2V_21)
    assert load_image_encoder(model, I2V_21, torch.float32)[1].config.hidden_size == CLIP_WIDTH
    assert not any(name.startswith(("diffusion_", "Wan2.1_VAE")) for name in fetched)
    load_transformer(model, I2V_21, "high", torch.float32)
    shutil.rmtree(tmp_path / "cache")
    fetched = publish(folder)
    load_transformer(Model("Wan-AI/Wan2.2-T2V-A14B-Diffusers"), A14B, "low", torch.float32)
    assert not any(name.startswith(("transformer/diffusion", "vae/", "text_encoder/")) for name in fetched)


def test_a_mistyped_repository_is_answered_with_the_one_that_was_meant() -> None:
    assert hub.meant_repository("Wan-AI/Wan2.2-T2V-A14-Diffusers") == "Wan-AI/Wan2.2-T2V-A14B-Diffusers"
    assert hub.meant_repository("wan-ai/wan2.1-i2v-14b-720") == "Wan-AI/Wan2.1-I2V-14B-720P"
    assert hub.meant_repository("somebody/other-model") is None
    assert hub.meant_repository("Wan-AI/Wan2.2-TI2V-5B") is None
