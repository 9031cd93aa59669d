"""Options as text for a terminal: the long form of `options`, the short one of `train --help` and `sample --help`."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Mapping
from typing import Any

from simplewan.errors import shorten
from simplewan.options.describe import DATASETS, WEBHOOKS, group_titles, limits_text, option_records, value_text

TRAIN_USAGE = """usage: simpletuner train [env=NAME | example=NAME | --config FILE] [key=value | --key value ...]

Without env, example or --config, config/config.json is read; env=NAME reads config/NAME/config.json.
Every option below is a key of that file and an argument: learning_rate=1e-5, --learning_rate 1e-5, --use_ema.
`simpletuner options WORD` tells more about each; docs/OPTIONS.md has them all. * marks what is still to come."""
SAMPLE_USAGE = """usage: simpletuner sample [env=NAME | example=NAME | --config FILE] [prompt="..." ...]
                          [adapter=FILE ...] [key=value | --key value ...]

Renders prompts to mp4 files with contact sheets. The configuration is found as `train` finds it, but need not be there
(--config none reads none), and no datasets are needed. The weights are the newest that its output_dir holds: the final
ones, or those of the newest whole checkpoint. Of Wan 2.2 A14B both experts render, changing at the boundary.

  prompt="..."          a prompt; may be given several times. Without one: validation_prompt and user_prompt_library
  prompts=FILE          one prompt a line, or a JSON object {"name": "prompt"}
  input_image=FILE      the picture, or the video whose first frame, the clips begin with: for image-to-video models,
                        and Wan 2.2 TI2V if you like; one for all prompts, or one for each, in their order
  seed=1,2,3            each prompt once with each seed; without it validation_seed
  adapter=FILE          a LoRA file, or a folder (a checkpoint) with some, instead; may be given several times. The file
                        tells its expert by its metadata or its name (..._high_noise); "none" is the base model
  adapter_high=FILE     a LoRA for the high-noise expert; adapter_low=FILE for the other
  adapter_scale=0.8     the strength of the LoRAs
  output=FOLDER         where the files go: output_dir/samples, or ./samples; nothing is overwritten
  --json                one JSON document on standard output

These options count, of the configuration and as arguments; * marks what is still to come:"""
# What can change a rendered clip, or where it lies; all else in a configuration is passed over.
SAMPLE_KEYS = (
    "output_dir",
    "deterministic",
    "mixed_precision",
    "vae_dtype",
    "model_type",
    "model_flavour",
    "pretrained_model_name_or_path",
    "pretrained_transformer_model_name_or_path",
    "pretrained_transformer_subfolder",
    "pretrained_transformer_2_model_name_or_path",
    "pretrained_transformer_2_subfolder",
    "pretrained_vae_model_name_or_path",
    "pretrained_t5_model_name_or_path",
    "pretrained_tokenizer_model_name_or_path",
    "pretrained_image_encoder_model_name_or_path",
    "revision",
    "variant",
    "base_model_precision",
    "base_model_default_dtype",
    "text_encoder_1_precision",
    "attention_mechanism",
    "wan_force_2_1_time_embedding",
    "vae_enable_tiling",
    "timestep_boundary",
    "validation_prompt",
    "validation_negative_prompt",
    "user_prompt_library",
    "validation_prompt_library",
    "validation_resolution",
    "validation_num_video_frames",
    "validation_num_inference_steps",
    "validation_guidance",
    "validation_shift",
    "validation_seed",
    "validation_noise_scheduler",
    "validation_preview",
    "validation_preview_steps",
    "validation_guidance_skip_layers",
    "validation_guidance_skip_layers_start",
    "validation_guidance_skip_layers_stop",
    "validation_guidance_skip_scale",
)
NAME_WIDTH = 46


def option_text(record: Mapping[str, Any]) -> str:
    """Everything about one option, over several lines."""
    mark = f"  [to come: {record['to_come']}]" if record["to_come"] else ""
    place = {DATASETS: "dataset key", WEBHOOKS: "webhook key"}.get(record["group"], record["group"])
    facts = [f"{place}, {record['type']}", limits_text(record), f"default {value_text(record['default'])}"]
    lines = [f"{record['key']}{mark}", f"({', '.join(fact for fact in facts if fact)})", record["help"]]
    if record["choices"]:
        lines.append(f"choices: {', '.join(record['choices'])}")
    if record["later_choices"]:
        lines.append(f"to come: {', '.join(record['later_choices'])}")
    if record["needs"]:
        lines.append(f"needs {record['needs']}")
    if record["other_names"]:
        lines.append(f"elsewhere called {', '.join(record['other_names'])}")
    return "\n".join([lines[0], *(_indented(line) for line in lines[1:])])


def train_help() -> str:
    """The usage of `train`, then one line an option, by group."""
    width = _width()
    lines = [TRAIN_USAGE]
    records = option_records()
    for name, title in group_titles().items():
        lines.append(f"\n{title}")
        lines += [_short(record, width) for record in records if record["group"] == name]
    return "\n".join(lines)


def sample_help() -> str:
    """The usage of `sample`, then one line for each option that it reads."""
    width = _width()
    wanted = (record for record in option_records() if record["key"] in SAMPLE_KEYS)
    return "\n".join([SAMPLE_USAGE, *(_short(record, width) for record in wanted)])


def _short(record: Mapping[str, Any], width: int) -> str:
    mark = "*" if record["to_come"] else " "
    default = value_text(record["default"])
    name = f" {mark}--{record['key']}"
    first = record["help"].split(". ")[0].rstrip(".")
    room = max(20, width - max(NAME_WIDTH, len(name) + 1))
    text = f"{first} ({shorten(default, 24)})"
    if len(text) > room:
        text = (
            textwrap.shorten(first, room - len(shorten(default, 24)) - 3, placeholder="...")
            + f" ({shorten(default, 24)})"
        )
    return f"{name:<{NAME_WIDTH - 1}} {text}"


def _indented(text: str) -> str:
    return textwrap.fill(text, _width(), initial_indent="    ", subsequent_indent="    ", break_on_hyphens=False)


def _width() -> int:
    return max(60, min(140, shutil.get_terminal_size((120, 24)).columns))
