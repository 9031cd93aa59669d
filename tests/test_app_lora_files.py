"""What is said of files that are no LoRAs, of LoRAs that are not trained, and of whose expert they are."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from lora_files import lycoris_tensors, pairs, spelled, wan_name
from PIL import Image
from safetensors.torch import save_file
from tiny import save_tiny_model, tiny_text, tiny_transformer, tiny_vae

from simplewan.cli import main

pytestmark = pytest.mark.usefixtures("apart", "fresh_accelerator")
UNTRAINED = "has not been trained: all its changes are zero, as at the start"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("files") / "model", two_experts=True)


def write(name: str, **metadata: str) -> Path:
    save_file(spelled(pairs(tiny_transformer()), "universal"), name, metadata=metadata or None)
    return Path(name)


def cut(kept: int) -> Path:
    whole = write("whole.safetensors")
    Path("x.safetensors").write_bytes(whole.read_bytes()[:kept])
    return Path("x.safetensors")


def text(content: str) -> Path:
    Path("x.safetensors").write_text(content)
    return Path("x.safetensors")


def picture() -> Path:
    Image.new("RGB", (8, 8)).save("x.png")
    return Path("x.png")


def vae() -> Path:
    tiny_vae().save_pretrained("x")
    return Path("x/diffusion_pytorch_model.safetensors")


def whole_transformer() -> Path:
    tiny_transformer().save_pretrained("x")
    return Path("x/diffusion_pytorch_model.safetensors")


def text_encoder() -> Path:
    tiny_text()[1].save_pretrained("x")
    return Path("x/model.safetensors")


def optimizer() -> Path:
    weight = torch.nn.Parameter(torch.ones(2))
    adam = torch.optim.AdamW([weight])
    weight.sum().backward()
    adam.step()
    torch.save(adam.state_dict(), "x.pt")
    return Path("x.pt")


def pickled() -> Path:
    torch.save(spelled(pairs(tiny_transformer()), "universal"), "x.pt")
    return Path("x.pt")


def flipped() -> Path:
    whole = bytearray(pickled().read_bytes())
    whole[whole.index(b"self_attn")] ^= 1
    Path("x.pt").write_bytes(whole)
    return Path("x.pt")


def longer() -> Path:
    whole = write("whole.safetensors").read_bytes()
    Path("x.safetensors").write_bytes(whole + b"\0\0")
    return Path("x.safetensors")


def numbered() -> Path:
    """Metadata that no library writes, but an editor of headers may."""
    whole = write("whole.safetensors", expert="3").read_bytes()
    Path("x.safetensors").write_bytes(whole.replace(b'"3"', b" 3 "))
    return Path("x.safetensors")


STRANGERS = {
    "cut": (lambda: cut(20_000), "is cut off: it has 20000 bytes of 26992"),
    "header": (lambda: cut(100), "is cut off: it has 100 bytes, and its header alone 4464"),
    "empty": (lambda: cut(0), "is no safetensors file: it is empty"),
    "text": (lambda: text("no tensors\nat all"), 'is no safetensors file: it begins with "no tensors"'),
    "page": (lambda: text("<!DOCTYPE html>\n404"), "as web pages do"),
    "pointer": (lambda: text("version https://git-lfs.github.com/spec/v1"), "as Git LFS's pointers do"),
    "picture": (picture, "begins with the bytes 89 50 4e 47 0d 0a 1a 0a, as PNG pictures do"),
    "vae": (vae, "is a Wan VAE, expected a LoRA of a Wan transformer"),
    "transformer": (whole_transformer, "is a Wan transformer, expected a LoRA"),
    "encoder": (text_encoder, "is a UMT5 text encoder, expected a LoRA"),
    "optimizer": (optimizer, "is the state of an optimizer, expected a LoRA"),
    "longer": (longer, "is damaged: it has 2 bytes after its end"),
    "numbered": (numbered, "is damaged: its metadata are no texts by name"),
    "flipped": (flipped, "is damaged (Bad CRC-32"),
    "pickled": (pickled, "is a LoRA in PyTorch's format, expected a .safetensors file"),
}


@pytest.mark.parametrize("kind", STRANGERS)
def test_a_file_that_is_no_lora_is_called_what_it_is(kind: str, model: Path, capfd: pytest.CaptureFixture[str]) -> None:
    make, said = STRANGERS[kind]
    file = make()
    place = f"pretrained_model_name_or_path={model}"
    for words in (
        ["lora", "doctor", str(file)],
        ["export", str(file), "--to", "musubi"],
        ["sample", "prompt=a", "model_flavour=t2v-mini", place, f"adapter_high={file}"],
    ):
        assert main(words) == 2
        captured = capfd.readouterr()
        assert f"{file}: {said}" in captured.err or f"{file}: is no safetensors file" in captured.err
        assert said in captured.err and captured.out == ""
        assert not any(word in captured.err for word in ("Traceback", "deserializ", "InvalidHeader", "pickle"))


def test_all_files_that_are_no_loras_are_named_at_once(capfd: pytest.CaptureFixture[str]) -> None:
    write("good.safetensors")
    Path("a.safetensors").write_text("text")
    Path("b.safetensors").write_bytes(Path("good.safetensors").read_bytes()[:-1])
    for words in (["lora", "doctor", "."], ["export", ".", "--to", "musubi"]):
        assert main(words) == 2
        said = capfd.readouterr().err
        assert "a.safetensors: is no" in said and "b.safetensors: is cut off" in said and "good" not in said


def untrained(name: str) -> Path:
    tensors = spelled(pairs(tiny_transformer()), "universal")
    save_file({key: value.mul(0) if "lora_B" in key else value for key, value in tensors.items()}, name)
    return Path(name)


def test_a_lora_as_training_begins_with_it_is_called_untrained(model: Path, capfd: pytest.CaptureFixture[str]) -> None:
    untrained("x_high_noise.safetensors")
    assert main(["lora", "doctor", "x_high_noise.safetensors"]) == 1
    page = capfd.readouterr().out
    assert "NOT TRAINED" in page and f"it {UNTRAINED}" in page
    assert "SICK" not in page and "<- no effect" not in page
    assert main(["lora", "doctor", "x_high_noise.safetensors", "--json"]) == 1
    (document,) = json.loads(capfd.readouterr().out)
    assert not document["healthy"] and not document["trained"]
    place = f"pretrained_model_name_or_path={model}"
    quick = ("validation_resolution=48x32", "validation_num_video_frames=5", "validation_num_inference_steps=1")
    for words in (
        ["export", "x_high_noise.safetensors", "--to", "musubi"],
        ["export", "x_high_noise.safetensors", "--to", "merged", f"base={model}"],
        ["sample", "prompt=a", "model_flavour=t2v-mini", place, *quick, "adapter=x_high_noise.safetensors"],
    ):
        assert main(words) == 0
        assert f"warning: x_high_noise.safetensors {UNTRAINED}" in capfd.readouterr().err
    write("y_high_noise.safetensors")
    assert main(["export", "y_high_noise.safetensors", "--to", "musubi"]) == 0
    assert "trained" not in capfd.readouterr().err


@pytest.mark.parametrize("algorithm", ["lora", "lokr", "loha"])
def test_lycoris_as_it_is_made_is_untrained_too(algorithm: str, capfd: pytest.CaptureFixture[str]) -> None:
    save_file(lycoris_tensors(algorithm, trained=False)[1], "x.safetensors")
    assert main(["lora", "doctor", "x.safetensors"]) == 1
    page = capfd.readouterr().out
    assert "NOT TRAINED" in page and f"it {UNTRAINED}" in page
    assert "SICK" not in page and "no effect" not in page.replace("or it had no effect", "")


def test_a_dora_acts_through_its_magnitudes_alone(capfd: pytest.CaptureFixture[str]) -> None:
    tensors = lycoris_tensors("lora", dora_wd=True)[1]
    save_file({key: value.mul(0) if "lora_up" in key else value for key, value in tensors.items()}, "x.safetensors")
    assert main(["lora", "doctor", "x.safetensors"]) == 0
    page = capfd.readouterr().out
    assert "healthy" in page and "NOT TRAINED" not in page and "no effect" not in page


@pytest.mark.parametrize(
    ("ending", "value"),
    [("dora_scale", torch.tensor(1.0)), ("alpha", torch.ones(0)), ("alpha", torch.ones(2)), (None, torch.ones(0, 32))],
    ids=str,
)
def test_a_module_that_is_no_whole_is_told(
    ending: str | None, value: torch.Tensor, model: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    name = "diffusion_model.blocks.0.self_attn.q"
    tensors = spelled(pairs(tiny_transformer()), "universal")
    if ending is None:  # a LoRA of rank 0
        tensors |= {f"{name}.lora_A.weight": value, f"{name}.lora_B.weight": value.T.contiguous()}
        tensors[f"{name}.alpha"] = torch.tensor(1.0)
    else:
        tensors[f"{name}.{ending}"] = value
    save_file(tensors, "x_high_noise.safetensors")
    assert main(["lora", "doctor", "x_high_noise.safetensors"]) == 1
    assert "1 incomplete modules: blocks.0.attn1.to_q (" in capfd.readouterr().out
    assert main(["export", "x_high_noise.safetensors", "--to", "merged", f"base={model}"]) == 2
    said = capfd.readouterr().err
    assert "1 incomplete modules: blocks.0.attn1.to_q (" in said and "Traceback" not in said


def test_what_changes_nothing_in_a_block_is_told_in_words(capfd: pytest.CaptureFixture[str]) -> None:
    """diffusers' reader takes the least number of a block: of none there is no least."""
    tensors = {"lora_A.weight": torch.ones(1, 1536), "lora_B.weight": torch.ones(64, 1)}
    save_file({f"diffusion_model.head.head.{key}": value for key, value in tensors.items()}, "x.safetensors")
    main(["lora", "doctor", "x.safetensors"])
    page = capfd.readouterr().out
    assert "diffusers reads no LoRA that changes nothing in the blocks" in page and "min()" not in page


def test_a_dora_has_no_strength_to_multiply(model: Path, capfd: pytest.CaptureFixture[str]) -> None:
    save_file(lycoris_tensors("lora", dora_wd=True)[1], "x_high_noise.safetensors")
    words = ["sample", "prompt=a", "model_flavour=t2v-mini", f"pretrained_model_name_or_path={model}"]
    assert main([*words, "adapter=x_high_noise.safetensors", "adapter_scale=0.5"]) == 2
    said = capfd.readouterr().err
    assert "its strength is not a factor; leave adapter_scale out" in said


DIFFUSERS = "load_into_transformer_2=True"


@pytest.mark.parametrize(
    ("name", "width", "metadata", "wanted", "diffusers", "musubi"),
    [
        ("x", 1536, {}, "Wan 2.1 T2V 1.3B", "", ""),
        ("x_high_noise", 1536, {}, "Wan 2.1 T2V 1.3B", "", ""),
        ("x", 3072, {}, "Wan 2.2 TI2V 5B", "", ""),
        ("x", 5120, {"model_flavour": "t2v-480p-14b-2.1"}, "Wan 2.1 14B", "", ""),
        ("wan2.1_x", 5120, {}, "Wan 2.1 14B", "", ""),
        ("x_high_noise", 5120, {}, "Wan 2.2 A14B", "", "with --lora_weight_high_noise"),
        ("x", 5120, {"expert": "low_noise"}, "Wan 2.2 A14B", f"with {DIFFUSERS}", "with --lora_weight"),
        ("x", 5120, {"model_flavour": "t2v-a14b-2.2-low"}, "Wan 2.2 A14B", f"with {DIFFUSERS}", "with --lora_weight"),
        (
            "x",
            5120,
            {},
            "Wan 14B: 2.1, or an expert of 2.2 A14B",
            f"if it is for an expert of 2.2: the low-noise file with {DIFFUSERS}",
            "if it is for an expert of 2.2: the high-noise file with --lora_weight_high_noise, "
            "the low-noise file with --lora_weight",
        ),
    ],
)
def test_the_doctors_advice_is_for_the_files_own_model_and_expert(
    name: str,
    width: int,
    metadata: dict[str, str],
    wanted: str,
    diffusers: str,
    musubi: str,
    capfd: pytest.CaptureFixture[str],
) -> None:
    pair = {"blocks.3.attn1.to_q": (torch.ones(1, width), torch.ones(width, 1))}
    assert wan_name("blocks.3.attn1.to_q") == "blocks.3.self_attn.q"
    for style, tool, advice in (("universal", "diffusers", diffusers), ("musubi", "musubi", musubi)):
        alpha = 1.0 if style == "musubi" else None
        save_file(spelled(pair, style, alpha=alpha), f"{name}.safetensors", metadata=metadata or None)
        assert main(["lora", "doctor", f"{name}.safetensors", "--json"]) == 0
        (document,) = json.loads(capfd.readouterr().out)
        assert document["model"] == wanted
        assert document["tools"][tool] == {"outcome": "loads", "reason": advice}
        if name == "x_high_noise":
            assert document["expert"] == (None if width == 1536 else "high")
            assert any("has one expert" in remark for remark in document["remarks"]) == (width == 1536)
