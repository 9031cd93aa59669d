"""Loading: precedence, expansion, every mistake at once, what is to come, what is replaced."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from simplewan.errors import UserError
from simplewan.objectives.distributions import Sampling
from simplewan.options import Loaded, load

DATASET = {
    "id": "clips",
    "type": "local",
    "dataset_type": "video",
    "instance_data_dir": "clips",
    "video": {"num_frames": 75},
}


def write(folder: Path, config: dict[str, Any] | None = None, datasets: Any = None) -> Path:
    """A configuration in `folder`, with a folder of clips; returns config.json."""
    (folder / "clips").mkdir(exist_ok=True)
    (folder / "data.json").write_text(json.dumps([DATASET] if datasets is None else datasets))
    path = folder / "config.json"
    path.write_text(json.dumps({"max_train_steps": 10, "data_backend_config": "data.json", **(config or {})}))
    return path


def load_in(folder: Path, *overrides: tuple[str, Any], environ: dict[str, str] | None = None, **config: Any) -> Loaded:
    datasets = config.pop("datasets", None)
    return load(write(folder, config, datasets), overrides, environ=environ or {}, base=folder)


def problems(folder: Path, *overrides: tuple[str, Any], environ: dict[str, str] | None = None, **config: Any) -> str:
    with pytest.raises(UserError) as caught:
        load_in(folder, *overrides, environ=environ, **config)
    return str(caught.value)


def test_defaults_then_json_then_environment_then_command_line(tmp_path: Path) -> None:
    assert load_in(tmp_path).options.optimizer.learning_rate == 1e-4
    assert load_in(tmp_path, learning_rate=2e-4).options.optimizer.learning_rate == 2e-4
    environ = {"SIMPLEWAN_LEARNING_RATE": "3e-4"}
    assert load_in(tmp_path, learning_rate=2e-4, environ=environ).options.optimizer.learning_rate == 3e-4
    loaded = load_in(tmp_path, ("learning_rate", "4e-4"), learning_rate=2e-4, environ=environ)
    assert loaded.options.optimizer.learning_rate == 4e-4


def test_leading_hyphens_hyphens_inside_and_text_for_values(tmp_path: Path) -> None:
    loaded = load_in(tmp_path, **{"--lora-rank": "8", "gradient_checkpointing": "true", "--seed": "7"})
    assert loaded.options.adapter.lora_rank == 8
    assert loaded.options.model.gradient_checkpointing is True
    assert loaded.options.run.seed == 7


def test_lists_and_objects_arrive_whole_from_the_command_line(tmp_path: Path) -> None:
    loaded = load_in(
        tmp_path,
        ("validation_resolution", '["832x480", "480x832"]'),
        ("model_flavour", "t2v-a14b-2.2-low"),
        ("validation_guidance", "[3, 4.5]"),
        ("report_to", "wandb,tensorboard"),
        ("tread_config", '{"routes": [{"selection_ratio": 0.1, "start_layer_idx": 2, "end_layer_idx": -2}]}'),
    )
    options = loaded.options
    assert options.validation.validation_resolution == ((832, 480), (480, 832))
    assert options.validation.validation_guidance == (3.0, 4.5)
    assert options.reporting.report_to == ("wandb", "tensorboard")
    assert options.flow.tread_config is not None
    assert options.flow.tread_config.routes[0].end_layer_idx == -2
    assert "tread_config" in str(loaded.later[0])


def test_null_leaves_a_key_at_its_default(tmp_path: Path) -> None:
    loaded = load_in(tmp_path, ("max_train_seconds", "none"), ("lora_rank", "null"), learning_rate=None, lora_alpha=4)
    assert loaded.options.optimizer.learning_rate == 1e-4
    assert loaded.options.adapter.lora_rank == 16
    assert loaded.options.adapter.lora_alpha == 4
    assert loaded.options.run.max_train_seconds is None


def test_every_mistake_of_every_file_at_once(tmp_path: Path) -> None:
    broken = {**DATASET, "resolution_type": "pixels", "repeat": 2, "video": {"num_frames": 0}}
    text = problems(
        tmp_path,
        ("learnin_rate", "1"),
        ("model_flavour", "t2v-a14b-2.2-hgh"),
        learning_rate="fast",
        max_train_steps=-3,
        network_dim=8,
        lora_rank=True,
        seed=1.5,
        gradient_checkpointing="maybe",
        datasets=[broken, {**DATASET, "id": "other", "instance_data_dir": "nowhere", "text_embeds": "missing"}],
    )
    lines = text.splitlines()
    expected = [
        "command line: learnin_rate is not an option; did you mean learning_rate?",
        "model_flavour = 't2v-a14b-2.2-hgh' is not a flavour of Wan; did you mean \"t2v-a14b-2.2-high\"?",
        "config.json: learning_rate = 'fast' is not a number",
        "config.json: max_train_steps = -3 must be at least 0",
        "network_dim is not an option; did you mean lora_rank?",
        "lora_rank = True is not a number",
        "seed = 1.5 is not a whole number",
        "gradient_checkpointing = 'maybe' is neither true nor false",
        'dataset "clips": resolution_type = \'pixels\' is not one of pixel, pixel_area, area; did you mean "pixel"?',
        'dataset "clips": repeat is not a key of a dataset; did you mean repeats?',
        'dataset "clips": video.num_frames = 0 must be at least 1',
        "dataset \"other\": instance_data_dir = 'nowhere' is not there",
        "dataset \"other\": text_embeds = 'missing' names no enabled text_embeds entry",
    ]
    for words in expected:
        assert any(words in line for line in lines), words
    assert len(lines) == len(expected)


@pytest.mark.parametrize("value", [0, -1, "many", None, 2.5, [81, 0], []])
def test_num_frames_that_cannot_be(tmp_path: Path, value: Any) -> None:
    datasets = [{**DATASET, "video": {"num_frames": value}}]
    if value is None:
        assert load_in(tmp_path, datasets=datasets).datasets[0].video.num_frames == (81,)
    else:
        assert 'dataset "clips": video.num_frames' in problems(tmp_path, datasets=datasets)


def test_a_broken_file_is_named_with_line_and_column_and_nothing_is_guessed_from_it(tmp_path: Path) -> None:
    path = tmp_path / "broken.json"
    path.write_text('{\n  "model_family": "wan",\n}')
    with pytest.raises(UserError) as caught:
        load(path, [], environ={}, base=tmp_path)
    assert len(caught.value.problems) == 1
    assert "broken.json, line 3, column 1: is not valid JSON" in str(caught.value)
    assert "remove the comma before it" in str(caught.value)
    with pytest.raises(UserError, match=r"nope\.json: there is no such file"):
        load(tmp_path / "nope.json", [], environ={})


@pytest.mark.parametrize(
    ("text", "fix"),
    [
        ('{\n  "lora_rank": 8\n  "seed": 1\n}', "line 3, column 3: .*; put a comma at the end of line 2"),
        ('{\n  // mine\n  "seed": 1\n}', "line 2, column 3: .*; remove the comment"),
        ('{\n  "seed": 1, # mine\n  "lora_rank": 8\n}', "line 2, .*; remove the comment"),
        ('{\n  "seed": 1\n', "the file ends too early"),
        ('{\n  "seed": [1,]\n}', "line 2, .*; remove the comma before it"),
    ],
)
def test_the_usual_mistakes_in_json_are_told_with_their_fix(tmp_path: Path, text: str, fix: str) -> None:
    path = tmp_path / "broken.json"
    path.write_text(text)
    with pytest.raises(UserError, match=fix):
        load(path, [], environ={}, base=tmp_path)


def test_the_dataset_keys_of_musubi_tuner_are_answered_with_ours(tmp_path: Path) -> None:
    text = problems(tmp_path, datasets=[{**DATASET, "num_repeats": 2, "caption_extension": ".txt", "batch_size": 1}])
    assert "num_repeats is not a key of a dataset; write repeats" in text
    assert "caption_extension is not a key of a dataset; leave it out" in text
    assert "batch_size is not a key of a dataset; write train_batch_size in config.json" in text


def test_a_broken_dataset_file_stands_beside_other_mistakes(tmp_path: Path) -> None:
    path = write(tmp_path, {"lora_rank": 0})
    (tmp_path / "data.json").write_text("[{]")
    with pytest.raises(UserError) as caught:
        load(path, [], environ={}, base=tmp_path)
    assert "data.json, line 1, column 3" in str(caught.value)
    assert "lora_rank = 0 must be at least 1" in str(caught.value)


def test_a_key_given_twice(tmp_path: Path) -> None:
    assert "seed is given twice" in problems(tmp_path, **{"seed": 1, "--seed": 2})
    path = tmp_path / "twice.json"
    path.write_text('{"seed": 1, "seed": 2, "max_train_steps": 1}')
    with pytest.raises(UserError, match="seed is given twice"):
        load(path, [], environ={}, base=tmp_path)


def test_environment_variables_expand_and_are_saved_unexpanded(tmp_path: Path) -> None:
    loaded = load_in(
        tmp_path,
        environ={"HERE": "clips", "RUN": "first"},
        tracker_run_name="{env:RUN}-run",
        webhook_config={"webhook_type": "raw", "callback_url": "http://host/secret", "auth_token": "hidden"},
        datasets=[{**DATASET, "instance_data_dir": "{env:HERE}"}],
    )
    assert loaded.options.reporting.tracker_run_name == "first-run"
    assert loaded.datasets[0].instance_data_dir == tmp_path / "clips"
    record = json.dumps(loaded.resolved)
    assert loaded.resolved["tracker_run_name"] == "{env:RUN}-run"
    assert loaded.resolved["datasets"][0]["instance_data_dir"] == "{env:HERE}"
    assert "hidden" not in record and "secret" not in record and "first" not in record


def test_an_unset_environment_variable_is_named(tmp_path: Path) -> None:
    text = problems(tmp_path, tracker_run_name="{env:NOT_THERE}")
    assert "tracker_run_name names the environment variable NOT_THERE, which is not set" in text


def test_a_secret_is_not_shown_in_a_mistake(tmp_path: Path) -> None:
    datasets = [{**DATASET, "aws_secret_access_key": ["hidden"], "aws_acces_key_id": "hidden"}]
    text = problems(tmp_path, datasets=datasets)
    assert "aws_secret_access_key" in text and "aws_acces_key_id" in text
    assert "hidden" not in text


def test_a_relative_folder_that_is_not_there_is_told_in_full(tmp_path: Path) -> None:
    (tmp_path / "project").mkdir()
    relative = {**DATASET, "instance_data_dir": "../imgs"}
    text = problems(tmp_path / "project", datasets=[relative])
    assert f"'../imgs' is not there; relative paths count from {tmp_path}/project: {tmp_path}/imgs was looked" in text
    absolute = {**DATASET, "instance_data_dir": "/nowhere/imgs"}
    assert problems(tmp_path, datasets=[absolute]).endswith("'/nowhere/imgs' is not there")
    hidden = {**DATASET, "instance_data_dir": "{env:PLACE}/imgs"}
    assert "secret" not in problems(tmp_path, datasets=[hidden], environ={"PLACE": "secret"})


def test_placeholders_in_paths(tmp_path: Path) -> None:
    path = write(tmp_path, datasets=[{**DATASET, "cache_dir_vae": "{example}/vae/{model_family}/{id}"}])
    loaded = load(path, [], environ={}, base=tmp_path, placeholders={"example": "/made"})
    assert loaded.datasets[0].cache_dir_vae == Path("/made/vae/wan/clips")
    assert loaded.resolved["datasets"][0]["cache_dir_vae"] == "{example}/vae/{model_family}/{id}"


def test_what_is_still_to_be_made_is_not_looked_for(tmp_path: Path) -> None:
    path = write(tmp_path, datasets=[{**DATASET, "instance_data_dir": "{example}/clips"}])
    places = {"example": str(tmp_path / "later")}
    loaded = load(path, [], environ={}, base=tmp_path, placeholders=places, unprepared=("example",))
    assert loaded.datasets[0].instance_data_dir == tmp_path / "later" / "clips"
    with pytest.raises(UserError, match="instance_data_dir"):
        load(path, [], environ={}, base=tmp_path, placeholders=places)


def test_the_dataset_file_is_found_beside_the_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "config"
    folder.mkdir()
    datasets = [{**DATASET, "instance_data_dir": str(folder / "clips")}]
    path = write(folder, datasets=datasets)
    monkeypatch.chdir(tmp_path)
    assert load(path, [], environ={}).data_file == folder / "data.json"
    (tmp_path / "data.json").write_text(json.dumps([{**datasets[0], "id": "typed"}]))
    assert load(path, [], environ={}).data_file == folder / "data.json"
    typed = load(path, [("data_backend_config", "data.json")], environ={})
    assert typed.datasets[0].id == "typed"


def test_defaults_of_datasets_come_from_the_configuration(tmp_path: Path) -> None:
    loaded = load_in(
        tmp_path,
        resolution="832x480",
        minimum_image_size=100,
        datasets=[
            DATASET,
            {**DATASET, "id": "own", "resolution": 512, "repeats": 3},
            {**DATASET, "disabled": True, "id": "x"},
        ],
    )
    first, own, text = loaded.datasets
    assert first.resolution == ((832, 480),)
    assert (own.resolution, own.repeats, own.minimum_image_size) == (512, 3, 100)
    assert (text.dataset_type, text.cache_dir) == ("text_embeds", tmp_path / "cache" / "text")
    assert own.text_embeds == text.id
    assert own.cache_dir_vae == tmp_path / "cache" / "vae" / "own"


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


def test_what_is_to_come_is_listed_by_name(tmp_path: Path) -> None:
    loaded = load_in(
        tmp_path,
        ("model_flavour", "i2v-14b-2.2-low"),
        use_ema=True,
        optimizer="prodigy",
        lora_type="lycoris",
        base_model_precision="int8-quanto",
        report_to=["wandb", "comet_ml"],
        validation_guidance_skip_layers=[9],
    )
    expected = """base_model_precision lora_type optimizer report_to use_ema
    validation_guidance_skip_layers"""
    assert sorted(problem.key or "" for problem in loaded.later) == expected.split()


def test_nothing_else_is_asked_of_what_is_to_come(tmp_path: Path) -> None:
    wanted = {
        "push_to_hub": True,
        "lora_type": "lycoris",
        "lycoris_config": "nowhere.json",
        "enable_group_offload": True,
        "enable_model_cpu_offload": True,
    }
    later = [problem.key for problem in load_in(tmp_path, **wanted).later]
    assert sorted(key for key in later if key) == sorted(set(wanted) - {"lycoris_config"})


def test_what_would_lose_samples_or_secrets_is_refused(tmp_path: Path) -> None:
    bucket = {"type": "aws", "aws_bucket_name": "b", "aws_endpoint_url": "http://me:secret@host:9000"}
    found = problems(
        tmp_path, datasets=[{**DATASET, "id": "a/b"}, {"id": "t", "dataset_type": "text_embeds", **bucket}]
    )
    assert "id = 'a/b' holds a \"/\"" in found
    assert "must not hold a name and password" in found
    assert "secret@" not in found and "http://me:" in found


def test_a_switch_that_does_nothing_says_so(tmp_path: Path) -> None:
    loaded = load_in(tmp_path, datasets=[{**DATASET, "vae_cache_clear_each_epoch": True}])
    assert any("vae_cache_clear_each_epoch has no effect" in notice.message for notice in loaded.notices)


def test_what_is_off_is_no_request(tmp_path: Path) -> None:
    loaded = load_in(
        tmp_path,
        use_ema=False,
        ema_validation="ema_only",
        ema_update_interval=2,
        push_to_hub="false",
        base_model_precision="no_change",
        quantize_via="accelerator",
        validation_guidance_skip_layers=[],
        validation_guidance_skip_layers_stop=1.0,
        scheduled_sampling_max_step_offset=0,
        lycoris_config="nowhere.json",
        tread_config={"routes": []},
        enable_group_offload=False,
        group_offload_use_stream=True,
        report_to="none",
    )
    assert loaded.later == []
    unread = next(notice.message for notice in loaded.notices if "not read in this run" in notice.message)
    for key in ("ema_update_interval (needs use_ema)", "lycoris_config (needs lora_type lycoris)", "quantize_via"):
        assert key in unread


def test_comfort_is_announced_and_replaced(tmp_path: Path) -> None:
    loaded = load_in(tmp_path, attention_mechanism="sageattention", text_encoder_2_precision="int8-quanto")
    assert loaded.later == []
    assert loaded.options.model.attention_mechanism == "diffusers"
    assert loaded.options.model.text_encoder_2_precision == "no_change"
    assert loaded.resolved["attention_mechanism"] == "sageattention"
    text = "\n".join(notice.message for notice in loaded.notices)
    assert "attention_mechanism = sageattention has no effect" in text
    assert "Wan has one text encoder" in text


def test_foreign_keys_are_answered_and_older_names_read(tmp_path: Path) -> None:
    loaded = load_in(
        tmp_path,
        snr_gamma=5,
        checkpointing_steps=7,
        flow_use_uniform_schedule=True,
        datasets=[{**DATASET, "scan_for_errors": True}],
    )
    warnings = [notice.message for notice in loaded.notices if notice.severity == "warning"]
    assert any("snr_gamma is not used" in text for text in warnings)
    assert any("scan_for_errors is not used" in text for text in warnings)
    assert loaded.options.checkpoints.checkpoint_step_interval == 7
    assert loaded.options.flow.flow_sampling == "uniform"
    assert "put it in the dataset file" in problems(tmp_path, crop_aspect="square")


@pytest.mark.parametrize(
    ("key", "fix"),
    [
        ("train_data_dir", "did you mean instance_data_dir of a dataset, in the dataset file (data_backend_config)?"),
        ("blocks_to_swap", "did you mean enable_group_offload? It is still to come"),
        ("fp8_base", "did you mean base_model_precision? It is still to come"),
        ("fp8_scald", "did you mean base_model_precision? It is still to come"),
        ("network_module", "did you mean lora_type?"),
        ("network_dim", "did you mean lora_rank?"),
        ("xformers", "leave it out: attention runs through"),
        ("output_name", "name the folder with output_dir"),
    ],
)
def test_keys_of_other_trainers_are_answered(tmp_path: Path, key: str, fix: str) -> None:
    text = problems(tmp_path, **{key: "1"})
    assert f"{key} is not an option; {fix}" in text
    assert ("to come" in text) == ("to come" in fix)


def test_environment_names_of_other_programs(tmp_path: Path) -> None:
    environ = {"WAN_FEED_FORWARD_CHUNK_SIZE": "2", "SIMPLEWAN_CACHE": "/x", "SIMPLEWAN_LORA_RAN": "3"}
    loaded = load_in(tmp_path, environ=environ)
    assert loaded.options.memory.feed_forward_chunk_size == 2
    assert [problem.key for problem in loaded.later] == ["enable_chunked_feed_forward"]
    assert [notice.message for notice in loaded.notices if "SIMPLEWAN" in notice.message] == [
        "environment: SIMPLEWAN_LORA_RAN names no option and is not read; did you mean SIMPLEWAN_LORA_RANK?"
    ]


def test_prompt_names_are_made_safe(tmp_path: Path) -> None:
    (tmp_path / "prompts.json").write_text(json.dumps({"anime_<token>": "a", "../up/ Ünder": "b", "ok-1": "c"}))
    loaded = load_in(tmp_path, user_prompt_library="prompts.json")
    assert loaded.prompts == {"anime_token": "a", "up_Ünder": "b", "ok-1": "c"}
    (tmp_path / "prompts.json").write_text(json.dumps({"a<b": "x", "ab": "y", "empty": " "}))
    text = problems(tmp_path, user_prompt_library="prompts.json")
    assert "would both be saved as ab" in text and "empty = ' ' is not a prompt" in text


def test_a_plain_number_is_a_square_for_validation(tmp_path: Path) -> None:
    assert load_in(tmp_path, validation_resolution=480).options.validation.validation_resolution == ((480, 480),)
    assert 'is not a size; write width x height, e.g. "832x480"' in problems(tmp_path, validation_resolution="wide")


def test_a_resolved_record_loads_to_the_same(tmp_path: Path) -> None:
    loaded = load_in(
        tmp_path,
        validation_resolution=["832x480", "480x832"],
        model_flavour="t2v-a14b-2.2-low",
        validation_guidance=[3, 4],
        lora_targets="all",
        resolution="832x480",
        report_to=["wandb"],
        output_dir="out",
    )
    record = {key: value for key, value in loaded.resolved.items() if key != "datasets"}
    again = load_in(tmp_path, **record, datasets=loaded.resolved["datasets"])
    assert again.options == loaded.options
    assert again.resolved == loaded.resolved
    assert json.dumps(again.resolved) == json.dumps(loaded.resolved)


def test_the_record_of_a_run_is_no_configuration(tmp_path: Path) -> None:
    record = tmp_path / "config.resolved.json"
    record.write_text(json.dumps(load_in(tmp_path, seed=3).resolved))
    with pytest.raises(UserError) as caught:
        load(record, environ={}, base=tmp_path)
    text = str(caught.value)
    assert (
        text == f"{record}: is the record of a run, not a configuration; give the config.json that the run began with"
    )


def test_options_are_frozen(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="frozen"):
        load_in(tmp_path).options.run.seed = 1  # type: ignore[misc]


def test_problems_name_no_expanded_value(tmp_path: Path) -> None:
    text = problems(tmp_path, environ={"RATE": "s3cret"}, learning_rate="{env:RATE}")
    assert "learning_rate = '{env:RATE}' is not a number" in text
    assert not re.search("s3cret", text)


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
