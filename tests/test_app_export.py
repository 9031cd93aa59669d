"""`simpletuner export` and `simpletuner lora doctor` through the real parser, on tiny models and files."""

from __future__ import annotations

import errno
import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from diffusers import WanTransformer3DModel
from lora_files import lycoris_tensors, merged_by_hand, pairs, predict, spelled, wan_name
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from tiny import save_tiny_model, tiny_transformer

from simplewan.app import exporting
from simplewan.cli import main
from simplewan.flavours import find_flavour
from simplewan.models.keys import to_original
from simplewan.models.lora import merge as merge_module
from simplewan.models.lora.change import Change
from simplewan.models.lora.write import lora_metadata

pytestmark = pytest.mark.usefixtures("apart")
FLAVOUR = find_flavour("t2v-mini")
CLOSE = 2e-6


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("export") / "model", two_experts=True)


def run_folder(folder: Path = Path("run")) -> dict[str, dict]:
    """What a run leaves: a LoRA an expert, with metadata; returns the pairs."""
    folder.mkdir(exist_ok=True)
    found = {}
    for seed, expert in enumerate(("high", "low")):
        found[expert] = pairs(tiny_transformer(seed=seed), seed=10 + seed)
        metadata = lora_metadata(FLAVOUR, expert, rank=4, alpha=4, base_model="tiny", shift=3.5, step=7)
        name = f"pytorch_lora_weights_{expert}_noise.safetensors"
        save_file(spelled(found[expert], "universal"), folder / name, metadata=metadata)
    return found


def metadata(path: Path) -> dict[str, str]:
    with safe_open(path, framework="pt") as file:
        return file.metadata()


def loaded(folder: Path) -> torch.nn.Module:
    return WanTransformer3DModel.from_pretrained(folder).eval()


def distance(first: torch.nn.Module, second: torch.nn.Module) -> float:
    return (predict(first) - predict(second)).abs().max().item()


def test_a_runs_folder_is_two_files_with_all_that_is_known(capfd: pytest.CaptureFixture[str]) -> None:
    found = run_folder()
    assert main(["export", "run", "--to", "musubi", "--json"]) == 0
    records = json.loads(capfd.readouterr().out)
    assert [record["expert"] for record in records] == ["high", "low"]
    for record in records:
        path = Path(record["path"])
        assert path == Path("run/export") / f"pytorch_lora_weights_musubi_{record['expert']}_noise.safetensors"
        written, expected = load_file(path), spelled(found[record["expert"]], "musubi", alpha=4)
        assert written.keys() == expected.keys()
        assert all(torch.equal(written[key], expected[key]) for key in expected)
        told = metadata(path)
        assert told["expert"] == f"{record['expert']}_noise"
        assert (told["task"], told["boundary"], told["shift"]) == ("t2v", "0.6", "3.5")
        assert (told["rank"], told["base_model"], told["step"]) == ("4", "tiny", "7")
        assert "lora_unet" in told["lora_format"]


@pytest.mark.parametrize(
    ("output", "words"),
    [
        ("afile", "afile/{name} cannot be written: afile is a file"),
        ("afile/x", "afile/x/{name} cannot be written: afile is a file"),
        ("/proc/x/y", "cannot be written: No such file or directory"),
        ("y" * 300, "cannot be written: File name too long"),
    ],
)
@pytest.mark.parametrize("to", ["universal", "merged"])
def test_a_place_that_cannot_be_written_is_named(
    to: str, output: str, words: str, model: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    save_file(spelled(pairs(tiny_transformer()), "universal"), "x_high_noise.safetensors")
    Path("afile").write_text("mine")
    base = [f"base={model}", "model_flavour=t2v-mini"] if to == "merged" else []
    assert main(["export", "x_high_noise.safetensors", "--to", to, *base, f"output={output}"]) == 2
    said = " ".join(capfd.readouterr().err.replace("'", "").split())
    name = "transformer" if to == "merged" else "x_universal_high_noise.safetensors"
    assert "command line: output = " in said and words.format(name=name) in said
    assert "name a folder that can be written" in said
    assert Path("afile").read_text() == "mine"


@pytest.mark.parametrize("fault", [OSError(errno.ENOSPC, "No space left on device"), SafetensorError("I/O error")])
def test_a_disk_that_is_full_is_told(
    fault: Exception, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def fail(*_arguments: object) -> None:
        raise fault

    monkeypatch.setattr(exporting, "write_tensors", fail)
    save_file(spelled(pairs(tiny_transformer()), "universal"), "x.safetensors")
    assert main(["export", "x.safetensors", "--to", "musubi", "output=y.safetensors"]) == 2
    reason = fault.strerror if isinstance(fault, OSError) else "I/O error"
    assert f"output = 'y.safetensors' cannot be written: {reason}; name a folder" in capfd.readouterr().err
    assert not Path("y.safetensors").exists()


def test_there_and_back_is_the_same_file(capfd: pytest.CaptureFixture[str]) -> None:
    run_folder()
    source = Path("run/pytorch_lora_weights_low_noise.safetensors")
    for step, (to, before) in enumerate((("musubi", source), ("lycoris", "0"), ("diffusers", "1"), ("universal", "2"))):
        path = before if step == 0 else f"{before}.safetensors"
        assert main(["export", str(path), f"to={to}", f"output={step}.safetensors"]) == 0
    first, last = load_file(source), load_file("3.safetensors")
    assert first.keys() == last.keys()
    assert all(torch.equal(first[key], last[key]) for key in first)
    assert metadata(Path("3.safetensors")) | {"alpha": "4"} == metadata(source)


def test_options_change_what_is_written(capfd: pytest.CaptureFixture[str]) -> None:
    found = pairs(tiny_transformer())
    save_file(spelled(found, "kohya"), "x.safetensors")
    words = ["--to", "universal", "--dtype", "bf16", "alpha=2", "--scale=3", "expert=low", "output=there"]
    assert main(["export", "x.safetensors", *words]) == 0
    written = load_file("there/x_universal_low_noise.safetensors")
    down, up = found["blocks.0.attn1.to_q"]
    key = "diffusion_model.blocks.0.self_attn.q.lora_{}.weight"
    assert torch.equal(written[key.format("A")], down.bfloat16())
    assert torch.equal(written[key.format("B")], (up * 1.5).bfloat16())
    assert main(["export", "x.safetensors", *words]) == 2
    assert "is there already; give --overwrite" in capfd.readouterr().err
    assert main(["export", "x.safetensors", *words, "--overwrite"]) == 0


def test_lycoris_to_diffusers_needs_a_word_of_the_user(capfd: pytest.CaptureFixture[str]) -> None:
    trained, tensors = lycoris_tensors("lokr", factor=4)
    save_file(tensors, "x.safetensors")
    assert main(["export", "x.safetensors", "--to", "diffusers"]) == 2
    said = capfd.readouterr().err
    assert "lokr of LyCORIS" in said and "--to merged" in said and "--as-lora RANK" in said
    assert not Path("export").exists()
    assert main(["export", "x.safetensors", "--to", "diffusers", "--as-lora", "32", "--json"]) == 0
    (record,) = json.loads(capfd.readouterr().out)
    assert len(record["errors"]) == 20 and max(record["errors"].values()) < 1e-5
    own = tiny_transformer()
    own.load_lora_adapter(load_file("export/x_diffusers.safetensors"))
    assert distance(own, trained) < 1e-5
    assert main(["export", "x.safetensors", "--to", "universal", "--as-lora", "2", "output=2", "--json"]) == 0
    captured = capfd.readouterr()
    assert 0.1 < max(json.loads(captured.out)[0]["errors"].values()) < 1
    assert "relative error up to" in captured.err


def test_what_a_format_cannot_say_is_dropped_only_when_asked(capfd: pytest.CaptureFixture[str]) -> None:
    tensors = spelled(pairs(tiny_transformer()), "universal")
    tensors["diffusion_model.blocks.0.diff_m"] = torch.ones(1, 6, 32)
    tensors["lora_te_text_model.lora_A.weight"] = torch.ones(4, 32)
    save_file(tensors, "x.safetensors")
    assert main(["export", "x.safetensors", "--to", "musubi"]) == 2
    assert "lora_te_text_model.lora_A.weight" in capfd.readouterr().err
    del tensors["lora_te_text_model.lora_A.weight"]
    save_file(tensors, "x.safetensors")
    assert main(["export", "x.safetensors", "--to", "musubi"]) == 2
    assert "blocks.0.scale_shift_table is changed as a whole" in capfd.readouterr().err
    assert main(["export", "x.safetensors", "--to", "musubi", "--drop"]) == 0
    assert "left out: blocks.0.scale_shift_table" in capfd.readouterr().err
    assert len(load_file("export/x_musubi.safetensors")) == 60


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["x.safetensors"], "no format was given"),
        (["x.safetensors", "--to", "musuby"], 'did you mean "musubi"?'),
        (["x.safetensors", "--to", "musubi", "dtype=peft"], "there are fp32, fp16, bf16"),
        (["x.safetensors", "--to", "kohya"], 'did you mean "musubi"?'),
        (["y.safetensors", "--to", "musubi"], "there is no such file"),
        (["x.safetensors", "--to", "musubi", "output=x.safetensors"], "is what is read"),
        (["x.safetensors", "--to", "musubi", "--as-lora", "0"], "is not a whole number of 1 or more"),
        (["x.safetensors", "--to", "musubi", "scale=nan"], "is not a number"),
        (["x.safetensors", "--to", "merged"], "does not tell what it is to be merged into"),
        (["x.safetensors", "x2.safetensors", "--to", "musubi", "output=z.safetensors"], "more than once"),
        (["empty", "--to", "musubi"], "holds no LoRA (.safetensors)"),
        (["text.safetensors", "--to", "musubi"], "is no safetensors file"),
        (["--to", "musubi"], "config/config.json"),
    ],
)
def test_mistakes_are_told_in_a_line(words: list[str], expected: str, capfd: pytest.CaptureFixture[str]) -> None:
    for name in ("x", "x2"):
        save_file(spelled(pairs(tiny_transformer()), "universal"), f"{name}.safetensors")
    Path("empty").mkdir()
    Path("text.safetensors").write_text("no tensors")
    assert main(["export", *words]) == 2
    captured = capfd.readouterr()
    assert expected in captured.err and "Traceback" not in captured.err and captured.out == ""


def test_a_base_that_is_named_is_what_the_file_must_fit(model: Path, capfd: pytest.CaptureFixture[str]) -> None:
    save_file(spelled(pairs(tiny_transformer(layers=3)), "universal"), "x.safetensors")
    assert main(["export", "x.safetensors", "--to", "musubi"]) == 0
    assert main(["export", "x.safetensors", "--to", "musubi", f"base={model}", "output=there"]) == 2
    assert "the model has no" in capfd.readouterr().err
    assert not Path("there").exists() or not list(Path("there").iterdir())


@pytest.mark.parametrize("shards", [False, True])
def test_merged_is_the_base_with_the_lora_in_its_weights(model: Path, tmp_path: Path, shards: bool) -> None:
    found = run_folder()
    base = model
    if shards:
        base = tmp_path / "sharded"
        for part in ("transformer", "transformer_2"):
            loaded(model / part).save_pretrained(base / part, max_shard_size="60KB")
        assert len(list((base / "transformer").glob("*.safetensors"))) > 1
    assert main(["export", "run", "--to", "merged", f"base={base}", "output=there", "scale=0.5"]) == 0
    for seed, (expert, part) in enumerate((("high", "transformer"), ("low", "transformer_2"))):
        merged = loaded(Path("there") / part)
        assert distance(merged, merged_by_hand(found[expert], scale=0.5, seed=seed)) < CLOSE
        assert distance(merged, tiny_transformer(seed=seed)) > 1e-2


def test_only_a_checkpoint_with_loras_is_named(capfd: pytest.CaptureFixture[str]) -> None:
    Path("run/checkpoint-6").mkdir(parents=True)
    run_folder(Path("run/checkpoint-3"))
    for folder in ("run", "run/checkpoint-3", "run/checkpoint-6"):
        Path(folder, "config.resolved.json").write_text(json.dumps({"model_type": "lora"}))
    tiny_transformer().save_pretrained("run/transformer")  # a checkpoint was merged into the run's folder
    for words in (["export", "run", "--to", "musubi"], ["lora", "doctor", "run"]):
        assert main(words) == 2
        said = capfd.readouterr().err
        assert "holds no LoRA" in said and "name a checkpoint in it: run/checkpoint-3" in said
    assert main(["export", "run/checkpoint-6", "--to", "musubi"]) == 2
    assert "holds no LoRA (.safetensors); name the file" in capfd.readouterr().err


def test_a_model_is_no_folder_of_loras(model: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["lora", "doctor", str(model)]) == 2
    assert "is no LoRA but a whole model (transformer/, transformer_2/)" in capfd.readouterr().err


def original_file(path: Path, *, prefix: str = "", dtype: torch.dtype = torch.float32) -> Path:
    tensors = tiny_transformer().state_dict()
    save_file({f"{prefix}{to_original(key)}": value.to(dtype).contiguous() for key, value in tensors.items()}, path)
    return path


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_single_files_with_wans_own_names_are_merged_too(model: Path, prefix: str) -> None:
    trained, tensors = lycoris_tensors("lokr", factor=4)
    save_file(tensors, "fox_high_noise.safetensors")
    base = original_file(Path("base.safetensors"), prefix=prefix)
    assert main(["export", "fox_high_noise.safetensors", "to=merged", f"base={base}", "layout=original"]) == 0
    path = Path("merged/fox_merged_high_noise.safetensors")
    assert set(load_file(path)) == set(load_file(base))
    config = model / "transformer"
    assert distance(WanTransformer3DModel.from_single_file(str(path), config=str(config)).eval(), trained) < CLOSE
    shutil.copyfile(config / "config.json", "config.json")
    assert main(["export", "fox_high_noise.safetensors", "to=merged", f"base={base}"]) == 0
    assert distance(loaded(Path("merged/transformer")), trained) < CLOSE


def test_every_kind_is_merged(model: Path) -> None:
    for number, (algorithm, settings) in enumerate((("loha", {}), ("lora", {"dora_wd": True}), ("full", {}))):
        trained, tensors = lycoris_tensors(algorithm, **settings)
        save_file(tensors, f"{number}.safetensors")
        words = [f"{number}.safetensors", "--to", "merged", f"base={model}", "expert=high", f"output={number}"]
        assert main(["export", *words]) == 0
        assert distance(loaded(Path(f"{number}/transformer")), trained) < CLOSE


def test_a_dtype_casts_but_for_what_diffusers_keeps(model: Path) -> None:
    run_folder()
    words = ["run/pytorch_lora_weights_high_noise.safetensors", "--to", "merged", f"base={model}", "--dtype", "bf16"]
    assert main(["export", *words, "output=there"]) == 0
    written = load_file("there/transformer/diffusion_pytorch_model.safetensors")
    kinds = {key: value.dtype for key, value in written.items()}
    assert kinds["blocks.0.attn1.to_q.weight"] == torch.bfloat16
    assert kinds["blocks.0.scale_shift_table"] == kinds["blocks.0.norm2.weight"] == torch.float32


def test_one_weight_at_a_time_is_in_memory(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_folder()
    alive: list[str] = []
    load = merge_module._load

    def watched(tensor, changes, **rest):
        alive.append(tensor.key)
        value = load(tensor, changes, **rest)
        assert value.numel() == torch.Size(tensor.shape).numel()
        return value

    monkeypatch.setattr(merge_module, "_load", watched)
    monkeypatch.setattr("safetensors.torch.load_file", lambda *_: pytest.fail("a whole file was loaded"))
    assert main(["export", "run", "--to", "merged", f"base={model}", "output=there"]) == 0
    assert len(alive) == 2 * len(tiny_transformer().state_dict())


def test_what_cannot_be_merged_leaves_nothing(model: Path, capfd: pytest.CaptureFixture[str]) -> None:
    save_file(spelled(pairs(tiny_transformer(layers=3)), "universal"), "deeper_high_noise.safetensors")
    save_file(spelled(pairs(tiny_transformer(dim=48)), "universal"), "wider_high_noise.safetensors")
    save_file(spelled(pairs(tiny_transformer()), "universal"), "untold.safetensors")
    for file, base, why in (
        ("deeper_high_noise", model, "in the base, not blocks.2"),
        ("wider_high_noise", model, "the base's is"),
        ("untold", model, "does not tell which expert"),
    ):
        words = [f"{file}.safetensors", "--to", "merged", f"base={base}", "layout=original", "output=there"]
        assert main(["export", *words]) == 2
        assert why in capfd.readouterr().err
    assert not Path("there").exists() or not list(Path("there").iterdir())


def test_a_merge_that_reads_back_otherwise_is_refused(
    model: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    run_folder()
    monkeypatch.setattr(Change, "changed", lambda _change, weight: weight.float() * 1.001)
    words = ["run/pytorch_lora_weights_high_noise.safetensors", "--to", "merged", f"base={model}", "output=there"]
    assert main(["export", *words]) == 2
    assert "reads back" in capfd.readouterr().err
    assert not Path("there/transformer").exists()


def doctor(capfd: pytest.CaptureFixture[str], *words: str) -> tuple[int, list[dict]]:
    code = main(["lora", "doctor", *words, "--json"])
    return code, json.loads(capfd.readouterr().out)


def test_the_doctor_knows_a_healthy_run(capfd: pytest.CaptureFixture[str]) -> None:
    found = run_folder()
    code, documents = doctor(capfd, "run")
    assert code == 0
    assert [document["expert"] for document in documents] == ["high", "low"]
    first = documents[0]
    assert (first["healthy"], first["kinds"], first["ranks"], first["scales"]) == (True, ["lora"], [4], [1.0])
    assert first["metadata"]["step"] == "7"
    norms = {layer["module"]: layer["norm"] for layer in first["layers"]}
    down, up = found["high"]["blocks.1.ffn.net.2"]
    assert norms["blocks.1.ffn.net.2"] == pytest.approx((up @ down).norm().item(), rel=1e-4)
    outcomes = {tool: verdict["outcome"] for tool, verdict in first["tools"].items()}
    assert outcomes == {
        "diffusers": "loads",
        "ComfyUI": "loads",
        "musubi": "does not load",
        "DiffSynth": "loads",
        "LightX2V": "loads",
    }
    assert main(["lora", "doctor", "run", "--layers"]) == 0
    page = capfd.readouterr().out
    assert "cross q" in page and f"{norms['blocks.0.attn1.to_q']:.3g}" in page
    assert "blocks.1.ffn.net.2: lora, rank 4, scale 1, norm" in page


@pytest.mark.parametrize(
    ("style", "alpha", "loads", "weaker"),
    [
        ("universal", None, {"diffusers", "ComfyUI", "DiffSynth", "LightX2V"}, set()),
        ("kohya", 2.0, {"diffusers", "ComfyUI"}, {"DiffSynth", "LightX2V"}),
        ("kohya", 4.0, {"diffusers", "ComfyUI", "DiffSynth", "LightX2V"}, set()),
        ("bare", None, {"DiffSynth", "LightX2V"}, set()),
        ("diffusers", None, {"diffusers"}, set()),
        ("musubi", 4.0, {"diffusers", "ComfyUI", "musubi"}, set()),
        ("peft", None, set(), set()),
        ("lycoris", 4.0, set(), set()),
    ],
)
def test_the_doctor_tells_what_each_tool_will_do(
    style: str, alpha: float | None, loads: set[str], weaker: set[str], capfd: pytest.CaptureFixture[str]
) -> None:
    save_file(spelled(pairs(tiny_transformer()), style, alpha=alpha), "x.safetensors")
    code, (document,) = doctor(capfd, "x.safetensors")
    outcomes = {tool: verdict["outcome"] for tool, verdict in document["tools"].items()}
    assert {tool for tool, outcome in outcomes.items() if outcome == "loads"} == loads
    assert {tool for tool, outcome in outcomes.items() if "strength" in outcome} == weaker
    assert code == 0


def sick(tensors: dict[str, torch.Tensor], kind: str) -> None:
    key = "diffusion_model.blocks.0.self_attn.q.lora_B.weight"
    if kind == "nan":
        tensors[key][0, 0] = torch.nan
    elif kind == "dead":
        tensors[key].zero_()
    elif kind == "half":
        del tensors[key]
    elif kind == "unknown":
        tensors["diffusion_model.blocks.0.self_attn.z.lora_B.weight"] = tensors[key].clone()
    elif kind == "twice":
        tensors["blocks.0.self_attn.q.lora_B.weight"] = tensors[key].clone()
    else:
        tensors[key] = torch.ones(48, 4)


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("nan", "not finite: blocks.0.attn1.to_q"),
        ("dead", "1 of 20 layers have no effect (their product is zero): blocks.0.attn1.to_q"),
        ("half", "1 incomplete modules: blocks.0.attn1.to_q (down)"),
        ("unknown", "1 keys that belong to no part"),
        ("twice", "1 tensors that are there twice"),
        ("shape", "do not fit the model: blocks.0.attn1.to_q"),
    ],
)
def test_the_doctor_finds_what_is_wrong(kind: str, said: str, capfd: pytest.CaptureFixture[str]) -> None:
    tensors = spelled(pairs(tiny_transformer()), "universal")
    sick(tensors, kind)
    save_file(tensors, "x.safetensors")
    code, (document,) = doctor(capfd, "x.safetensors")
    assert code == 1 and not document["healthy"]
    assert any(said in fault for fault in document["faults"]), document["faults"]
    assert main(["lora", "doctor", "x.safetensors"]) == 1
    page = capfd.readouterr().out
    assert "SICK" in page and said in page


@pytest.mark.slow
def test_the_doctor_tells_the_model_by_its_shapes(capfd: pytest.CaptureFixture[str]) -> None:
    def pair(module: str, out: int, inner: int) -> dict[str, torch.Tensor]:
        name = f"diffusion_model.{wan_name(module)}"
        return {f"{name}.lora_A.weight": torch.ones(1, inner), f"{name}.lora_B.weight": torch.ones(out, 1)}

    for width, more, expected in (
        (1536, {}, "T2V 1.3B"),
        (3072, {}, "TI2V 5B"),
        (5120, {}, "an expert of 2.2 A14B"),
        (5120, pair("blocks.0.attn2.add_k_proj", 5120, 5120), "I2V 14B"),
    ):
        save_file(pair("blocks.3.attn1.to_q", width, width) | more, "x.safetensors")
        code, (document,) = doctor(capfd, "x.safetensors")
        assert code == 0, document["faults"]
        assert expected in document["model"]
    save_file(pair("blocks.30.attn1.to_q", 1536, 1536), "x.safetensors")
    assert "has 30" in doctor(capfd, "x.safetensors")[1][0]["faults"][-1]
    told = {"model_flavour": "t2v-a14b-2.2-high"}
    save_file(pair("blocks.3.attn1.to_q", 1536, 1536), "x.safetensors", metadata=told)
    assert "speak of t2v-a14b-2.2-high" in doctor(capfd, "x.safetensors")[1][0]["faults"][-1]


def test_the_doctors_mistakes_are_the_users(capfd: pytest.CaptureFixture[str]) -> None:
    Path("text.safetensors").write_text("no tensors")
    for words, why in (
        (["doctor", "nothing.safetensors"], "there is no such file"),
        (["doctor", "text.safetensors"], "is no safetensors file"),
        (["doctor"], "no file was named"),
        (["docter"], 'did you mean "lora doctor"?'),
        (["doctor", "learning_rate=1", "text.safetensors"], "is not an argument"),
    ):
        assert main(["lora", *words]) == 2
        assert why in capfd.readouterr().err
    save_file(spelled(pairs(tiny_transformer()), "kohya"), "good.safetensors")
    assert main(["lora", "doctor", "nothing", "text.safetensors", "good.safetensors"]) == 2  # the good one is shown
    out, err = capfd.readouterr()
    assert (
        out.startswith("good.safetensors\n  healthy") and "nothing: there is no such" in err and "no safetensors" in err
    )


def test_an_export_tells_which_tools_will_not_take_all(capfd: pytest.CaptureFixture[str]) -> None:
    save_file(lycoris_tensors("lokr", factor=4)[1], "x.safetensors")
    assert main(["export", "x.safetensors", "--to", "universal"]) == 0
    said = capfd.readouterr().err
    assert all(f"{tool} does not load" in said for tool in ("diffusers", "DiffSynth", "LightX2V"))
    assert "ComfyUI" not in said
    save_file(spelled(pairs(tiny_transformer()), "kohya"), "y.safetensors")
    assert main(["export", "y.safetensors", "--to", "universal"]) == 0
    assert "load in part" not in capfd.readouterr().err


@pytest.mark.slow
def test_the_commands_of_the_page_run_on_the_miniature(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SIMPLEWAN_CACHE", str(tmp_path / "cache"))
    few = ("max_train_steps=1", "validation_disable=true", "eval_steps_interval=0")
    assert main(["train", "example=mini", *few]) == 0
    page = (Path(__file__).resolve().parents[1] / "docs" / "lora.md").read_text(encoding="utf-8")
    lines = [
        line
        for block in re.findall(r"^```bash\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
        for line in block.splitlines()
    ]
    assert len(lines) >= 9
    for line in lines:
        words = shlex.split(line, comments=True)[1:]
        if words[0] == "sample":
            words += ["prompt=a", "validation_num_inference_steps=2", "validation_resolution=48x32"]
        AcceleratorState._reset_state(reset_partial_state=True)
        assert main(words) == 0, line
    assert [file.name for file in Path("one-file").iterdir()] == ["transformer_merged_high_noise.safetensors"]
