"""The parts of a Wan model as modules: from diffusers folders, original repositories and single files.

Every module comes back frozen and in eval mode, on the CPU. Modules that diffusers keeps in float32 stay float32
whatever dtype is asked for, single files included. Imports diffusers and transformers on use.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from simplewan.errors import Problem, UserError
from simplewan.flavours import EXPERT_SUBFOLDER, Flavour
from simplewan.models.wan.checking import check_files, check_part, size_remark
from simplewan.models.wan.original import (
    build_image_encoder,
    build_text_encoder,
    build_transformer,
    build_vae,
    described_config,
    is_unused,
    transformer_config,
)
from simplewan.models.wan.sources import (
    TOKENIZER_TENSOR,
    ModelSource,
    Source,
    fingerprint,
    needs_image_embeds,
    part_config,
    part_path,
    source,
    weights_fingerprint,
)
from simplewan.models.wan.tokens import make_tokenizer
from simplewan.models.wan.weights import open_weights
from simplewan.recognition import DIFFUSERS, of_config, part_in, read_config, recognise

__all__ = [
    "base_config",
    "check_files",
    "fingerprint",
    "image_encoder_fingerprint",
    "load_image_encoder",
    "load_text_encoder",
    "load_transformer",
    "load_vae",
    "locate_transformer",
    "needs_image_embeds",
    "size_remark",
    "text_encoder_fingerprint",
    "transformer_configuration",
    "transformer_fingerprint",
    "vae_fingerprint",
]


def load_transformer(model: ModelSource, flavour: Flavour, expert: str, dtype: torch.dtype) -> Any:
    """The WanTransformer3DModel of `expert`: "high" is `transformer`, "low" is `transformer_2`. Raises UserError."""
    from diffusers import WanTransformer3DModel

    place = source(model, flavour, EXPERT_SUBFOLDER[expert])
    path = locate_transformer(model, flavour, expert)
    with _reading(place):
        if _is_for_diffusers(path):
            return _frozen(
                WanTransformer3DModel.from_pretrained(path, torch_dtype=dtype, variant=_variant(path, place))
            )
        beside = read_config(path.parent if path.is_file() else path)
        return _frozen(build_transformer(path, dtype, configs=[beside, base_config(model, place.part)]))


def locate_transformer(model: ModelSource, flavour: Flavour, expert: str) -> Path:
    """Where the transformer of `expert` lies on this machine, downloaded if need be and looked at. Raises UserError."""
    return _checked(source(model, flavour, EXPERT_SUBFOLDER[expert]), flavour)


def transformer_configuration(model: ModelSource, flavour: Flavour, expert: str) -> Mapping[str, Any] | None:
    """diffusers' configuration of the transformer of `expert`, without its weights.

    None where it is not told before the weights are read: by a pickled file, or a repository of single files. Raises
    UserError.
    """
    place = source(model, flavour, EXPERT_SUBFOLDER[expert])
    if place.is_local:
        with _reading(place):
            if recognise(part_path(place)) is None:
                return None
            return described_config(part_path(place), configs=[base_config(model, place.part)])
    config = read_config(part_config(place))
    found = of_config(config)
    return None if found is None else transformer_config(found, [config])


def _is_for_diffusers(path: Path) -> bool:
    """Whether diffusers reads the transformer there: a folder of its own layout, whose weights are no fp8."""
    found = of_config(read_config(path)) if path.is_dir() else None
    if found is None or found.naming != DIFFUSERS:
        return False
    whole = recognise(path)
    return whole is not None and whole.quantised is None


def base_config(model: ModelSource, part: str) -> Mapping[str, Any]:
    """The configuration of the base model's own part, where that lies on this machine."""
    base = Path(model.pretrained_model_name_or_path or "").expanduser()
    folder = part_in(base, part) if model.pretrained_model_name_or_path and base.is_dir() else None
    return read_config(folder) if folder is not None else {}


def load_vae(model: ModelSource, flavour: Flavour, dtype: torch.dtype) -> Any:
    """The AutoencoderKLWan. Raises UserError."""
    from diffusers import AutoencoderKLWan

    place = source(model, flavour, "vae")
    path = _checked(place, flavour)
    with _reading(place):
        if path.is_file():
            return _frozen(build_vae(path, dtype))
        return _frozen(AutoencoderKLWan.from_pretrained(path, torch_dtype=dtype, variant=_variant(path, place)))


def load_text_encoder(model: ModelSource, flavour: Flavour, dtype: torch.dtype) -> tuple[Any, Any]:
    """(tokenizer, UMT5EncoderModel). Raises UserError."""
    from transformers import UMT5EncoderModel

    place, tokenizer_place = source(model, flavour, "text_encoder"), source(model, flavour, "tokenizer")
    path, tokenizer_path = _checked(place, flavour), _checked(tokenizer_place, flavour)
    with _reading(place):
        if path.is_file():
            encoder, found = build_text_encoder(path, dtype)
        else:
            encoder, found = UMT5EncoderModel.from_pretrained(
                path,
                dtype=dtype,
                ignore_mismatched_sizes=True,  # told below, with what is missing
                output_loading_info=True,
            )
    _refuse_misfit(found, place)
    with _reading(tokenizer_place):
        return _load_tokenizer(tokenizer_path), _frozen(encoder)


def _load_tokenizer(path: Path) -> Any:
    from transformers import AutoTokenizer

    if path.is_dir():
        return AutoTokenizer.from_pretrained(path)
    with open_weights(path) as weights:
        return make_tokenizer(weights[TOKENIZER_TENSOR].numpy().tobytes())


def load_image_encoder(model: ModelSource, flavour: Flavour, dtype: torch.dtype) -> tuple[Any, Any]:
    """(CLIPImageProcessor, CLIPVisionModel) of Wan 2.1 I2V. Raises UserError."""
    from transformers import CLIPImageProcessor, CLIPVisionModel

    assert needs_image_embeds(flavour), f"{flavour.name} has no image encoder"
    place, processor_place = source(model, flavour, "image_encoder"), source(model, flavour, "image_processor")
    path, processor_path = _checked(place, flavour), _checked(processor_place, flavour)
    with _reading(place):
        if path.is_file():
            encoder, found = build_image_encoder(path, dtype)
        else:
            encoder, found = CLIPVisionModel.from_pretrained(
                path,
                dtype=dtype,
                variant=_variant(path, place),
                ignore_mismatched_sizes=True,  # told below, with what is missing
                output_loading_info=True,
            )
    _refuse_misfit(found, place)
    with _reading(processor_place):
        # A file comes without a processor's configuration: CLIP's own is the one that Wan was trained with.
        processor = (
            CLIPImageProcessor() if processor_path.is_file() else CLIPImageProcessor.from_pretrained(processor_path)
        )
        return processor, _frozen(encoder)


def transformer_fingerprint(model: ModelSource, flavour: Flavour, part: str) -> str:
    """`weights_fingerprint` of one expert's transformer, downloaded if need be."""
    return weights_fingerprint(part_path(source(model, flavour, part)))


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
    return "-".join(fingerprint(part_path(source(model, flavour, part))) for part in parts)


@contextmanager
def _reading(place: Source) -> Iterator[None]:
    """Turns what the libraries say of a damaged file into a UserError that names the part."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, ValueError, SafetensorError, pickle.UnpicklingError) as error:
        fix = "a file of it is damaged, incomplete or of another kind: download or copy it again"
        message = f"has a {place.part} that cannot be read: {str(error).splitlines()[0]}"
        raise UserError(Problem("model", message, key=place.key, value=place.name, fix=fix)) from error


def _checked(place: Source, flavour: Flavour) -> Path:
    path = part_path(place)
    problems = check_part(path, place, flavour)
    if problems:
        raise UserError(*problems)
    return path


def _refuse_misfit(found: Mapping[str, Any], place: Source) -> None:
    """Refuse what transformers passes over, and nothing would show later. Raises UserError.

    What a file lacks it fills with random numbers; what a file has beyond the model it ignores, scales of fp8 among it.
    """
    absent = sorted(found["missing_keys"]) + sorted(str(key) for key in found["mismatched_keys"])
    if absent:
        message = f"has a {place.part} that lacks {len(absent)} of its weights, {absent[0]} among them"
        fix = "its config.json or its weights are another model's: copy or download it again"
        raise UserError(Problem("model", message, key=place.key, value=place.name, fix=fix))
    surplus = sorted(name for name in found["unexpected_keys"] if not is_unused(name))
    if surplus:
        message = f"has a {place.part} with {len(surplus)} tensors that it has no place for, {surplus[0]} among them"
        fix = "give a plain UMT5 or CLIP; scales of fp8 are read when they are called scale_weight or weight_scale"
        raise UserError(Problem("model", message, key=place.key, value=place.name, fix=fix))


def _variant(folder: Path, place: Source) -> str | None:
    """The variant asked for, where this part has one."""
    return place.variant if place.variant and any(folder.glob(f"*.{place.variant}*")) else None


def _frozen(module: Any) -> Any:
    return module.requires_grad_(False).eval()
