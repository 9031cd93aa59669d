"""What has gone wrong is warned of: a run that destroys its LoRA, a loss that rises, a LoRA on another base."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest
import torch
from lora_files import lycoris_tensors, pairs, spelled
from runs import records, start, train_low
from safetensors.torch import save_file
from sampling import LOW_FILE, sample
from tiny import save_tiny_model, tiny_transformer

from simplewan.app.rises import Rises, watch_rises
from simplewan.events import EvalLoss
from simplewan.flavours import find_flavour
from simplewan.models.adapters import adapter_state, add_lora
from simplewan.models.lora.verify import LoraReport
from simplewan.models.lora.write import save_lora
from simplewan.options.groups.adapter import AdapterOptions

pytestmark = pytest.mark.usefixtures("apart", "fresh_accelerator")
LOW = find_flavour("t2v-mini-low")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("warnings") / "model", two_experts=True)


def said(folder: Path, *words: str) -> list[tuple[str, str]]:
    """(severity, message) of the notices with all these words."""
    found = [(record["severity"], record["message"]) for record in records(folder, "notice")]
    return [each for each in found if all(word in each[1] for word in words)]


def test_a_run_that_goes_on_with_too_high_a_learning_rate_is_told(model: Path, tmp_path: Path) -> None:
    targets = ["to_q", "ffn.net.2", "proj_out"]  # the last, since norms before it hide what blocks do
    train = partial(train_low, model, tmp_path, eval_steps_interval=1, checkpoint_step_interval=1, lora_targets=targets)
    assert train(max_train_steps=2) == 0
    assert [severity for severity, _ in said(Path("out"), "modules match")] == ["info"]
    assert not said(Path("out"), "has risen")
    assert train(max_train_steps=5, learning_rate=2.0) == 0
    ((severity, message),) = said(Path("out"), "has risen")
    assert severity == "warning" and "loss on fixed samples of the low-noise expert has risen from" in message
    assert message.endswith("the learning rate may be too high; checkpoint-2 is the last before")
    severity, message = said(Path("out"), "modules match")[-1]
    assert severity == "warning" and "more than a weight itself" in message and "lower learning_rate" in message


def heard(rises: Rises, *losses: float, first: int = 1, on: str = "a") -> list[str | None]:
    return [rises.add(EvalLoss(step, "low", loss, measured_on=on)) for step, loss in enumerate(losses, first)]


def test_a_loss_has_risen_when_it_is_twice_the_lowest_and_not_a_little(tmp_path: Path) -> None:
    assert heard(watch_rises(tmp_path, LOW, ["low"])["low"], 0.5, 0.3, 0.25, 0.49, 0.4) == [None] * 5
    assert heard(watch_rises(tmp_path, LOW, ["low"])["low"], 0.02, 0.1) == [None] * 2
    for step in (0, 2, 4):
        (tmp_path / f"checkpoint-{step}").mkdir()
    first, *others = heard(watch_rises(tmp_path, LOW, ["low"])["low"], 0.3, 0.2, 0.25, 0.5, 0.6)[3:]
    assert first is not None and "from 0.2 to 0.5:" in first and "checkpoint-2 is the last before" in first
    assert others == [None]
    (lost,) = filter(None, heard(watch_rises(tmp_path, LOW, ["low"])["low"], 0.3, float("nan"), first=-2))
    assert "to nan" in lost and "there is no checkpoint from before" in lost
    rises = watch_rises(tmp_path, LOW, ["low"])["low"]
    assert heard(rises, 0.1) == [None] and heard(rises, 0.9, first=2, on="other samples") == [None]


def test_the_losses_of_the_log_count_if_they_are_of_the_same_samples(tmp_path: Path) -> None:
    lines = [
        {"type": "eval_loss", "step": step, "role": role, "loss": loss, "measured_on": "a"}
        for step, role, loss in ((1, "low", 0.2), (1, "high", 0.01), (2, "low", None), (3, "low", 0.9))
    ]
    (tmp_path / "events.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (told,) = heard(watch_rises(tmp_path, LOW, ["low"])["low"], 0.7, first=4)
    assert told is not None and "from 0.2 to 0.7" in told
    assert heard(watch_rises(tmp_path, LOW, ["low"])["low"], 0.7, first=4, on="b") == [None]


def report_of(folder: Path, factor: float) -> LoraReport:
    """What is found in a LoRA whose products have `factor` times the norms of the weights."""
    transformer = tiny_transformer()
    add_lora(transformer, AdapterOptions(lora_rank=4), seed=1)
    state = adapter_state(transformer)
    generator = torch.Generator().manual_seed(2)
    for key in state:
        if "lora_B" in key:
            module = transformer.get_submodule(key.rsplit(".", 2)[0])
            up = torch.randn(state[key].shape, generator=generator)
            product = up @ state[key.replace("lora_B", "lora_A")]
            state[key] = up * factor * module.base_layer.weight.norm() / product.norm()
    return save_lora(folder / "x.safetensors", state, scale=1.0, metadata={}, transformer=transformer)


@pytest.mark.parametrize(("factor", "excessive"), [(0.9, False), (1.1, True)])
def test_a_lora_that_changes_a_weight_by_more_than_itself_is_excessive(
    factor: float, excessive: bool, tmp_path: Path
) -> None:
    assert report_of(tmp_path, factor).is_excessive is excessive


@pytest.mark.parametrize(("size", "state"), [(0.9, "healthy"), (1.1, "SUSPICIOUS")])
def test_the_doctor_doubts_what_no_training_adds(
    size: float, state: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    found = pairs(tiny_transformer())
    name = next(iter(found))
    down, up = found[name]
    found[name] = (down, up * size / (up @ down).square().mean().sqrt())
    save_file(spelled(found, "universal"), "x_low_noise.safetensors")
    code = start("lora", "doctor", "x_low_noise.safetensors")
    page = capfd.readouterr().out
    assert state in page.splitlines()[1] and "SICK" not in page
    assert start("lora", "doctor", "x_low_noise.safetensors", "--json") == code == (0 if state == "healthy" else 1)
    (document,) = json.loads(capfd.readouterr().out)
    assert not document["faults"] and document["healthy"] is (state == "healthy")
    assert [layer["flag"] for layer in document["layers"] if layer["flag"]] == ["too large"] * code
    if code:
        assert f"1 of {len(found)} layers change by more than 1 an entry" in document["doubts"][0]
        assert name in document["doubts"][0] and document["doubts"][0] in page


@pytest.mark.parametrize("algorithm", ["lokr", "loha"])
def test_the_doctor_trusts_sound_lycoris(algorithm: str, capfd: pytest.CaptureFixture[str]) -> None:
    save_file(lycoris_tensors(algorithm)[1], "x.safetensors")
    assert start("lora", "doctor", "x.safetensors") == 0
    assert "healthy" in capfd.readouterr().out


@pytest.mark.slow
def test_a_loras_base_is_named_and_another_is_warned_of(
    model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert train_low(model, tmp_path, max_train_steps=1) == 0
    tiny_transformer(seed=9).save_pretrained(tmp_path / "other")
    (tmp_path / "same").symlink_to(model / "transformer_2")
    key = "pretrained_transformer_2_model_name_or_path"
    warning, lora = "was trained on other weights than transformer_2 of", f"out/{LOW_FILE}"

    def told(*words: str) -> str:
        capfd.readouterr()
        assert sample(model, "output_dir=out", "prompt=a cat", "validation_num_inference_steps=2", *words) == 0
        return capfd.readouterr().err

    text = told()
    assert f"{lora} (step 1)\n" in text and warning not in text
    text = told(f"{key}={tmp_path / 'same'}")
    assert f"{lora} (step 1), on {tmp_path / 'same'}\n" in text and warning not in text
    text = told(f"{key}={tmp_path / 'other'}")
    assert f"{lora} (step 1), on {tmp_path / 'other'}\n" in text
    assert f"warning: {lora} (step 1) {warning} {tmp_path / 'other'}" in text and "adapter=none" in text
    text = told(f"{key}={tmp_path / 'other'}", f"adapter={lora}")
    assert f", on {tmp_path / 'other'}" in text and warning not in text


@pytest.mark.slow
@pytest.mark.parametrize(
    ("disabled", "promised"),
    [(False, "2 validations (one before the first step) of 1 clip ("), (True, "1 validation of")],
)
def test_the_plan_counts_the_validation_before_the_first_step(
    disabled: bool, promised: str, model: Path, tmp_path: Path
) -> None:
    settings = {"validation_disable": False, "disable_benchmark": disabled, "validation_num_inference_steps": 1}
    train = partial(train_low, model, tmp_path, wan_validation_load_other_stage=False, **settings)
    assert train(max_train_steps=1, validation_step_interval=1) == 0
    ((_, plan),) = said(Path("out"), "epochs of", "step")
    assert promised in plan
    assert len(list(Path("out/validation").glob("step-*"))) == int(promised[0])
    assert train(max_train_steps=2, validation_step_interval=1) == 0
    assert "before the first step" not in said(Path("out"), "epochs of")[-1][1]
