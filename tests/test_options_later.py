"""Keys that ask for what is to come, for comfort, or for what another program calls so, and how they are answered."""

from __future__ import annotations

from pathlib import Path

import pytest
from option_files import DATASET, load_in, problems


def test_the_dataset_keys_of_musubi_tuner_are_answered_with_ours(tmp_path: Path) -> None:
    text = problems(tmp_path, datasets=[{**DATASET, "num_repeats": 2, "caption_extension": ".txt", "batch_size": 1}])
    assert "num_repeats is not a key of a dataset; write repeats" in text
    assert "caption_extension is not a key of a dataset; leave it out" in text
    assert "batch_size is not a key of a dataset; write train_batch_size in config.json" in text


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
    environ = {"WAN_FEED_FORWARD_CHUNK_SIZE": "2", "SIMPLEWAN_CACHE": "/x", "SIMPLEWAN_HOMEPAGE": "3"}
    loaded = load_in(tmp_path, environ=environ)
    assert loaded.options.memory.feed_forward_chunk_size == 2
    assert [problem.key for problem in loaded.later] == ["enable_chunked_feed_forward"]
    assert [notice.message for notice in loaded.notices if "SIMPLEWAN" in notice.message] == [
        "environment: SIMPLEWAN_HOMEPAGE names no option and is not read"
    ]
    found = problems(tmp_path, environ={"SIMPLEWAN_LORA_RAN": "3"}, learning_rate="fast")
    assert "environment: SIMPLEWAN_LORA_RAN names no option; did you mean SIMPLEWAN_LORA_RANK?" in found
    assert "learning_rate" in found
