"""Values that would fail late, or be taken for another: each is told where it stands, with its fix."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from option_files import DATASET, load_in, problems

from simplewan.options.catalogue import catalogue, dataset_catalogue
from simplewan.options.declare import Declared, members
from simplewan.options.foreign import MUSUBI, RENAMED
from simplewan.options.groups.run import MAX_SEED
from simplewan.options.sources import did_you_mean

KNOWN = (*catalogue(), *RENAMED, *MUSUBI)


def with_key(key: str, value: Any) -> dict[str, Any]:
    """A dataset with a key, or with one in its object ("video.KEY")."""
    outer, _, inner = key.rpartition(".")
    return {**DATASET, outer: {**DATASET.get(outer, {}), inner: value}} if outer else {**DATASET, key: value}


@pytest.mark.parametrize(("value", "said"), [([], "is empty"), ("", "is empty"), (["to_q", ""], "holds an empty name")])
def test_no_targets_are_a_mistake(tmp_path: Path, value: Any, said: str) -> None:
    told = problems(tmp_path, lora_targets=value)
    assert f"{said}; leave it out (attention is taken), or write attention, all" in told


def test_a_seed_leaves_room_for_those_that_are_made_of_it(tmp_path: Path) -> None:
    for value in (99999999999999999999999, "99999999999999999999999", MAX_SEED + 1):
        assert "must be at most 9223372036854775807" in problems(tmp_path, ("seed", value))
    assert "seed = -1 must be at least 0" in problems(tmp_path, seed=-1)
    torch.Generator().manual_seed(load_in(tmp_path, seed=MAX_SEED).options.run.seed + MAX_SEED)


def paths_that_have_a_default() -> list[str]:
    return [key for key, item in catalogue().items() if Path in members(item.annotation) and item.default is not None]


def test_an_empty_path_is_not_the_working_directory(tmp_path: Path) -> None:
    keys = paths_that_have_a_default()
    assert {"output_dir", "cache_dir", "data_backend_config"} <= {*keys}
    for value in ("", "  ", "{env:UNSET}"):
        said = problems(tmp_path, *[(key, value) for key in keys], environ={"UNSET": ""})
        for key in keys:
            assert f"command line: {key} = {value!r} is empty; leave it out ({catalogue()[key].default} is" in said


def test_where_none_is_the_default_an_empty_path_is_none(tmp_path: Path) -> None:
    entry = {**DATASET, "cache_dir_vae": "", "csv_file": " ", "parquet": {"path": ""}}
    loaded = load_in(tmp_path, ("init_lora", ""), logging_dir=" ", user_prompt_library="", datasets=[entry])
    assert loaded.options.adapter.init_lora is loaded.options.validation.user_prompt_library is None
    assert loaded.options.reporting.logging_dir is None
    dataset = loaded.datasets[0]
    assert dataset.csv_file is dataset.parquet.path is None and dataset.cache_dir_vae.name == "clips"
    assert "instance_data_dir is missing" in problems(tmp_path, datasets=[{**DATASET, "instance_data_dir": ""}])


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_numbers_are_finite(tmp_path: Path, number: float) -> None:
    """JSON as Python reads it knows NaN and Infinity."""
    numeric = [key for key, item in catalogue().items() if holds_numbers(item)]
    assert {"seed", "learning_rate", "resolution", "validation_resolution", "validation_guidance"} <= {*numeric}
    said = problems(tmp_path, **dict.fromkeys(numeric, number)).splitlines()
    for key in numeric:
        assert any(f" {key}" in line and line.endswith("is not a finite number") for line in said), key
    numeric = [key for key, item in dataset_catalogue().items() if holds_numbers(item)]
    assert {"video.num_frames", "resolution", "resolutions"} <= {*numeric}
    entries = [{**with_key(key, number), "id": f"e{index}"} for index, key in enumerate(numeric)]
    said = problems(tmp_path, datasets=entries).splitlines()
    for index, key in enumerate(numeric):
        mine = [line for line in said if f'dataset "e{index}"' in line]
        assert any(key in line and line.endswith("is not a finite number") for line in mine), key


def holds_numbers(item: Declared) -> bool:
    return any(word in item.type_name for word in ("number", "WxH", "timestep"))


def test_a_number_that_no_computer_holds_is_told(tmp_path: Path) -> None:
    for key in ("resolution", "validation_resolution", "flow_schedule_shift"):
        said = problems(tmp_path, **{key: 10**400})
        assert f"{key} = 1000" in said and "is too large a number" in said


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("..", "id = '..' is no name: it stands for another folder"),
        (".", "id = '.' is no name: it stands for another folder"),
        ("a/b", "id = 'a/b' holds a \"/\""),
        ("a\\b", "id = 'a\\\\b' holds a \"\\\""),
        ("a\nb", "entry 1: id = 'a\\nb' holds a character that cannot be shown"),
    ],
)
def test_an_id_is_the_name_of_a_folder(tmp_path: Path, name: str, said: str) -> None:
    assert f"{said}; write letters, digits" in problems(tmp_path, datasets=[{**DATASET, "id": name}])


def test_a_minimum_above_the_maximum_leaves_nothing(tmp_path: Path) -> None:
    both = {**DATASET, "minimum_image_size": 512, "maximum_image_size": 256}
    said = problems(tmp_path, datasets=[both])
    assert 'dataset "clips": minimum_image_size = 512' in said and "is above maximum_image_size 256; every" in said
    one = {**DATASET, "maximum_image_size": 256}
    said = problems(tmp_path, minimum_image_size=512, datasets=[one])
    assert "data.json" in said and "maximum_image_size 256" in said and "(minimum_image_size: from config.json)" in said
    text = {"id": "texts", "dataset_type": "text_embeds"}
    load_in(tmp_path, minimum_image_size=512, datasets=[{**one, "maximum_image_size": 512}, {**one, **text}])


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("learnin_rate", "learning_rate"),
        ("learning_raet", "learning_rate"),
        ("sede", "seed"),
        ("outputdir", "output_dir"),
        ("output_folder", "output_dir"),
        ("max_steps", "max_train_steps"),
        ("grad_accum", "gradient_accumulation_steps"),
        ("rank_lora", "lora_rank"),
        ("LR_Scheduler", "lr_scheduler"),
        ("gradient_checkpoint", "gradient_checkpointing"),
        *((word, None) for word in ("hub_token", "wandb_mode", "color_jitter", "temperature", "banana", "username")),
    ],
)
def test_a_guess_is_close_or_none_is_made(written: str, meant: str | None) -> None:
    assert did_you_mean(written, KNOWN) == meant


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("hub_token", "log in with `hf auth login`, or set HF_TOKEN in the environment"),
        ("HF_TOKEN", "log in with `hf auth login`, or set HF_TOKEN in the environment"),
        ("WANDB_MODE", "it is an environment variable: write WANDB_MODE=offline before the command"),
        ("wandb_api_key", "it is an environment variable: write WANDB_API_KEY=KEY before the command"),
        ("CUDA_VISIBLE_DEVICES", "it is an environment variable: write CUDA_VISIBLE_DEVICES=0 before the command"),
        *((name, f"write {name}=") for name in ("HF_HUB_OFFLINE", "HF_ENDPOINT", "OMP_NUM_THREADS")),
    ],
)
def test_what_belongs_in_the_environment_is_told(tmp_path: Path, key: str, said: str) -> None:
    found = problems(tmp_path, (key, "hidden"))
    assert f"command line: {key} is not an option; " in found and said in found
    assert "did you mean" not in found and "hidden" not in found


@pytest.mark.parametrize(
    "name", ["VERSION", "OUTPUT", "MODEL", "DEVICE", "CONFIG", "HOME", "DEBUG", "LOG_LEVEL", "TOKEN", "MAX_STEPS"]
)
def test_a_variable_of_another_program_is_warned_of(tmp_path: Path, name: str) -> None:
    loaded = load_in(tmp_path, environ={f"SIMPLEWAN_{name}": "hidden"})
    [told] = [notice for notice in loaded.notices if "SIMPLEWAN_" in notice.message]
    assert told.severity == "warning" and f"SIMPLEWAN_{name} names no option and is not read" in told.message
    assert "hidden" not in told.message


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("SEEDS", "SEED"),
        ("LEARNIN_RATE", "LEARNING_RATE"),
        ("OUTPUTDIR", "OUTPUT_DIR"),
        ("LERNING_RAT", "LEARNING_RATE"),
    ],
)
def test_a_misspelt_variable_is_refused(tmp_path: Path, name: str, meant: str) -> None:
    told = problems(tmp_path, environ={f"SIMPLEWAN_{name}": "1"})
    assert f"SIMPLEWAN_{name} names no option; did you mean SIMPLEWAN_{meant}?" in told
