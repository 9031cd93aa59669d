"""The declarations themselves: one for each key, sensible defaults, the documentation up to date, what may change."""

from __future__ import annotations

import json
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from simplewan.flavours import find_flavour
from simplewan.options import changed_keys, load
from simplewan.options.catalogue import catalogue, coming, dataset_catalogue, group_models
from simplewan.options.datasets import NESTED, DatasetOptions
from simplewan.options.declare import FACTS, is_on, members
from simplewan.options.describe import dataset_records, option_records
from simplewan.options.document import render
from simplewan.options.experts import facts_of
from simplewan.options.foreign import (
    FOREIGN,
    FOREIGN_DATASET,
    MUSUBI,
    MUSUBI_DATASET,
    RENAMED,
    SWITCHES,
    WITHOUT_OPTION,
)

ROOT = Path(__file__).resolve().parents[1]


def every_option() -> list[Any]:
    return [*catalogue().values(), *dataset_catalogue().values()]


def test_each_key_stands_in_one_group() -> None:
    counted = sum(len(model.model_fields) for model in group_models().values())
    assert counted == len(catalogue())


def test_every_field_is_declared_with_its_help() -> None:
    for model in (*group_models().values(), DatasetOptions, *NESTED.values()):
        for key, field in model.model_fields.items():
            assert field.json_schema_extra, f"{model.__name__}.{key} is not declared with option()"
    for declared in every_option():
        assert declared.help.endswith((".", ")", '"', "...")), declared.key
        assert len(declared.help) > 8, declared.key


def test_defaults_are_valid_values() -> None:
    for model in (*group_models().values(), DatasetOptions, *NESTED.values()):
        dumped = model().model_dump()
        assert model.model_validate({key: value for key, value in dumped.items() if value is not None}) == model()


def test_listed_defaults_are_what_the_models_hold() -> None:
    held = {key: value for model in group_models().values() for key, value in model().model_dump(mode="json").items()}
    assert held == {record["key"]: record["default"] for record in option_records()}
    held = DatasetOptions().model_dump(mode="json")
    for name in NESTED:
        held |= {f"{name}.{key}": value for key, value in held[name].items()} | {name: None}
    assert held == {record["key"]: record["default"] for record in dataset_records()}


def test_defaults_ask_for_nothing_that_is_to_come() -> None:
    for declared in every_option():
        assert declared.default not in declared.later_choices
        assert not declared.later or not is_on(declared.default) or declared.default == 1, declared.key


def test_none_is_a_default_wherever_it_is_a_value() -> None:
    for declared in every_option():
        if types.NoneType in members(declared.annotation):
            assert declared.default is None, declared.key


def test_conditions_name_options_and_their_choices() -> None:
    for among in (catalogue(), dataset_catalogue()):
        for key, declared in among.items():
            for switch, wanted in declared.conditions:
                if switch in FACTS:
                    assert not wanted
                    continue
                parent = among.get(switch) or among.get(f"video.{switch}")
                assert parent is not None, key
                for value in wanted:
                    assert value in (*parent.choices, *parent.later_choices), (key, value)


def test_what_depends_on_what_is_to_come_is_to_come() -> None:
    known = catalogue()
    for key in ("use_ema", "ema_decay", "crepa_lambda", "hub_model_id", "lycoris_config", "group_offload_type"):
        assert coming(known[key], known), key
    for key in ("lora_rank", "lr_end", "num_eval_images", "dataloader_prefetch_qlen", "optimizer"):
        assert not coming(known[key], known), key


def test_tables_of_foreign_keys_do_not_hide_ours() -> None:
    known, data = catalogue(), dataset_catalogue()
    assert not set(FOREIGN) & set(known) and not set(RENAMED) & set(known) and not set(SWITCHES) & set(known)
    assert not set(MUSUBI) & set(known)
    assert not set(WITHOUT_OPTION) & {*known, *MUSUBI, *FOREIGN, *RENAMED, *data}
    assert not set(MUSUBI_DATASET) & {*dataset_catalogue(), *FOREIGN_DATASET}
    assert not set(FOREIGN_DATASET) & set(data)
    assert set(RENAMED.values()) <= set(known)
    assert {target for target in MUSUBI.values() if " " not in target} <= set(known)
    assert {target for target, _ in SWITCHES.values()} <= set(known)


def test_the_documentation_is_what_the_declarations_make() -> None:
    assert (ROOT / "docs/OPTIONS.md").read_text(encoding="utf-8") == render(), (
        "docs/OPTIONS.md is stale: run python -m simplewan.options.document"
    )


def test_the_room_imports_no_torch() -> None:
    code = "import sys, simplewan.options, simplewan.cli.train, simplewan.cli.options; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize(
    "name",
    [
        "config.json.example",
        "both-experts.json.example",
        "multidatabackend.json.example",
        "user_prompt_library.json.example",
    ],
)
def test_the_example_files_load(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert json.loads((ROOT / "config" / name).read_text(encoding="utf-8"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config").mkdir()
    for path in (ROOT / "config").glob("*.example"):
        (tmp_path / "config" / path.name.removesuffix(".example")).write_bytes(path.read_bytes())
    (tmp_path / "datasets" / "my-videos").mkdir(parents=True)
    config = name if "datab" not in name and "library" not in name else "config.json"
    loaded = load(tmp_path / "config" / config.removesuffix(".example"), [], environ={})
    assert loaded.later == [] and not [notice for notice in loaded.notices if "not read" in notice.message]
    assert len(loaded.prompts) == 15
    assert sum("<token>" in prompt for prompt in loaded.prompts.values()) >= 10
    assert not [notice for notice in loaded.notices if notice.severity == "warning"]


@pytest.mark.parametrize("name", ["clips.json", "clips_and_images.json", "mixed.json"])
def test_the_example_datasets_load(tmp_path: Path, name: str) -> None:
    for folder in ("clips", "stills", "my-clips", "everyday", "held-back"):
        (tmp_path / "datasets" / folder).mkdir(parents=True)
    overrides = [("data_backend_config", str(ROOT / "datasets_examples" / name)), ("max_train_steps", 1)]
    loaded = load(None, overrides, environ={}, base=tmp_path)
    assert loaded.later == [] and loaded.datasets[0].is_training


def test_the_bundled_examples_load(tmp_path: Path) -> None:
    folders = [path.parent for path in (ROOT / "simplewan/examples").glob("*/config.json")]
    for folder in folders:
        loaded = load(
            folder / "config.json", [], environ={}, placeholders={"example": str(tmp_path)}, unprepared=("example",)
        )
        assert loaded.later == [] and loaded.data_file.parent == folder


def test_a_change_that_may_not_be_is_named() -> None:
    old = {"seed": 1, "max_train_steps": 10, "learning_rate": 1e-4, "output_dir": "a", "train_batch_size": 1}
    new = {"seed": 2, "max_train_steps": 20, "learning_rate": 1e-5, "output_dir": "b", "lora_rank": 8}
    assert changed_keys(old, new) == ["seed", "lora_rank"]
    assert changed_keys(old, dict(old)) == []


def test_a_key_that_the_flavour_does_not_read_may_change() -> None:
    old, new = {"lora_rank_high": 2, "expert_share": 0.5}, {"lora_rank_high": 6, "expert_share": 0.7}
    for flavour, changed in (("t2v-a14b-2.2-low", []), ("t2v-a14b-2.2-high", ["lora_rank_high"])):
        assert changed_keys(old, new, facts_of(find_flavour(flavour))) == changed


def test_an_absent_key_has_its_default() -> None:
    assert changed_keys({}, {"lora_rank": 16, "mixed_precision": "bf16"}) == []
    assert changed_keys({"lora_rank": 4}, {}) == ["lora_rank"]


def test_changes_of_datasets_are_named() -> None:
    def record(**clips: Any) -> dict[str, Any]:
        return {"datasets": [{"id": "clips", "dataset_type": "video", **clips}]}

    assert changed_keys(record(repeats=1), record(repeats=2)) == ["datasets.clips.repeats"]
    assert changed_keys(record(), record(cache_dir_vae="elsewhere", video={})) == []
    assert changed_keys(record(video={"num_frames": 81}), record()) == []
    assert changed_keys(record(video={"num_frames": 49}), record()) == ["datasets.clips.video"]
    assert changed_keys(record(), {"datasets": []}) == ["datasets.clips"]
    text = {"id": "t", "dataset_type": "text_embeds"}
    assert changed_keys(record(), {"datasets": [*record()["datasets"], text]}) == []


def test_every_key_of_simpletuner_examples_is_declared() -> None:
    """The keys of the configurations that users arrive with."""
    keys = """
    resume_from_checkpoint quantize_via attention_mechanism data_backend_config aspect_bucket_rounding seed
    minimum_image_size offload_during_startup disable_benchmark output_dir lora_type lycoris_config max_train_steps
    num_train_epochs checkpoint_step_interval checkpoints_total_limit hub_model_id push_to_hub push_checkpoints_to_hub
    tracker_project_name tracker_run_name report_to model_type pretrained_model_name_or_path
    pretrained_t5_model_name_or_path model_family train_batch_size gradient_checkpointing gradient_accumulation_steps
    caption_dropout_probability resolution_type resolution validation_seed validation_step_interval
    validation_resolution validation_prompt validation_negative_prompt validation_guidance
    validation_num_inference_steps validation_num_video_frames mixed_precision optimizer learning_rate max_grad_norm
    grad_clip_method lr_scheduler lr_warmup_steps base_model_precision vae_batch_size webhook_config
    compress_disk_cache use_ema ema_validation ema_update_interval delete_problematic_images disable_bucket_pruning
    validation_guidance_skip_layers validation_guidance_skip_layers_start validation_guidance_skip_layers_stop
    lora_rank flow_schedule_shift validation_prompt_library ignore_final_epochs tread_config enable_group_offload
    group_offload_type group_offload_blocks_per_group group_offload_use_stream group_offload_to_disk_path
    enable_model_cpu_offload enable_chunked_feed_forward feed_forward_chunk_size model_flavour
    wan_validation_load_other_stage wan_force_2_1_time_embedding validation_preview validation_preview_steps
    user_prompt_library flow_schedule_auto_shift text_encoder_1_precision text_encoder_2_precision
    base_model_default_dtype pretrained_transformer_model_name_or_path pretrained_vae_model_name_or_path
    pretrained_transformer_subfolder"""
    assert set(keys.split()) <= set(catalogue())
    data = """
    id type dataset_type crop resolution minimum_image_size maximum_image_size target_downsample_size
    resolution_type cache_dir_vae instance_data_dir disabled caption_strategy metadata_backend repeats
    video video.num_frames video.min_frames video.max_frames video.bucket_strategy video.frame_interval video.is_i2v
    default cache_dir write_batch_size conditioning_image_embeds cache_dir_conditioning_image_embeds crop_aspect"""
    assert set(data.split()) <= set(dataset_catalogue())
