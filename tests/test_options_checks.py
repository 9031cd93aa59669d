"""Options that contradict each other, the flavour, a dataset or the arithmetic of timesteps are told at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from option_files import DATASET, load_in, problems

from simplewan.objectives.distributions import Sampling


@pytest.mark.parametrize("value", [0, -1, "many", None, 2.5, [81, 0], []])
def test_num_frames_that_cannot_be(tmp_path: Path, value: Any) -> None:
    datasets = [{**DATASET, "video": {"num_frames": value}}]
    if value is None:
        assert load_in(tmp_path, datasets=datasets).datasets[0].video.num_frames == (81,)
    else:
        assert 'dataset "clips": video.num_frames' in problems(tmp_path, datasets=datasets)


def test_datasets_that_contradict_each_other(tmp_path: Path) -> None:
    text = problems(tmp_path, datasets=[DATASET, DATASET])
    assert 'dataset "clips": id is there twice' in text
    assert "no enabled dataset" in problems(tmp_path, datasets=[{"id": "t", "dataset_type": "text_embeds"}])
    wrong = {**DATASET, "video": {"num_frames": 49, "min_frames": 60, "max_frames": 50}}
    assert "max_frames 50 is below min_frames 60" in problems(tmp_path, datasets=[wrong])
    assert 'num_frames is not a key of a dataset; it belongs in the "video" object' in problems(
        tmp_path, datasets=[{**DATASET, "num_frames": 5}]
    )
    assert "put it in [ ]" in problems(tmp_path, datasets=DATASET)


@pytest.mark.parametrize(
    ("key", "value"),
    [("flow_logit_std", 0), ("flow_mode_scale", 5), ("flow_mode_scale", -2), ("lora_alpha", 0), ("adam_beta1", 1)],
)
def test_values_that_would_fail_after_caching_or_train_nothing(tmp_path: Path, key: str, value: float) -> None:
    assert key in problems(tmp_path, **{key: value, "flow_sampling": "uniform"})


def test_the_widest_mode_scale_can_be_sampled(tmp_path: Path) -> None:
    for scale in (-1, 1.75):
        Sampling("mode", mode_scale=load_in(tmp_path, flow_mode_scale=scale).options.flow.flow_mode_scale)


def test_options_that_contradict_each_other(tmp_path: Path) -> None:
    assert "are both 0" in problems(tmp_path, max_train_steps=0)
    assert load_in(tmp_path, max_train_steps=0, num_train_epochs=2).options.run.num_train_epochs == 2
    assert "ignore_final_epochs" in problems(tmp_path, max_train_steps=0, num_train_epochs=1, ignore_final_epochs=True)
    assert "is not below max_timestep" in problems(tmp_path, min_timestep=0.9, max_timestep=500)
    assert "is not a timestep" in problems(tmp_path, max_timestep=1001)
    assert "leaves nothing to train" in problems(tmp_path, model_flavour="t2v-a14b-2.2-high", max_timestep=800)
    assert "user_prompt_library = 'no.json' is not there" in problems(tmp_path, user_prompt_library="no.json")
    (tmp_path / "no.json.example").touch()
    assert "no.json.example is a start" in problems(tmp_path, user_prompt_library="no.json")


def test_timesteps_as_fractions(tmp_path: Path) -> None:
    flow = load_in(tmp_path, min_timestep=0.5, max_timestep=1, timestep_boundary="0.875").options.flow
    assert (flow.min_timestep, flow.max_timestep, flow.timestep_boundary) == (500, 1000, 875)
    assert load_in(tmp_path, min_timestep=20).options.flow.min_timestep == 20


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            {"timestep_boundary": 1},
            "timestep_boundary = 1000.0 leaves nothing to train: the high-noise expert of t2v-a14b-2.2 is trained "
            "at or above it, and max_timestep is 1000; train the other alone, with model_flavour=t2v-a14b-2.2-low",
        ),
        (
            {"timestep_boundary": 0.7, "min_timestep": 0.7},
            "min_timestep = 700.0 leaves nothing to train: the low-noise",
        ),
        ({"max_timestep": 0.5}, "max_timestep = 500.0 leaves nothing to train: the high-noise"),
        (
            {"timestep_boundary": 0.7, "min_timestep": 0.7, "model_flavour": "t2v-a14b-2.2-low"},
            "t2v-a14b-2.2-low is trained below the boundary 700; "
            "train the other alone, with model_flavour=t2v-a14b-2.2-high",
        ),
    ],
)
def test_bounds_that_leave_nothing_to_train(tmp_path: Path, given: dict[str, Any], said: str) -> None:
    text = problems(tmp_path, **{"model_flavour": "t2v-a14b-2.2", **given})
    assert said in text and text.startswith(str(tmp_path / "config.json"))


def test_the_flavour_follows_from_the_base_model(tmp_path: Path) -> None:
    assert load_in(tmp_path).flavour.name == "t2v-480p-1.3b-2.1"
    base = {"pretrained_model_name_or_path": "Wan-AI/Wan2.1-T2V-14B-Diffusers"}
    assert load_in(tmp_path, **base).flavour.name == "t2v-480p-14b-2.1"
    assert load_in(tmp_path, model_flavour="T2V-14B-2.2-high").flavour.stage == "high"
    two = {"pretrained_model_name_or_path": "Wan-AI/Wan2.2-T2V-A14B-Diffusers"}
    assert load_in(tmp_path, **two).flavour.trained_experts == ("high", "low")
    assert "is another model than model_flavour" in problems(tmp_path, model_flavour="t2v-a14b-2.2-low", **base)
    original = {"pretrained_model_name_or_path": "Wan-AI/Wan2.1-T2V-14B"}
    loaded = load_in(tmp_path, **original)
    assert loaded.flavour.name == "t2v-480p-14b-2.1"
    assert any("t2v-480p-14b-2.1, by the repository" in notice.message for notice in loaded.notices)
    assert "is another model than model_flavour" in problems(tmp_path, model_flavour="t2v-a14b-2.2", **original)
    for name in ("flf2v-14b", "vace-1.3b", "s2v-14b", "animate-14b"):
        assert "which is not trained here; known: t2v" in problems(tmp_path, model_flavour=name)


def test_parts_that_the_flavour_has_no_place_for(tmp_path: Path) -> None:
    second = {"pretrained_transformer_2_model_name_or_path": "somewhere/else", "model_flavour": "t2v-1.3b"}
    assert "has no meaning: t2v-480p-1.3b-2.1 has one transformer" in problems(tmp_path, **second)
    image = {"pretrained_image_encoder_model_name_or_path": "somewhere/else"}
    told = [notice.message for notice in load_in(tmp_path, model_flavour="t2v-1.3b", **image).notices]
    assert any("has no effect: t2v-480p-1.3b-2.1 takes no image embeddings" in message for message in told)
    assert not any("no effect" in n.message for n in load_in(tmp_path, model_flavour="i2v-14b", **image).notices)


def test_what_would_lose_samples_or_secrets_is_refused(tmp_path: Path) -> None:
    bucket = {"type": "aws", "aws_bucket_name": "b", "aws_endpoint_url": "http://me:secret@host:9000"}
    found = problems(
        tmp_path, datasets=[{**DATASET, "id": "a/b"}, {"id": "t", "dataset_type": "text_embeds", **bucket}]
    )
    assert "id = 'a/b' holds a \"/\"" in found
    assert "must not hold a name and password" in found
    assert "secret@" not in found and "http://me:" in found


def test_a_plain_number_is_a_square_for_validation(tmp_path: Path) -> None:
    assert load_in(tmp_path, validation_resolution=480).options.validation.validation_resolution == ((480, 480),)
    assert 'is not a size; write width x height, e.g. "832x480"' in problems(tmp_path, validation_resolution="wide")


def test_what_the_command_line_gives_and_no_dataset_uses_is_said(tmp_path: Path) -> None:
    own = load_in(tmp_path, ("resolution", 100), datasets=[{**DATASET, "resolution": 64}])
    assert any("resolution = 100 is not used: every dataset has its own" in n.message for n in own.notices)
    plain = {key: value for key, value in DATASET.items() if key != "resolution"}
    assert load_in(tmp_path, ("resolution", 100), datasets=[plain]).datasets[0].resolution == 100


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"start_step": 10, "end_step": 5}, "start_step = 10 is above end_step 5"),
        ({"start_epoch": 3, "end_epoch": 2}, "start_epoch = 3 is above end_epoch 2"),
        ({"resolution": 480, "resolution_type": "area"}, 'resolution_type = "pixel_area"'),
        ({"resolution": 0.5, "resolution_type": "pixel"}, 'resolution_type = "area"'),
        ({"video": {"target_frames": 17}}, "did you mean video.num_frames?"),
        ({"max_train_steps": 17}, "it belongs in config.json"),
        ({"conditioning_data": "x", "conditioning_type": "mask"}, "is not one of reference_strict"),
    ],
)
def test_mistakes_of_a_dataset_are_told_together(tmp_path: Path, keys: dict[str, Any], said: str) -> None:
    found = problems(tmp_path, datasets=[{**DATASET, **keys, "repeats": -1}])
    assert said in found
    assert "repeats = -1" in found


def test_keys_of_a_dataset_that_are_not_read_are_named(tmp_path: Path) -> None:
    entry = {**DATASET, "caption_shuffle_keep": 2, "video": {"frame_stride": 9}, "instance_prompt": "zarn"}
    eval_set = {**DATASET, "id": "held-back", "dataset_type": "eval"}
    said = " ".join(
        n.message for n in load_in(tmp_path, ("eval_steps_interval", 0), datasets=[entry, eval_set]).notices
    )
    assert "caption_shuffle_keep (needs caption_shuffle_count)" in said
    assert "video.frame_stride (needs extraction slide)" in said
    assert "instance_prompt is not used: prepend_instance_prompt puts it before captions" in said
    assert 'dataset "held-back": is not used: eval_steps_interval is 0' in said


def test_first_frames_that_a_flavour_cannot_be_given_are_refused(tmp_path: Path) -> None:
    linked = {**DATASET, "conditioning_data": "pictures"}
    pictures = {"id": "pictures", "dataset_type": "conditioning", "instance_data_dir": "clips"}
    for flavour, why in (("ti2v-5b-2.2", "begins clips with their own"), ("t2v-a14b-2.2", "is given no first frame")):
        said = problems(tmp_path, model_flavour=flavour, datasets=[linked, pictures])
        assert "conditioning_data = 'pictures' cannot act" in said and why in said and "I2V model_flavour" in said
    for flavour, given in (("i2v-a14b-2.2", False), ("t2v-a14b-2.2", True)):
        entry = {**DATASET, "video": {"num_frames": 75, "is_i2v": given}}
        said = problems(tmp_path, model_flavour=flavour, datasets=[entry])
        assert f"video.is_i2v = {given} cannot be" in said and flavour in said
        load_in(tmp_path, model_flavour="ti2v-5b-2.2", datasets=[entry])
        entry["video"]["is_i2v"] = not given
        load_in(tmp_path, model_flavour=flavour, datasets=[entry])
    load_in(tmp_path, model_flavour="i2v-14b-2.1", datasets=[linked, pictures])
    for flavour in ("i2v-14b-2.1", "t2v-a14b-2.2", "ti2v-5b-2.2"):
        notices = [n.message for n in load_in(tmp_path, model_flavour=flavour, i2v_probability=1).notices]
        said = [text for text in notices if "i2v_probability (needs a flavour of TI2V)" in text]
        assert bool(said) == (flavour != "ti2v-5b-2.2")


def test_an_alpha_that_is_not_the_rank_is_stated(tmp_path: Path) -> None:
    def told(**config: Any) -> list[str]:
        return [notice.message for notice in load_in(tmp_path, **config).notices if "alpha" in notice.message]

    [said] = told(lora_rank=32, lora_alpha=1)
    assert "lora_alpha = 1 with lora_rank = 32" in said and "a scale of 0.0312" in said
    assert told(lora_rank=32, lora_alpha=32) == told(lora_rank=4) == []
    assert "not read" in told(lora_alpha=2, model_type="full")[0]
    both = {"model_flavour": "t2v-a14b-2.2", "lora_rank": 8, "lora_alpha": 8, "lora_rank_low": 4}
    [said] = told(**both)
    assert "lora_alpha = 8 with lora_rank_low = 4" in said and "a scale of 2" in said
