"""What files are, told by their headers; which flavour follows; and what is refused before anything is loaded."""

from __future__ import annotations

import itertools
import json
import pickle
import shutil
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from originals import original_clip, original_text, original_vae, save_original_model
from safetensors.torch import save_file
from tiny import Model, save_tiny_image_model, save_tiny_model, tiny_clip, tiny_text, tiny_vae, tiny_vae_ti2v

from simplewan.errors import Problem, UserError
from simplewan.flavours import find_flavour
from simplewan.headers import read_header
from simplewan.models.wan.checking import check_files, check_part
from simplewan.models.wan.sources import source
from simplewan.options.groups.model import ModelOptions
from simplewan.options.inference import Inferred, infer_flavour
from simplewan.options.paths import Paths
from simplewan.recognition import DIFFUSERS, ORIGINAL, Found, recognise, told_expert, told_version

SIZES = {"1.3b": (1536, 30), "5b": (3072, 30), "14b": (5120, 40)}
T2V, HIGH, LOW, BOTH, I2V_21, TI2V = (
    find_flavour(name)
    for name in (
        "t2v-480p-1.3b-2.1", "t2v-a14b-2.2-high", "t2v-a14b-2.2-low", "t2v-a14b-2.2", "i2v-14b-2.1", "ti2v-5b-2.2",
    )
)  # fmt: skip


def write_header(file: Path, shapes: dict[str, tuple[int, ...]], *, dtype: str = "BF16", **metadata: str) -> Path:
    """A safetensors file that is nothing but its header."""
    entries = {name: {"dtype": dtype, "shape": shape, "data_offsets": [0, 0]} for name, shape in shapes.items()}
    text = json.dumps({"__metadata__": metadata, **entries}).encode()
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(len(text).to_bytes(8, "little") + text)
    return file


def wan(size: str = "14b", channels: int = 16, *, clip: bool = False, prefix: str = "") -> dict[str, tuple[int, ...]]:
    """The names and shapes by which a published transformer is told."""
    width, blocks = SIZES[size]
    shapes: dict[str, tuple[int, ...]] = {
        "patch_embedding.weight": (width, channels, 1, 2, 2),
        "time_embedding.0.weight": (width, 256),
        "time_embedding.2.weight": (width, width),
        "time_projection.1.weight": (6 * width, width),
        "text_embedding.0.weight": (width, 4096),
        "head.head.weight": ((48 if channels == 48 else 16) * 4, width),
        **{f"blocks.{number}.self_attn.q.weight": (width, width) for number in range(blocks)},
    }
    if clip:
        shapes["img_emb.proj.0.weight"] = (1280,)
    return {prefix + name: shape for name, shape in shapes.items()}


# what a file is


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model.", "diffusion_model."])
def test_a_published_transformer_is_told_by_its_header(prefix: str, tmp_path: Path) -> None:
    shapes = wan("14b", 36, clip=True, prefix=prefix)
    if prefix.startswith("model."):
        shapes["vae.patch_embedding.weight"] = (3, 3)  # of an all-in-one file
    found = recognise(write_header(tmp_path / "wan.safetensors", shapes))
    assert found is not None
    assert (found.kind, found.naming, found.task, found.size) == ("transformer", ORIGINAL, "i2v", (5120, 40))
    assert (found.in_channels, found.image_dim, found.expert, found.quantised) == (36, 1280, None, None)
    assert found.sizes == {"freq_dim": 256, "text_dim": 4096, "out_channels": 16}


@pytest.mark.parametrize(
    ("name", "expert"),
    [("wan2.2_t2v_high_noise_14B_fp16", "high"), ("wan2.2_i2v_low_noise_14B_fp8_scaled", "low"),
     ("Wan2_2-T2V-A14B-LOW_fp8_e4m3fn_scaled_KJ", "low"), ("foxHighNoise_v2", "high"), ("wan2.1_t2v_14B", None),
     ("low_vram_wan2.1", None), ("high_noise_and_low_noise", None), ("slow_motion_a14b", None),
     ("wan22_t2v_14B_HIGH", "high"), ("Wan-2.2-T2V-LOW-fp8", "low"), ("wan2.2_t2v_14B_high_quality", None),
     ("wan22_low-res", None), ("wan2.2_t2v_high_detailed", None), ("Wan2.1_T2V_HIGH_merge_v2.2", None),
     ("fox_step_22_high", None), ("Wan22_A14B_T2V_HIGH_Lightning_4steps_lora_rank64", "high")],
)  # fmt: skip
def test_an_expert_is_told_by_name(name: str, expert: str | None) -> None:
    assert told_expert(name) == expert


def test_an_expert_is_told_by_folder_and_metadata(tmp_path: Path) -> None:
    def expert_of(file: Path) -> str | None:
        found = recognise(file)
        assert found is not None
        return found.expert

    assert expert_of(write_header(tmp_path / "low_noise_model/wan.safetensors", wan())) == "low"
    assert expert_of(tmp_path / "low_noise_model") == "low"
    assert expert_of(write_header(tmp_path / "x/wan.safetensors", wan(), expert="high_noise")) == "high"
    assert expert_of(write_header(tmp_path / "x/plain.safetensors", wan())) is None
    assert expert_of(write_header(tmp_path / "low_noise_model/wan2.1_t2v.safetensors", wan())) is None


@pytest.mark.parametrize(
    ("names", "version"),
    [
        (["wan22_t2v"], "2.2"), (["wan2_2"], "2.2"), (["wan-2.2"], "2.2"), (["T2V-A14B"], "2.2"), (["fox_v2.2"], "2.2"),
        (["wan2.1_merge_v2.2"], "2.1"), (["merge_v2.2_of_2.1"], "2.1"), (["wan2.2_v2.1"], "2.2"),
        (["plain", "wan2.2"], "2.2"), (["wan2.1_t2v", "Wan2.2"], "2.1"), (["step2200", "wan12.2"], None),
    ],
)  # fmt: skip
def test_a_version_is_told_by_the_first_name_that_tells_one(names: list[str], version: str | None) -> None:
    assert told_version(*names) == version


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (wan(channels=52), "is a model of 52 input channels"),
        (wan("5b", 32), "is a model of 32 input channels"),
        (wan(channels=48), "is fun-control ("),
        (wan("1.3b", 48) | {"head.head.weight": (64, 1536)}, "is fun-control ("),
    ],
)
def test_other_inputs_are_of_a_model_that_is_not_trained_here(shapes: Any, message: str, tmp_path: Path) -> None:
    file = write_header(tmp_path / "wan2.2_high_noise.safetensors", shapes)
    text = problem_with(file, HIGH)
    assert message in text and "which is not trained here" in text and "None" not in text
    for key in ("pretrained_transformer_model_name_or_path", "pretrained_model_name_or_path"):
        problem = infer(**{key: str(file)})
        assert isinstance(problem, Problem) and message in str(problem)


@pytest.mark.parametrize(
    ("extra", "task"),
    [("vace_blocks.0.after_proj.bias", "vace"), ("img_emb.emb_pos", "flf2v"), ("face_adapter.x.weight", "animate"),
     ("casual_audio_encoder.weights", "s2v"), ("control_adapter.conv.weight", "fun-control")],
)  # fmt: skip
def test_other_models_of_the_family_are_told_and_refused(extra: str, task: str, tmp_path: Path) -> None:
    file = write_header(tmp_path / "wan.safetensors", wan() | {extra: (1, 2)})
    found = recognise(file)
    assert found is not None and found.task == task
    assert f"is {task} (" in problem_with(file)
    problem = infer(pretrained_transformer_model_name_or_path=str(file))
    assert isinstance(problem, Problem) and f"is {task} (" in str(problem)


@pytest.mark.parametrize("ending", [".pth", ".safetensors"])
@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: original_vae(tiny_vae()), Found("vae", ORIGINAL, latent_channels=16)),
        (lambda: original_vae(tiny_vae_ti2v()), Found("vae", ORIGINAL, latent_channels=48)),
        (lambda: tiny_vae().state_dict(), Found("vae", DIFFUSERS, latent_channels=16)),
        (lambda: original_text(tiny_text()[1]), Found("text_encoder", ORIGINAL, width=32)),
        (lambda: {f"model.{k}": v.clone() for k, v in tiny_text()[1].state_dict().items()}, None),
        (lambda: original_clip(tiny_clip()[1]), Found("image_encoder", ORIGINAL, width=24)),
        (lambda: tiny_clip()[1].state_dict(), Found("image_encoder", DIFFUSERS, width=24)),
        (lambda: {"diffusion_model.blocks.0.ffn.0.lora_A.weight": torch.zeros(2, 2)}, Found("lora", ORIGINAL)),
    ],
)
def test_other_parts_are_told(make: Any, expected: Found | None, ending: str, tmp_path: Path) -> None:
    """Of pickles too, though nothing of them is run or loaded."""
    file = tmp_path / f"part{ending}"
    (torch.save if ending == ".pth" else save_file)(dict(make()), file)
    assert recognise(file) == expected


def test_only_umt5_is_a_text_encoder_of_wan(tmp_path: Path) -> None:
    """T5 of other models has a table of positions in its first block alone."""
    shapes = {"shared.weight": (32128, 4096)}
    shapes |= {f"encoder.block.{n}.layer.0.SelfAttention.q.weight": (4096, 4096) for n in range(24)}
    name = "encoder.block.{}.layer.0.SelfAttention.relative_attention_bias.weight"
    assert recognise(write_header(tmp_path / "t5xxl.safetensors", shapes | {name.format(0): (32, 64)})) is None
    found = recognise(write_header(tmp_path / "umt5.safetensors", shapes | {name.format(n): (32, 64) for n in (0, 1)}))
    assert found == Found("text_encoder", DIFFUSERS, width=4096)


def test_pickles_run_no_code_and_damaged_headers_are_errors(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return exec, ("raise SystemExit(3)",)

    torch.save({"a": Evil()}, tmp_path / "evil.pth")
    assert read_header(tmp_path / "evil.pth") is None
    torch.save({"a": torch.zeros(2)}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert read_header(tmp_path / "old.pth") is None
    file = tmp_path / "cut.safetensors"
    save_file({"a": torch.zeros(100)}, file)
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(ValueError, match="cut off"):
        read_header(file)
    whole = file.read_bytes() + bytes(8)
    file.write_bytes(whole)
    assert read_header(file).tensors.keys() == {"a"}
    file.write_bytes(whole + bytes(3))
    with pytest.raises(ValueError, match=r"cut\.safetensors is damaged: it has 3 bytes after its end"):
        read_header(file)
    torch.save({"a": torch.zeros(100)}, tmp_path / "cut.pth")
    (tmp_path / "cut.pth").write_bytes((tmp_path / "cut.pth").read_bytes()[:-100])
    assert "cut.pth is cut off" in problem_with(tmp_path / "cut.pth", T2V, "vae")
    (tmp_path / "page.safetensors").write_bytes(b"<html>" + bytes(20))
    with pytest.raises(ValueError, match="no safetensors file"):
        read_header(tmp_path / "page.safetensors")


def test_a_damaged_pickle_is_an_error_wherever_the_damage_is(tmp_path: Path) -> None:
    file = tmp_path / "x.pth"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("x/data.pkl", pickle.dumps({"a": 1}))
    small = file.read_bytes()
    torch.save({"a": 1}, file)
    whole = file.read_bytes()
    ends = range(len(whole) - 42, len(whole))  # what PyTorch adds for large files, and the end of every zip file
    said = set()
    for content, places in ((small, range(len(small))), (whole, ends)):
        for place, bit in itertools.product(places, range(8)):
            file.write_bytes(content[:place] + bytes([content[place] ^ (1 << bit)]) + content[place + 1 :])
            try:
                read_header(file)
            except ValueError as error:
                said.add(str(error))
    assert all(text.startswith(("x.pth is damaged (", "x.pth is cut off")) for text in said)
    assert "x.pth is damaged (Bad CRC-32 for file 'x/data.pkl')" in said


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ({"__metadata__": None}, None),
        ({"__metadata__": {"expert": "low"}}, None),
        ({"__metadata__": {"expert": 3}}, "its metadata are no texts by name"),
        ({"__metadata__": ["expert"]}, "its metadata are no texts by name"),
        ({"__metadata__": 0}, "its metadata are no texts by name"),
        ({"a": {"dtype": "F32", "shape": [], "data_offsets": []}}, "its header is no list of tensors"),
        ({"a": {"dtype": "F32", "shape": ["a"], "data_offsets": [0, 0]}}, "its header is no list of tensors"),
        ({"a": {"dtype": "F32", "shape": [], "data_offsets": [0, "x"]}}, "its header is no list of tensors"),
    ],
)
def test_a_header_is_what_the_format_says(header: dict[str, Any], message: str | None, tmp_path: Path) -> None:
    text = json.dumps(header).encode()
    file = tmp_path / "x.safetensors"
    file.write_bytes(len(text).to_bytes(8, "little") + text)
    if message is None:
        assert read_header(file).metadata == (header["__metadata__"] or {})
        return
    with pytest.raises(ValueError, match=f"x.safetensors is damaged: {message}"):
        read_header(file)


@pytest.mark.parametrize("kind", ["t2v", "t2v-a14b", "i2v-2.1", "ti2v"])
def test_an_original_folder_needs_no_more_than_its_headers(kind: Any, tmp_path: Path) -> None:
    save_original_model(tmp_path, kind)
    found = recognise(tmp_path / "high_noise_model" if kind == "t2v-a14b" else tmp_path)
    assert found is not None and found.size == (32, 2)
    assert found.task == {"t2v-a14b": "t2v", "i2v-2.1": "i2v"}.get(kind, kind)
    assert bool(found.image_dim) == (kind == "i2v-2.1")
    assert found.expert == ("high" if kind == "t2v-a14b" else None)


# which flavour is meant


def infer(**options: str) -> Inferred | Problem:
    return infer_flavour(ModelOptions(**options), Paths(base=None, beside=None, unprepared=()))


def inferred(**options: str) -> Inferred:
    result = infer(**options)
    assert isinstance(result, Inferred), result
    return result


@pytest.mark.parametrize(
    ("repository", "flavour"),
    [
        ("Wan-AI/Wan2.2-T2V-A14B", "t2v-a14b-2.2"),
        ("Wan-AI/Wan2.2-I2V-A14B-Diffusers", "i2v-a14b-2.2"),
        ("Wan-AI/Wan2.1-I2V-14B-720P", "i2v-14b-2.1-720p"),
        ("Wan-AI/Wan2.1-I2V-14B-480P-Diffusers", "i2v-14b-2.1"),
        ("Wan-AI/Wan2.1-T2V-14B", "t2v-480p-14b-2.1"),
        ("Wan-AI/Wan2.2-TI2V-5B", "ti2v-5b-2.2"),
        ("someone/FastWan2.2-TI2V-5B-FullAttn-Diffusers", "ti2v-5b-2.2"),
        ("someone/wan2.2-t2v-14b-mine", "t2v-a14b-2.2"),
        ("someone/anything", "t2v-480p-1.3b-2.1"),
    ],
)
def test_a_repository_tells_by_its_name(repository: str, flavour: str) -> None:
    result = inferred(pretrained_model_name_or_path=repository)
    assert result.flavour.name == flavour
    assert repository in result.announcement
    assert ("-high or" in result.announcement) == ("a14b" in flavour)
    assert (result.assumed is None) == repository.startswith("Wan-AI/")


@pytest.mark.parametrize("name", ["Wan-AI/Wan2.1-FLF2V-14B-720P", "Wan-AI/Wan2.1-VACE-1.3B", "Wan-AI/Wan2.2-S2V-14B",
                                  "Wan-AI/Wan2.2-Animate-14B", "alibaba-pai/Wan2.1-Fun-1.3B-Control",
                                  "alibaba-pai/Wan2.2-Fun-A14B-Control"])  # fmt: skip
def test_a_repository_of_another_kind_is_refused(name: str) -> None:
    assert "not trained here" in str(infer(pretrained_model_name_or_path=name))


def test_folders_tell_in_both_layouts(tmp_path: Path) -> None:
    def name_of(folder: Path) -> str:
        return inferred(pretrained_model_name_or_path=str(folder)).flavour.name

    assert name_of(save_tiny_model(tmp_path / "two", two_experts=True)) == "t2v-a14b-2.2"
    assert name_of(save_tiny_model(tmp_path / "one")) == "t2v-480p-1.3b-2.1"
    for kind, flavour in {"2.1": "i2v-14b-2.1", "2.2": "i2v-a14b-2.2", "ti2v": "ti2v-5b-2.2"}.items():
        assert name_of(save_tiny_image_model(tmp_path / kind, kind)) == flavour  # type: ignore[arg-type]
    originals = {
        "t2v": "t2v-480p-1.3b-2.1",
        "t2v-a14b": "t2v-a14b-2.2",
        "i2v-2.1": "i2v-14b-2.1",
        "ti2v": "ti2v-5b-2.2",
    }
    for kind, flavour in originals.items():
        assert name_of(save_original_model(tmp_path / f"original-{kind}", kind)) == flavour  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "shapes", "flavour", "words"),
    [
        ("wan2.1_t2v_1.3B_bf16", wan("1.3b"), "t2v-480p-1.3b-2.1", "1536 wide"),
        ("wan2.2_ti2v_5B_fp16", wan("5b", 48), "ti2v-5b-2.2", "48 channels"),
        ("wan2.1_t2v_14B", wan(), "t2v-480p-14b-2.1", ""),
        ("some_14B", wan(), "t2v-480p-14b-2.1", "an expert of Wan 2.2 looks the same"),
        ("wan2.2_t2v_high_noise_14B", wan(), "t2v-a14b-2.2-high", ""),
        ("wan2.2_i2v_high_noise_14B", wan(channels=36), "i2v-a14b-2.2-high", ""),
        ("wan2.1_t2v_14B_merge_v2.2", wan(), "t2v-480p-14b-2.1", ""),
        ("wan22_720p/wan2.1_i2v_480p_14B", wan(channels=36, clip=True), "i2v-14b-2.1", ""),
        ("wan2.2_high_noise/wan2.1_t2v_14B", wan(), "t2v-480p-14b-2.1", ""),
        ("wan2.1_i2v_720p_14B", wan(channels=36, clip=True), "i2v-14b-2.1-720p", ""),
        ("wan2.1_i2v_14B", wan(channels=36, clip=True), "i2v-14b-2.1", "480p is assumed"),
    ],
)
def test_a_single_transformer_tells(name: str, shapes: Any, flavour: str, words: str, tmp_path: Path) -> None:
    file = write_header(tmp_path / f"{name}.safetensors", shapes)
    result = inferred(pretrained_transformer_model_name_or_path=str(file))
    assert result.flavour.name == flavour
    assert words in result.announcement and (result.assumed is not None) == ("assumed" in words or "same" in words)


def test_the_option_tells_the_expert_and_what_nothing_tells_is_asked(tmp_path: Path) -> None:
    plain = str(write_header(tmp_path / "mine.safetensors", wan()))
    other = str(write_header(tmp_path / "other.safetensors", wan()))
    named = str(write_header(tmp_path / "wan2.2_mine.safetensors", wan()))
    image = str(write_header(tmp_path / "image.safetensors", wan(channels=36)))
    high, low = "pretrained_transformer_model_name_or_path", "pretrained_transformer_2_model_name_or_path"
    assert inferred(**{low: plain}).flavour.name == "t2v-a14b-2.2-low"
    assert inferred(**{high: plain, low: other}).flavour.name == "t2v-a14b-2.2"
    for file in (named, image):
        problem = infer(**{high: file})
        assert isinstance(problem, Problem) and "set model_flavour to" in str(problem)
    repository = "Wan-AI/Wan2.2-I2V-A14B"
    assert inferred(**{low: repository}).flavour.name == "i2v-a14b-2.2-low"
    assert inferred(**{high: repository, low: repository}).flavour.name == "i2v-a14b-2.2"
    assert inferred().source is None


def test_an_expert_in_the_others_place_is_told_its_own(tmp_path: Path) -> None:
    high, low = "pretrained_transformer_model_name_or_path", "pretrained_transformer_2_model_name_or_path"
    names = {
        high: str(write_header(tmp_path / "wan2.2_t2v_high_noise_14B.safetensors", wan())),
        low: str(write_header(tmp_path / "wan2.2_t2v_low_noise_14B.safetensors", wan())),
    }
    assert inferred(**{low: names[low]}).flavour == LOW
    for wrong, right in ((high, low), (low, high)):
        problem = infer(**{wrong: names[right]})
        assert isinstance(problem, Problem) and (problem.key, problem.value) == (wrong, names[right])
        assert problem.fix.startswith(f"name it with {right};")
    # A file as the base model is read for either expert.
    assert inferred(pretrained_model_name_or_path=names[low]).flavour == LOW
    assert f"name it with {low};" in problem_with(Path(names[low]), HIGH)


# what is refused


def problem_with(file: Path, flavour: Any = T2V, part: str = "transformer") -> str:
    key = {"transformer": "pretrained_transformer_model_name_or_path", "vae": "pretrained_vae_model_name_or_path",
           "transformer_2": "pretrained_transformer_2_model_name_or_path",
           "text_encoder": "pretrained_t5_model_name_or_path"}[part]  # fmt: skip
    place = source(Model(**{key: str(file)}), flavour, part)
    return "\n".join(map(str, check_part(file, place, flavour)))


@pytest.mark.parametrize(
    ("shapes", "flavour", "message", "fits"),
    [
        (wan(), T2V, "14B (5120 wide, 40 blocks), expected 1.3B", "t2v-480p-14b-2.1 or t2v-a14b-2.2"),
        (wan("1.3b"), HIGH, "1.3B (1536 wide, 30 blocks), expected 14B", "t2v-480p-1.3b-2.1"),
        (wan(channels=36), HIGH, "other inputs (I2V): in_channels 36, expected 16", "i2v-a14b-2.2"),
        (wan("5b", 48), HIGH, "other inputs (TI2V): in_channels 48, expected 16", "ti2v-5b-2.2"),
        (wan(channels=36), I2V_21, "image_dim none, expected 1280", "i2v-a14b-2.2"),
        (
            wan(),
            find_flavour("i2v-a14b-2.2-high"),
            "other inputs (T2V): in_channels 16, expected 36",
            "t2v-480p-14b-2.1 or t2v-a14b-2.2",
        ),
        (wan() | {"patch_embedding.weight": (5120, 99, 1, 2, 2)}, T2V, "99 input channels", None),
    ],
)
def test_the_wrong_transformer(shapes: Any, flavour: Any, message: str, fits: str | None, tmp_path: Path) -> None:
    text = problem_with(write_header(tmp_path / "wan.safetensors", shapes), flavour)
    assert message in text and (fits is None or f"choose the model_flavour {fits}, or a model of" in text)


def test_the_wrong_kind_of_file(tmp_path: Path) -> None:
    lora = write_header(tmp_path / "lora.safetensors", {"diffusion_model.blocks.0.ffn.0.lora_A.weight": (4, 4)})
    assert "is a LoRA, expected a Wan transformer; training starts from it with init_lora" in problem_with(lora)
    torch.save(original_text(tiny_text()[1]), tmp_path / "t5.pth")
    assert "is a UMT5 text encoder, expected a Wan transformer" in problem_with(tmp_path / "t5.pth")
    torch.save(original_vae(tiny_vae()), tmp_path / "vae.pth")
    assert "has another VAE: z_dim 16, expected 48" in problem_with(tmp_path / "vae.pth", TI2V, "vae")
    assert "is a Wan VAE, expected a UMT5 text encoder" in problem_with(tmp_path / "vae.pth", T2V, "text_encoder")
    other = write_header(tmp_path / "flux.safetensors", {"double_blocks.0.img_attn.qkv.weight": (4, 4)})
    assert "is no Wan transformer" in problem_with(other)
    (tmp_path / "wan.gguf").write_bytes(b"GGUF")
    assert "is a GGUF file" in problem_with(tmp_path / "wan.gguf")
    packed = write_header(tmp_path / "packed.safetensors", wan("1.3b"), dtype="U8")
    assert "holds weights as U8" in problem_with(packed)
    assert problem_with(write_header(tmp_path / "fp8.safetensors", wan("1.3b"), dtype="F8_E4M3")) == ""


@pytest.mark.parametrize(
    ("content", "message"),
    [('{"weight_map": {"a": "x', "that is no JSON"), ('{"metadata": {}}', "without a weight_map"),
     ('{"weight_map": {}}', "without a weight_map"), ("[]", "without a weight_map")],
)  # fmt: skip
@pytest.mark.parametrize("layout", ["diffusers", "original"])
def test_a_damaged_index_is_named(layout: str, content: str, message: str, tmp_path: Path) -> None:
    if layout == "diffusers":
        folder = save_tiny_model(tmp_path) / "transformer"
    else:
        folder = save_original_model(tmp_path, "t2v-a14b") / "high_noise_model"
    (folder / "diffusion_pytorch_model.safetensors.index.json").write_text(content)
    for options in ({"pretrained_model_name_or_path": str(tmp_path)}, {
        "pretrained_transformer_model_name_or_path": str(folder)}):  # fmt: skip
        with pytest.raises(UserError, match=rf"has a diffusion_pytorch_model.safetensors.index.json {message}"):
            check_files(Model(**options), HIGH, experts=["high"])
        problem = infer(**options)
        assert isinstance(problem, Problem) and message in str(problem)


def test_a_folder_of_several_models_is_asked_about(tmp_path: Path) -> None:
    for name in ("wan2.1_t2v_1.3B", "umt5"):
        write_header(tmp_path / f"{name}.safetensors", wan("1.3b"))
    assert "name one file of it" in problem_with(tmp_path)


def test_the_experts_are_not_exchanged(tmp_path: Path) -> None:
    high = write_header(tmp_path / "wan2.2_t2v_high_noise_14B.safetensors", wan())
    low = write_header(tmp_path / "low_noise_model/wan.safetensors", wan())
    assert problem_with(high, HIGH) == problem_with(low, LOW, "transformer_2") == ""
    assert "is the high-noise expert, expected the low-noise one" in problem_with(high, LOW, "transformer_2")
    assert "is the low-noise expert, expected the high-noise one" in problem_with(low, HIGH)
    assert "expected a model with one transformer" in problem_with(high, find_flavour("t2v-480p-14b-2.1"))


def test_one_file_is_not_both_experts(tmp_path: Path) -> None:
    base = save_tiny_model(tmp_path / "model", two_experts=True)
    alone = shutil.copytree(base / "transformer", tmp_path / "alone")
    for weights, wanted in (
        (alone, "is given for both experts"),
        (base / "transformer", "is the high-noise expert, expected the low-noise one"),
        (base / "transformer_2", "is the low-noise expert, expected the high-noise one"),
    ):
        model = Model(
            str(base),
            pretrained_transformer_model_name_or_path=str(weights),
            pretrained_transformer_2_model_name_or_path=str(weights),
        )
        with pytest.raises(UserError, match=wanted):
            check_files(model, BOTH)
    check_files(Model(str(base), pretrained_transformer_2_model_name_or_path=str(base / "transformer_2")), BOTH)


def test_another_time_embedding_names_the_option(tmp_path: Path) -> None:
    shapes = wan("5b", 48) | {"time_projection.1.weight": (3072, 3072)}
    text = problem_with(write_header(tmp_path / "wan.safetensors", shapes), TI2V)
    assert "time_projection.1.weight has shape [3072, 3072], expected [18432, 3072]" in text
    assert "wan_force_2_1_time_embedding" in text
    other = write_header(tmp_path / "other.safetensors", wan("1.3b") | {"blocks.0.modulation": (1, 3, 1536)})
    assert "expected [1, 6, 1536]; take the published weights" in problem_with(other)
    assert "wan_force" not in problem_with(other)  # nothing enters once a token there


def test_a_tokenizer_that_is_nowhere_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants as constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    files = {name: tmp_path / f"{name}.pth" for name in ("vae", "t5")}
    torch.save(original_vae(tiny_vae()), files["vae"])
    torch.save(original_text(tiny_text()[1]), files["t5"])
    transformer = write_header(tmp_path / "wan2.1.safetensors", wan("1.3b"))
    model = Model(
        pretrained_transformer_model_name_or_path=str(transformer),
        pretrained_vae_model_name_or_path=str(files["vae"]),
        pretrained_t5_model_name_or_path=str(files["t5"]),
    )
    with pytest.raises(UserError) as raised:
        check_files(model, T2V)
    assert len(raised.value.problems) == 1
    assert raised.value.problems[0].key == "pretrained_tokenizer_model_name_or_path"
    tiny_text()[0].save_pretrained(tmp_path / "google/umt5-xxl")
    check_files(model, T2V)
