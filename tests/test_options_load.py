"""Loading: precedence, expansion, every mistake at once, and what is saved of it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from option_files import DATASET, load_in, problems, write

from simplewan.errors import UserError
from simplewan.options import load
from simplewan.options.hashing import config_hash


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


def test_prompt_names_are_made_safe(tmp_path: Path) -> None:
    (tmp_path / "prompts.json").write_text(json.dumps({"anime_<token>": "a", "../up/ Ünder": "b", "ok-1": "c"}))
    loaded = load_in(tmp_path, user_prompt_library="prompts.json")
    assert loaded.prompts == {"anime_token": "a", "up_Ünder": "b", "ok-1": "c"}
    (tmp_path / "prompts.json").write_text(json.dumps({"a<b": "x", "ab": "y", "empty": " "}))
    text = problems(tmp_path, user_prompt_library="prompts.json")
    assert "would both be saved as ab" in text and "empty = ' ' is not a prompt" in text


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


def test_the_hash_of_a_configuration_is_that_of_what_decides_the_result(tmp_path: Path) -> None:
    def hash_of(**config: Any) -> str:
        return config_hash(load_in(tmp_path, **{"lora_rank": 8, "output_dir": "a", **config}))

    same = hash_of()
    assert hash_of(output_dir="b", validation_disable=True, report_to="wandb", idle_expert="stay") == same
    moved = {**DATASET, "cache_dir_vae": "elsewhere"}
    assert hash_of(datasets=[moved]) == same and len(same) == 16
    longer = {**DATASET, "video": {"num_frames": 41}}
    data = ([longer], [DATASET, {**DATASET, "id": "more"}])
    changed = [{"lora_rank": 4}, {"learning_rate": 1e-5}, {"seed": 1}, *({"datasets": entries} for entries in data)]
    assert len({same, *(hash_of(**each) for each in changed)}) == 1 + len(changed)
    lengths = [{}, {"max_train_steps": 5000}, {"max_train_steps": None, "num_train_epochs": 3}]
    assert len({hash_of(**each) for each in lengths}) == len(lengths)


def test_the_hash_of_a_configuration_is_that_of_the_values_in_use(tmp_path: Path) -> None:
    def hash_of(rate: str = "1e-3", **config: Any) -> str:
        return config_hash(load_in(tmp_path, environ={"LR": rate}, **{"model_flavour": "t2v-mini-low", **config}))

    written = {"learning_rate": "{env:LR}"}
    assert hash_of("1e-3", **written) == hash_of(learning_rate=1e-3) != hash_of("1e-5", **written)
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        for file in ("words.txt", "more.txt"):
            (tmp_path / name / file).touch()
    places = [
        {
            "pretrained_model_name_or_path": str(tmp_path / name),
            "datasets": [{**DATASET, "instance_data_dir": name, "caption_filter_list": f"{name}/{file}"}],
        }
        for name, file in (("one", "words.txt"), ("two", "words.txt"), ("two", "more.txt"))
    ]
    first, second, other = (hash_of(**each) for each in places)
    assert first == second != other
    assert first != hash_of(**{**places[0], "model_flavour": "t2v-mini-high"})
    video = [hash_of(frames, datasets=[{**DATASET, "video": {"num_frames": "{env:LR}"}}]) for frames in ("41", "81")]
    assert video[0] != video[1]


def test_options_are_frozen(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="frozen"):
        load_in(tmp_path).options.run.seed = 1  # type: ignore[misc]


def test_problems_name_no_expanded_value(tmp_path: Path) -> None:
    text = problems(tmp_path, environ={"RATE": "s3cret"}, learning_rate="{env:RATE}")
    assert "learning_rate = '{env:RATE}' is not a number" in text
    assert not re.search("s3cret", text)
