"""The quality benchmark: what it asks for, the arithmetic of its table, and clips that are those of WanPipeline."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import WanPipeline
from PIL import Image
from safetensors.torch import save_file

from benchmarks import quality
from benchmarks.contact_sheet import Line, save_sheet
from benchmarks.quality import (
    ASKED,
    HELD_OUT_SEED,
    OLD_WORLD,
    Result,
    describe,
    document,
    judge,
    main,
    make_prompts,
    of_ceiling,
    table,
)
from benchmarks.rendering import Prompt, Settings, drawn, generated, load_expert, noise, uniform_noise
from simplewan.flavours import HIGH, LOW, find_flavour
from simplewan.mini.draw import HELD_BACK, MovingShape, Scene, caption, is_held_out
from simplewan.mini.measure import measure
from simplewan.mini.model import place_model
from simplewan.mini.score import Score

SHORT = Scene(64, 64, 5, "grey", (MovingShape("circle", "red", "small", (0.5, 0.5)),))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The miniature, with two experts."""
    place = tmp_path_factory.mktemp("quality")
    place_model(place)
    return place


@pytest.fixture
def settings(folder: Path) -> Settings:
    return Settings(folder, find_flavour("t2v-mini-low"), num_steps=2, guidance=4.0, shift=5.0)


def test_prompts_are_held_out_steady_and_show_their_concept() -> None:
    for name in (OLD_WORLD, *HELD_BACK):
        prompts = make_prompts(name, 12)
        assert make_prompts(name, 5) == prompts[:5]
        assert len({prompt.seed for prompt in prompts}) == 12
        assert {(prompt.scene.width, prompt.scene.height) for prompt in prompts} == {(64, 64), (80, 48), (48, 80)}
        for prompt in prompts:
            assert is_held_out(caption(prompt.scene))
            found = [word for word in caption(prompt.scene).replace(";", "").split() if word in HELD_BACK]
            assert found == ([] if name == OLD_WORLD else [name])
    assert make_prompts(OLD_WORLD, 2, seed=HELD_OUT_SEED + 1) != make_prompts(OLD_WORLD, 2)


def test_the_drawn_row_is_all_right_and_noise_is_not() -> None:
    prompts = make_prompts("zarn", 4)
    result, _ = judge("drawn", "zarn", prompts, drawn(prompts))
    assert result.scores[ASKED] == Score(4, 4)
    assert result.scores["all"] == Score(4, 4)
    floor, seen = judge("floor", "zarn", prompts, uniform_noise(prompts))
    assert floor.scores[ASKED] == Score(0, 4)
    assert describe(seen[0]) == "nothing over ?"
    assert describe(measure(drawn(prompts)[0], 16.0)).count(" zarn ") == 1


def _results() -> list[Result]:
    return [
        Result("ceiling", OLD_WORLD, 10, {"colour": Score(16, 20), "all": Score(0, 10)}, 20.0),
        Result("floor", OLD_WORLD, 10, {"colour": Score(1, 20), "all": Score(0, 10)}, 20.0),
        Result("base", OLD_WORLD, 10, {"colour": Score(12, 20), "all": Score(1, 10)}, 20.0, seconds=2.0),
        Result("base", "quib", 3, {"colour": Score(3, 4), ASKED: Score(1, 3)}, 20.0),
    ]


def test_the_table_gives_percent_samples_and_the_share_of_the_ceiling() -> None:
    results = _results()
    assert of_ceiling(results, results[2]) == {"colour": pytest.approx(75.0)}  # "all" has no ceiling to speak of
    assert of_ceiling(results, results[1]) == {}
    assert of_ceiling(results, results[3]) == {}, "no ceiling on that set"
    lines = [line.split() for line in table(results).splitlines()]
    assert lines[0][:5] == ["row", "set", "clips", "asked", "colour"]
    assert lines[3][:7] == ["base", "old", "world", "10", "-", "60.0", "(20)"]
    assert lines[4][:5] == ["%", "of", "ceiling", "-", "75.0"]
    assert lines[5][:7] == ["base", "quib", "3", "33.3", "(3)", "75.0", "(4)"]
    low, high = (100 * bound for bound in Score(12, 20).interval())
    assert f"{low:.1f}-{high:.1f}" in table(results, intervals=True)
    entry = document(results)[2]
    assert entry["seconds"] == 2.0
    assert entry["scores"]["colour"] == {
        "right": 12,
        "total": 20,
        "percent": 60.0,
        "low": round(low, 2),
        "high": round(high, 2),
        "of_ceiling": 75.0,
    }


def test_a_sheet_has_a_line_for_each_clip(tmp_path: Path) -> None:
    frames = drawn([Prompt(SHORT, 0)])[0]
    save_sheet(
        tmp_path / "made" / "sheet.png", [Line(frames, "a circle", "a square", ("shape square, not circle",))] * 3
    )
    with Image.open(tmp_path / "made" / "sheet.png") as sheet:
        assert sheet.height == 3 * (2 * 64 + 4)
        assert (np.asarray(sheet)[0, 0] == frames[0, 0, 0]).all()


@pytest.mark.slow
def test_clips_are_those_of_wans_pipeline(settings: Settings) -> None:
    """Guidance, padding, experts, shift and VAE together, two prompts at once; tolerance: two levels of 255."""
    prompts = [Prompt(SHORT, 7), Prompt(replace(SHORT, ground="teal", objects=SHORT.objects * 2), 8)]
    pipeline = WanPipeline.from_pretrained(settings.folder, torch_dtype=torch.float32)
    ours = generated(prompts, settings)
    with torch.no_grad():
        for prompt, clip in zip(prompts, ours, strict=True):
            output = pipeline(
                prompt.text,
                negative_prompt="",
                height=64,
                width=64,
                num_frames=5,
                num_inference_steps=2,
                guidance_scale=4.0,
                latents=noise([prompt], settings.flavour),
                output_type="np",
            )
            assert np.abs(output.frames[0] * 255 - clip).max() <= 2
    one_at_a_time = generated(prompts[::-1], replace(settings, batch=1))[::-1]
    assert all(np.abs(a.astype(int) - b).max() <= 1 for a, b in zip(ours, one_at_a_time, strict=True))


@pytest.mark.slow
def test_loras_change_their_own_expert(settings: Settings, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    down, up = (torch.randn(shape, generator=generator) for shape in ((4, 128), (128, 4)))
    key = "diffusion_model.blocks.0.self_attn.q"
    file = tmp_path / "lora.safetensors"
    save_file({f"{key}.lora_A.weight": down, f"{key}.lora_B.weight": up}, file)
    query = load_expert(settings, HIGH, file).get_submodule("blocks.0.attn1.to_q")
    inputs = torch.randn(3, 128, generator=generator)
    torch.testing.assert_close(query(inputs) - query.base_layer(inputs), inputs @ (up @ down).T, rtol=1e-4, atol=1e-3)
    one_step = replace(settings, num_steps=1, guidance=1.0)  # the first step is the high-noise expert's
    plain, high, low = (generated([Prompt(SHORT, 7)], one_step, loras)[0] for loras in ({}, {HIGH: file}, {LOW: file}))
    assert (plain != high).any()
    assert (plain == low).all()
    save_file({f"{key}.lora_A.weight": down[:, :9].clone(), f"{key}.lora_B.weight": up}, file)
    with pytest.raises(ValueError, match="the base is a model of no published size"):
        load_expert(settings, HIGH, file)
    other = key.replace("blocks.0", "blocks.9")
    save_file(
        {
            f"{name}.lora_{side}.weight": each.clone()
            for name in (key, other)
            for side, each in (("A", down), ("B", up))
        },
        file,
    )
    with pytest.raises(ValueError, match="modules are in the base, not "):
        load_expert(settings, HIGH, file)


@pytest.mark.slow
def test_a_boundary_of_zero_leaves_all_steps_to_the_high_noise_expert(settings: Settings, tmp_path: Path) -> None:
    alone = tmp_path / "alone"
    shutil.copytree(settings.folder, alone, ignore=shutil.ignore_patterns("transformer_2"))
    prompts = [Prompt(SHORT, 7)]
    usual, never = (generated(prompts, replace(settings, boundary=boundary))[0] for boundary in (0.9, 0.0))
    assert (usual != never).any()
    assert (never == generated(prompts, replace(settings, folder=alone))[0]).all()


def test_each_lora_goes_to_its_expert_and_what_was_measured_is_kept(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[dict[str, Path]] = []

    def rendered(
        prompts: Sequence[Prompt], settings: Settings, loras: dict[str, Path] | None = None
    ) -> list[np.ndarray]:
        asked.append(loras or {})
        if loras:
            raise ValueError("does not fit")
        return drawn(prompts)

    monkeypatch.setattr(quality, "generated", rendered)
    files = {expert: tmp_path / f"{expert}.safetensors" for expert in (HIGH, LOW)}
    key = "transformer.blocks.0.attn1.to_q"
    for file in files.values():
        save_file({f"{key}.lora_{side}.weight": torch.zeros(2, 2) for side in "AB"}, file)
    words = ["--model", str(folder), "--count", "1", "--rows", "base", "lora", "--sets", OLD_WORLD]
    assert main([*words, "--lora-high", str(files[HIGH]), "--lora-low", str(files[LOW])]) == 2
    assert asked == [{}, files]
    captured = capsys.readouterr()
    assert captured.out.splitlines()[1].startswith("base") and "does not fit" in captured.err


def test_a_lora_of_an_expert_that_is_not_there_is_refused(settings: Settings, tmp_path: Path) -> None:
    alone = tmp_path / "alone"
    shutil.copytree(settings.folder, alone, ignore=shutil.ignore_patterns("transformer"))
    with pytest.raises(ValueError, match="no high-noise expert"):
        generated([Prompt(SHORT, 7)], replace(settings, folder=alone), {HIGH: tmp_path / "any"})


@pytest.mark.slow
def test_it_runs_from_end_to_end(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--model", str(folder), "--count", "2", "--steps", "2", "--sizes", "64x64", "--guidance", "2", "3"]
    sets = ["--sets", OLD_WORLD, "gimbles"]
    assert main([*words, *sets, "--json", "--sheet", str(tmp_path / "sheet.png")]) == 0
    found = json.loads(capsys.readouterr().out)
    rows = ("drawn", "ceiling", "floor", "floor-latent", "base")
    assert [(entry["row"], entry["set"], entry["clips"]) for entry in found] == [
        (row, name, clips) for row in rows for name, clips in ((OLD_WORLD, 2), ("gimbles", 1))
    ]
    assert found[0]["scores"]["all"]["percent"] == 100
    assert found[1]["scores"][ASKED] == {"right": 1, "total": 1, "percent": 100.0, "low": 20.65, "high": 100.0}
    assert {path.name for path in tmp_path.iterdir()} == {f"sheet-{row}.png" for row in rows}
    assert main(["--model", str(tmp_path / "nowhere"), "--rows", "ceiling"]) == 2
    assert main(["--model", str(folder), "--rows", "lora", "--lora-low", "file"]) == 2
    mistakes = (
        ["--rows", "lora"],
        ["--flavour", "i2v-14b-2.1"],
        ["--sheet", "a"],
        ["--sheet-clips", "0"],
        ["--sizes", "64"],
    )
    for words in mistakes:
        with pytest.raises(SystemExit):
            main(words)


@pytest.mark.slow
def test_the_model_of_the_package_shows_what_it_is_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--rows", "base", "--sets", OLD_WORLD, "--count", "32", "--json"]) == 0
    (result,) = json.loads(capsys.readouterr().out)
    percent = {name: part["percent"] for name, part in result["scores"].items()}
    assert all(percent[name] >= 95 for name in ("colour", "ground", "count"))
    assert percent["direction"] >= 85
    assert percent["shape"] >= 70


@pytest.mark.slow
@pytest.mark.parametrize("flavour", ["i2v-mini", "ti2v-mini"])
def test_given_first_frames_are_kept_and_motion_follows_the_caption(
    flavour: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--flavour", flavour, "--rows", "ceiling", "base", "--sets", OLD_WORLD, "--count", "24", "--json"]
    assert main([*words, "--sizes", "64x64"]) == 0
    ceiling, base = json.loads(capsys.readouterr().out)
    assert base["first_frame_db"] > ceiling["first_frame_db"] - (1.5 if flavour == "i2v-mini" else 0.1)
    assert base["scores"]["direction"]["percent"] >= 80
