"""`simpletuner export`: which files to which format; a configuration is read only where it says something.

Imports options; `app`, and torch with it, only when there is something to export. Standard output holds the names of
the files, or one JSON document.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from simplewan.cli.arguments import Arguments, parse
from simplewan.cli.configuration import find_configuration, load_configuration, with_example
from simplewan.errors import EXIT_DONE, Problem, UserError
from simplewan.options import Loaded
from simplewan.options.sources import COMMAND_LINE, Override

MERGED = "merged"
TARGETS = ("universal", "comfyui", "diffusers", "musubi", "lycoris", MERGED)
CHOICES = {
    "to": TARGETS,
    "dtype": ("fp32", "fp16", "bf16"),
    "expert": ("high", "low"),
    "layout": ("diffusers", "original"),
}
# What the formats are called elsewhere.
CALLED = {
    "to": {"kohya": "musubi", "sd-scripts": "musubi", "comfy": "comfyui", "peft": "diffusers", "merge": MERGED},
}
OWN = (*CHOICES, "output", "scale", "alpha", "as_lora", "base")
FLAGS = ("json", "drop", "overwrite")
HELP = """usage: simpletuner export [FILE ...] --to FORMAT [env=NAME | example=NAME | --config FILE] [key=value ...]

Writes LoRA and LyCORIS files of any tool in another tool's format, or merges them into the base model. A folder (a
run's output_dir, or a checkpoint) stands for the LoRAs in it; without a FILE it is the output_dir of the configuration.
What is written is read back with another key map, and refused when a key, a shape or a value does not match.

  --to universal    ComfyUI, diffusers, DiffSynth and LightX2V: diffusion_model., lora_A and lora_B, scale 1
  --to comfyui      the same; changes of modulation tables, which few files have, in ComfyUI's spelling. Of a folder
                    with whole transformers (a full fine-tune), or of one's own folder, one file each, in Wan's own
                    names; scale, alpha, as_lora, base, layout and --drop have no meaning for those
  --to diffusers    transformer., diffusers' names: for load_lora_weights; no LyCORIS
  --to musubi       lora_unet_, lora_down, lora_up and alpha: for musubi-tuner, and kohya's tools
  --to lycoris      lycoris_, diffusers' names: for lycoris-lora and SimpleTuner
  --to merged       the transformer with the LoRA in its weights

  output=PLACE      a folder, or a .safetensors file; without it the folder export/ (or merged/) beside the file
  dtype=bf16        fp32, fp16 or bf16; without it that of the file, or of the base
  scale=0.8         multiply the strength;  alpha=16 replaces the alpha of the file
  as_lora=32        approximate what is no LoRA of this rank or less by one (SVD); the errors are told
  --drop            leave out, by name, what the format cannot say or the base has no place for, instead of refusing it
  expert=high       the expert, when neither the metadata nor the name (..._high_noise) tell; a file that tells the
                    other one is refused
  --overwrite       replace what is there; of folders those that a merge wrote
  --json            one JSON document on standard output

For --to merged:
  base=PLACE        a folder in diffusers' layout or Wan's own, or one file; the options of the model do as well
                    (model_flavour, pretrained_model_name_or_path, pretrained_transformer_model_name_or_path ...)
  layout=original   one file with Wan's own names instead of a folder in diffusers' layout"""


def run(argv: Sequence[str], *, environ: Mapping[str, str]) -> int:
    """Export; returns the exit code. Raises UserError with every mistake of arguments and files."""
    arguments = parse(argv, environ=environ, own=OWN, flags=FLAGS, words=True)
    if arguments.help:
        print(HELP)
        return EXIT_DONE
    chosen = {key: arguments.choice(key, choices, CALLED.get(key, {})) for key, choices in CHOICES.items()}
    if chosen["to"] is None and "to" not in arguments.own:
        arguments.problems.append(Problem(COMMAND_LINE, "no format was given", fix=f"write --to {'|'.join(TARGETS)}"))
    scale, alpha = (arguments.number(key, fix=f"write {key}=1.0") for key in ("scale", "alpha"))
    rank = arguments.whole_number("as_lora", minimum=1, fix="write as_lora=32")
    drop, overwrite, as_json = (arguments.flag(key) for key in ("drop", "overwrite", "json"))
    output = arguments.path("output")
    _name_base(arguments)
    loaded = _configuration(arguments, environ, merged=chosen["to"] == MERGED)
    print("loading PyTorch and diffusers ...", file=sys.stderr, flush=True)
    from simplewan.app.converting import run_export
    from simplewan.app.exporting import Request

    to = chosen["to"]
    assert to is not None, "checked with the arguments"
    places = [Path(word).expanduser() for word in arguments.words]
    if not places:
        assert loaded is not None, "without files there is a configuration"
        places = [loaded.options.run.output_dir]
    request = Request(
        places=places,
        to=to,
        output=output,
        dtype=chosen["dtype"],
        scale=1.0 if scale is None else scale,
        alpha=alpha,
        as_lora=rank,
        drop=drop,
        overwrite=overwrite,
        expert=chosen["expert"],
        layout=chosen["layout"],
        flavour=None if loaded is None or "model_flavour" not in loaded.resolved else loaded.flavour,
        inferred=None if loaded is None else loaded.flavour,
        base=arguments.value("base"),
        model=None if loaded is None else loaded.options.model,
    )
    written = run_export(request)
    if as_json:
        print(json.dumps([vars(each) for each in written], indent=2, ensure_ascii=False))
    else:
        for each in written:
            print(each)
    return EXIT_DONE


def _configuration(arguments: Arguments, environ: Mapping[str, str], *, merged: bool) -> Loaded | None:
    """The configuration where it says something: it is named, gives the files, or there are options. Raises UserError.

    A config/config.json that happens to lie here says nothing of a file that is named.
    """
    picked = any((arguments.config, arguments.env, arguments.example))
    if not (picked or arguments.overrides or merged or not arguments.words):
        if arguments.problems:
            raise UserError(*arguments.problems)
        return None
    config: Path | None = None
    placeholders: dict[str, str] = {}
    if picked or not arguments.words:
        config, placeholders = find_configuration(arguments, environ)
    loaded = load_configuration(
        arguments, config, environ, placeholders, unprepared=tuple(placeholders), training=False
    )
    if not merged:
        return loaded
    return with_example(loaded, arguments, config, environ, placeholders, training=False)


def _name_base(arguments: Arguments) -> None:
    """base=PLACE as the options that say the same."""
    value = arguments.value("base")
    if value is None:
        return
    path = Path(value).expanduser()
    transformers = [f"pretrained_transformer{number}_model_name_or_path" for number in ("", "_2")]
    if path.is_file():
        arguments.overrides += [Override(key, value, COMMAND_LINE) for key in transformers]
    elif (path / "config.json").is_file():  # the folder of a transformer, not that of a model
        arguments.overrides += [Override(key, value, COMMAND_LINE) for key in transformers]
        subfolders = [key.replace("_model_name_or_path", "_subfolder") for key in transformers]
        arguments.overrides += [Override(key, "none", COMMAND_LINE) for key in subfolders]
    else:
        arguments.overrides.append(Override("pretrained_model_name_or_path", value, COMMAND_LINE))
