"""The parts of a Wan model as modules: from diffusers folders, original repositories and single files.

Every module comes back frozen and in eval mode, on the CPU. Modules that diffusers keeps in float32 stay float32
whatever dtype is asked for, single files included. Imports diffusers and transformers on use.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from simplewan.errors import UserError
from simplewan.flavours import EXPERT_SUBFOLDER, Flavour
from simplewan.models.wan.checking import size_remark
from simplewan.models.wan.original import (
    build_image_encoder,
    build_text_encoder,
    build_transformer,
    build_vae,
    described_config,
    transformer_config,
)
from simplewan.models.wan.rehearsal import (
    base_config,
    check_files,
    configs_near,
    is_for_diffusers,
    look_at,
    reading,
    refuse_misfit,
    variant_of,
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
)
from simplewan.models.wan.tokens import make_tokenizer
from simplewan.models.wan.weights import open_weights
from simplewan.recognition import of_config, read_config, recognise

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
    "vae_fingerprint",
]


def load_transformer(model: ModelSource, flavour: Flavour, expert: str, dtype: torch.dtype) -> Any:
    """The WanTransformer3DModel of `expert`: "high" is `transformer`, "low" is `transformer_2`. Raises UserError."""
    from diffusers import WanTransformer3DModel

    place = source(model, flavour, EXPERT_SUBFOLDER[expert])
    path = locate_transformer(model, flavour, expert)
    with reading(place):
        if is_for_diffusers(path):
            return _frozen(
                WanTransformer3DModel.from_pretrained(path, torch_dtype=dtype, variant=variant_of(path, place))
            )
        with open_weights(path) as weights:
            return _frozen(build_transformer(weights, dtype, configs=configs_near(model, place, path)))


def locate_transformer(model: ModelSource, flavour: Flavour, expert: str) -> Path:
    """Where the transformer of `expert` lies on this machine, downloaded if need be and looked at. Raises UserError."""
    return _checked(model, source(model, flavour, EXPERT_SUBFOLDER[expert]), flavour)


def transformer_configuration(model: ModelSource, flavour: Flavour, expert: str) -> Mapping[str, Any] | None:
    """diffusers' configuration of the transformer of `expert`, without its weights.

    None where it is not told before the weights are read: by a pickled file, or a repository of single files. Raises
    UserError.
    """
    place = source(model, flavour, EXPERT_SUBFOLDER[expert])
    if place.is_local:
        with reading(place):
            if recognise(part_path(place)) is None:
                return None
            return described_config(part_path(place), configs=[base_config(model, place.part)])
    config = read_config(part_config(place))
    found = of_config(config)
    return None if found is None else transformer_config(found, [config])


def load_vae(model: ModelSource, flavour: Flavour, dtype: torch.dtype) -> Any:
    """The AutoencoderKLWan. Raises UserError."""
    from diffusers import AutoencoderKLWan

    place = source(model, flavour, "vae")
    path = _checked(model, place, flavour)
    with reading(place):
        if path.is_file():
            with open_weights(path) as weights:
                return _frozen(build_vae(path, weights, dtype))
        return _frozen(AutoencoderKLWan.from_pretrained(path, torch_dtype=dtype, variant=variant_of(path, place)))


def load_text_encoder(model: ModelSource, flavour: Flavour, dtype: torch.dtype) -> tuple[Any, Any]:
    """(tokenizer, UMT5EncoderModel). Raises UserError."""
    from transformers import UMT5EncoderModel

    place, tokenizer_place = source(model, flavour, "text_encoder"), source(model, flavour, "tokenizer")
    path, tokenizer_path = _checked(model, place, flavour), _checked(model, tokenizer_place, flavour)
    with reading(place):
        if path.is_file():
            with open_weights(path) as weights:
                encoder, found = build_text_encoder(weights, dtype)
        else:
            encoder, found = UMT5EncoderModel.from_pretrained(
                path,
                dtype=dtype,
                ignore_mismatched_sizes=True,  # told below, with what is missing
                output_loading_info=True,
            )
    refuse_misfit(found, place)
    with reading(tokenizer_place):
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
    path, processor_path = _checked(model, place, flavour), _checked(model, processor_place, flavour)
    with reading(place):
        if path.is_file():
            with open_weights(path) as weights:
                encoder, found = build_image_encoder(weights, dtype)
        else:
            encoder, found = CLIPVisionModel.from_pretrained(
                path,
                dtype=dtype,
                variant=variant_of(path, place),
                ignore_mismatched_sizes=True,  # told below, with what is missing
                output_loading_info=True,
            )
    refuse_misfit(found, place)
    with reading(processor_place):
        # A file comes without a processor's configuration: CLIP's own is the one that Wan was trained with.
        processor = (
            CLIPImageProcessor() if processor_path.is_file() else CLIPImageProcessor.from_pretrained(processor_path)
        )
        return processor, _frozen(encoder)


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


def _checked(model: ModelSource, place: Source, flavour: Flavour) -> Path:
    path = part_path(place)
    problems = look_at(model, path, place, flavour)
    if problems:
        raise UserError(*problems)
    return path


def _frozen(module: Any) -> Any:
    return module.requires_grad_(False).eval()
