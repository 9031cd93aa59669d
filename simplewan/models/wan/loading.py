"""The parts of a Wan model as modules: diffusers folders and single files. Imports diffusers and transformers on use.

Every module comes back frozen and in eval mode, on the CPU. Modules that diffusers keeps in float32 stay float32
whatever dtype is asked for, single files included.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from simplewan.errors import Problem, UserError
from simplewan.flavours import EXPERT_SUBFOLDER, Flavour
from simplewan.models.keys import to_diffusers
from simplewan.models.wan.sources import (
    ModelSource,
    Source,
    check_files,
    check_part,
    fingerprint,
    needs_image_embeds,
    part_folder,
    resolve_folder,
    size_remark,
    source,
)

__all__ = [
    "check_files",
    "fingerprint",
    "image_encoder_fingerprint",
    "load_image_encoder",
    "load_text_encoder",
    "load_transformer",
    "load_vae",
    "locate_transformer",
    "needs_image_embeds",
    "resolve_folder",
    "size_remark",
    "text_encoder_fingerprint",
    "vae_fingerprint",
]


def load_transformer(model: ModelSource, flavour: Flavour, expert: str, dtype: torch.dtype) -> Any:
    """The WanTransformer3DModel of `expert`: "high" is `transformer`, "low" is `transformer_2`. Raises UserError."""
    from diffusers import WanTransformer3DModel

    place = source(model, flavour, EXPERT_SUBFOLDER[expert])
    path = locate_transformer(model, flavour, expert)
    with _reading(place):
        if path.is_file():
            return _frozen(_transformer_of_file(WanTransformer3DModel, path, model, flavour, dtype))
        return _frozen(WanTransformer3DModel.from_pretrained(path, torch_dtype=dtype, variant=_variant(path, place)))


def locate_transformer(model: ModelSource, flavour: Flavour, expert: str) -> Path:
    """Where the transformer of `expert` lies on this machine, downloaded if need be and looked at. Raises UserError."""
    return _checked(source(model, flavour, EXPERT_SUBFOLDER[expert]), flavour)


def load_vae(model: ModelSource, flavour: Flavour, dtype: torch.dtype) -> Any:
    """The AutoencoderKLWan. Raises UserError."""
    from diffusers import AutoencoderKLWan

    place = source(model, flavour, "vae")
    path = _checked(place, flavour)
    with _reading(place):
        if path.is_file():
            config = _config_folder(model, flavour, "vae", path)
            return _frozen(AutoencoderKLWan.from_single_file(str(path), config=str(config), torch_dtype=dtype))
        return _frozen(AutoencoderKLWan.from_pretrained(path, torch_dtype=dtype, variant=_variant(path, place)))


def load_text_encoder(model: ModelSource, flavour: Flavour, dtype: torch.dtype) -> tuple[Any, Any]:
    """(tokenizer, UMT5EncoderModel). Raises UserError; a single file has no configuration and is refused."""
    from transformers import AutoTokenizer, UMT5EncoderModel

    place, tokenizer_place = source(model, flavour, "text_encoder"), source(model, flavour, "tokenizer")
    path, tokenizer_path = _checked(place, flavour), _checked(tokenizer_place, flavour)
    _refuse_file(path, place, "text_encoder/ and tokenizer/")
    with _reading(place):
        encoder = _frozen(UMT5EncoderModel.from_pretrained(path, dtype=dtype))
    with _reading(tokenizer_place):
        return AutoTokenizer.from_pretrained(tokenizer_path), encoder


def load_image_encoder(model: ModelSource, flavour: Flavour, dtype: torch.dtype) -> tuple[Any, Any]:
    """(CLIPImageProcessor, CLIPVisionModel) of Wan 2.1 I2V. Raises UserError; a single file is refused."""
    from transformers import CLIPImageProcessor, CLIPVisionModel

    assert needs_image_embeds(flavour), f"{flavour.name} has no image encoder"
    place, processor_place = source(model, flavour, "image_encoder"), source(model, flavour, "image_processor")
    path, processor_path = _checked(place, flavour), _checked(processor_place, flavour)
    _refuse_file(path, place, "image_encoder/ and image_processor/")
    with _reading(place):
        encoder, found = CLIPVisionModel.from_pretrained(
            path,
            dtype=dtype,
            variant=_variant(path, place),
            ignore_mismatched_sizes=True,  # told below, with what is missing
            output_loading_info=True,
        )
    _refuse_incomplete(found, place)
    with _reading(processor_place):
        return CLIPImageProcessor.from_pretrained(processor_path), _frozen(encoder)


def vae_fingerprint(model: ModelSource, flavour: Flavour) -> str:
    """`fingerprint` of the VAE, downloaded if need be."""
    return _fingerprints(model, flavour, "vae")


def text_encoder_fingerprint(model: ModelSource, flavour: Flavour) -> str:
    """`fingerprint` of text encoder and tokenizer, downloaded if need be."""
    return _fingerprints(model, flavour, "text_encoder", "tokenizer")


def image_encoder_fingerprint(model: ModelSource, flavour: Flavour) -> str:
    """`fingerprint` of the CLIP encoder and its image processor, downloaded if need be."""
    assert needs_image_embeds(flavour), f"{flavour.name} has no image encoder"
    return _fingerprints(model, flavour, "image_encoder", "image_processor")


def _fingerprints(model: ModelSource, flavour: Flavour, *parts: str) -> str:
    return "-".join(fingerprint(part_folder(source(model, flavour, part))) for part in parts)


@contextmanager
def _reading(place: Source) -> Iterator[None]:
    """Turns what the libraries say of a damaged file into a UserError that names the part."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, ValueError, SafetensorError) as error:
        fix = "a file of it is damaged or incomplete: download or copy it again"
        message = f"has a {place.part} that cannot be read: {str(error).splitlines()[0]}"
        raise UserError(Problem("model", message, key=place.key, value=place.name, fix=fix)) from error


def _checked(place: Source, flavour: Flavour) -> Path:
    path = part_folder(place)
    problems = check_part(path, place, flavour)
    if problems:
        raise UserError(*problems)
    return path


def _refuse_file(path: Path, place: Source, parts: str) -> None:
    """Parts of transformers have their configuration in the folder: one file does not do. Raises UserError."""
    if path.is_file():
        fix = f"give a folder with {parts} in diffusers' layout"
        raise UserError(Problem("model", "is a single file", key=place.key, value=place.name, fix=fix))


def _refuse_incomplete(found: dict[str, Any], place: Source) -> None:
    """transformers fills what a file lacks with random numbers, and nothing would show it later. Raises UserError."""
    absent = sorted(found["missing_keys"]) + sorted(str(key) for key in found["mismatched_keys"])
    if absent:
        message = f"has a {place.part} that lacks {len(absent)} of its weights, {absent[0]} among them"
        fix = "its config.json or its weights are another model's: copy or download it again"
        raise UserError(Problem("model", message, key=place.key, value=place.name, fix=fix))


def _variant(folder: Path, place: Source) -> str | None:
    """The variant asked for, where this part has one."""
    return place.variant if place.variant and any(folder.glob(f"*.{place.variant}*")) else None


def _frozen(module: Any) -> Any:
    return module.requires_grad_(False).eval()


def _config_folder(model: ModelSource, flavour: Flavour, part: str, file: Path) -> Path:
    """The folder with the configuration for a single file: beside it, or the base model's part."""
    if (file.parent / "config.json").is_file():
        return file.parent
    name = model.pretrained_model_name_or_path or flavour.repository
    base = Source(part, "pretrained_model_name_or_path", name, part, model.revision)
    folder = resolve_folder(name, [f"{part}/*.json"], key=base.key, revision=base.revision) / part
    if not (folder / "config.json").is_file():
        fix = "put its config.json beside it, or let pretrained_model_name_or_path name the base model"
        raise UserError(Problem("model", "has no configuration", key=part, value=str(file), fix=fix))
    return folder


def _transformer_of_file(cls: Any, path: Path, model: ModelSource, flavour: Flavour, dtype: torch.dtype) -> Any:
    """A transformer from one file with Wan's own or diffusers' names; the float32 modules are read again as float32.

    `from_single_file` casts the whole module, the rotary tables with it, whose angles do not survive fewer bits.
    """
    from safetensors import safe_open

    config = _config_folder(model, flavour, "transformer", path)
    transformer = cls.from_single_file(str(path), config=str(config), torch_dtype=dtype)
    kept = {
        name: parameter
        for name, parameter in transformer.named_parameters()
        if any(part in name.split(".") for part in cls._keep_in_fp32_modules)
    }
    with safe_open(path, framework="pt") as file:
        for key in file.keys():  # noqa: SIM118 (safe_open is no mapping)
            bare = key.removeprefix("model.diffusion_model.")
            name = bare if bare in kept else _diffusers_name(bare)
            if name in kept:
                kept[name].data = file.get_tensor(key).float().reshape(kept[name].shape)
    rope = transformer.rope
    transformer.rope = type(rope)(rope.attention_head_dim, rope.patch_size, rope.max_seq_len)
    return transformer


def _diffusers_name(name: str) -> str | None:
    try:
        return to_diffusers(name)
    except KeyError:
        return None
