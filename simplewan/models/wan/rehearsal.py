"""Whether the tensors of a part are those of its model, found out by building it from their descriptions alone.

A part is built as it will be loaded, on the meta device, from what the headers tell: a tensor too few, too many or of
another shape is refused before anything long starts, and before a library fills it with random numbers or passes over
it. It takes well under a second, of 14B too. Imports checking, original, weights, sources, recognition; the libraries
on use.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch

from simplewan.errors import Problem, UserError
from simplewan.flavours import Flavour
from simplewan.headers import indexed_files, read_headers, weight_files
from simplewan.models.wan import checking
from simplewan.models.wan.original import (
    build_as_configured,
    build_image_encoder,
    build_text_encoder,
    build_transformer,
    build_vae,
    from_state,
    is_unused,
)
from simplewan.models.wan.sources import ModelSource, Source
from simplewan.models.wan.weights import UnsafeFile, described, described_weights
from simplewan.recognition import DIFFUSERS, of_config, of_header, part_in, read_config, recognise

_DAMAGED = "a file of it is damaged, incomplete or of another kind: download or copy it again"
_UNSAFE = "convert it to .safetensors with the tool that made it, or take another copy; a stranger's file may do harm"
# What the libraries call the weights of a folder, without the ending; the first that is there is read.
_OF_DIFFUSERS = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")
_OF_TRANSFORMERS = ("model.safetensors", "pytorch_model.bin")
_NOTHING: Mapping[str, Any] = {"missing_keys": (), "mismatched_keys": (), "unexpected_keys": ()}
_ANY = torch.float32  # descriptions take no memory, whatever they become


def check_files(
    model: ModelSource, flavour: Flavour, *, experts: Sequence[str] | None = None, with_other_stage: bool = False
) -> None:
    """`checking.check_files`, and whether the tensors of all that is local are those that the model has."""
    look = partial(look_at, model)
    checking.check_files(model, flavour, experts=experts, with_other_stage=with_other_stage, look=look)


def look_at(model: ModelSource, path: Path, place: Source, flavour: Flavour) -> list[Problem]:
    """What is wrong with a part's file or folder, its tensors included."""
    problems = checking.check_part(path, place, flavour)
    rehearse = _REHEARSALS.get(place.part)
    if problems or rehearse is None:
        return problems
    try:
        with reading(place), _silent_libraries():
            told = rehearse(model, place, path)
        refuse_misfit(told, place)
    except UserError as error:
        return list(error.problems)
    return []


@contextmanager
def _silent_libraries() -> Iterator[None]:
    """What they say of tensors is told by us, and they say it again when they load."""
    from diffusers.utils import logging as of_diffusers
    from transformers.utils import logging as of_transformers

    before = of_diffusers.get_verbosity(), of_transformers.get_verbosity()
    of_diffusers.set_verbosity_error()
    of_transformers.set_verbosity_error()
    try:
        yield
    finally:
        of_diffusers.set_verbosity(before[0])
        of_transformers.set_verbosity(before[1])


@contextmanager
def reading(place: Source) -> Iterator[None]:
    """Turns what the libraries say of a damaged file into a UserError that names the part."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, ValueError, SafetensorError, pickle.UnpicklingError) as error:
        fix = _UNSAFE if isinstance(error, UnsafeFile) else _DAMAGED
        message = f"has a {place.part} that cannot be read: {str(error).splitlines()[0]}"
        raise UserError(Problem("model", message, key=place.key, value=place.name, fix=fix)) from error


def refuse_misfit(found: Mapping[str, Any], place: Source) -> None:
    """Refuse what transformers passes over, and nothing would show later. Raises UserError.

    What a file lacks it fills with random numbers; what a file has beyond the model it ignores, scales of fp8 among it.
    """
    absent = sorted(found["missing_keys"])
    absent += [
        f"{name} (it has shape {list(shape)}, expected {list(wanted)})"
        for name, shape, wanted in sorted(found["mismatched_keys"])
    ]
    if absent:
        message = f"has a {place.part} that lacks {len(absent)} of its weights, {absent[0]} among them"
        fix = "its config.json or its weights are another model's: copy or download it again"
        raise UserError(Problem("model", message, key=place.key, value=place.name, fix=fix))
    surplus = sorted(name for name in found["unexpected_keys"] if not is_unused(name))
    if surplus:
        message = f"has a {place.part} with {len(surplus)} tensors that it has no place for, {surplus[0]} among them"
        fix = "give a plain UMT5 or CLIP; scales of fp8 are read when they are called scale_weight or weight_scale"
        raise UserError(Problem("model", message, key=place.key, value=place.name, fix=fix))


def is_for_diffusers(path: Path) -> bool:
    """Whether diffusers reads the transformer there: a folder of its own layout, whose weights are no fp8."""
    found = of_config(read_config(path)) if path.is_dir() else None
    if found is None or found.naming != DIFFUSERS:
        return False
    whole = recognise(path)
    return whole is not None and whole.quantised is None


def variant_of(folder: Path, place: Source) -> str | None:
    """The variant asked for, where this part has one."""
    return place.variant if place.variant and any(folder.glob(f"*.{place.variant}*")) else None


def base_config(model: ModelSource, part: str) -> Mapping[str, Any]:
    """The configuration of the base model's own part, where that lies on this machine."""
    base = Path(model.pretrained_model_name_or_path or "").expanduser()
    folder = part_in(base, part) if model.pretrained_model_name_or_path and base.is_dir() else None
    return read_config(folder) if folder is not None else {}


def configs_near(model: ModelSource, place: Source, path: Path) -> list[Mapping[str, Any]]:
    """The configurations that may tell what a transformer's shapes do not: what lies beside it, and the base model's.

    Raises ValueError for a folder whose configuration is of another size than its weights.
    """
    beside = read_config(path.parent if path.is_file() else path)
    said, header = of_config(beside), read_headers(weight_files(path)) if path.is_dir() else None
    found = None if header is None else of_header(header)
    if said is not None and found is not None and said.size not in (None, found.size):
        sizes = (f"{each.width} wide, {each.blocks} blocks" for each in (found, said))
        raise ValueError("its weights are {}, and its config.json says {}".format(*sizes))
    return [beside, base_config(model, place.part)]


# Each builds a part, and returns what transformers says of its tensors (_NOTHING of what is built without it).


def _transformer(model: ModelSource, place: Source, path: Path) -> Mapping[str, Any]:
    from diffusers import WanTransformer3DModel

    if is_for_diffusers(path):
        _as_configured(WanTransformer3DModel, place, path)
    else:
        build_transformer(described_weights(weight_files(path)), _ANY, configs=configs_near(model, place, path))
    return _NOTHING


def _vae(_model: ModelSource, place: Source, path: Path) -> Mapping[str, Any]:
    from diffusers import AutoencoderKLWan

    if path.is_file():
        build_vae(path, described_weights([path]), _ANY)
    else:
        _as_configured(AutoencoderKLWan, place, path)
    return _NOTHING


def _as_configured(cls: Any, place: Source, folder: Path) -> None:
    weights = described_weights(_files_of(folder, _OF_DIFFUSERS, variant_of(folder, place)))
    build_as_configured(cls, read_config(folder), weights, _ANY)


def _text_encoder(_model: ModelSource, _place: Source, path: Path) -> Mapping[str, Any]:
    from transformers import UMT5EncoderModel

    if path.is_file():
        return build_text_encoder(described_weights([path]), _ANY)[1]
    return _by_transformers(UMT5EncoderModel, path, None)


def _image_encoder(_model: ModelSource, place: Source, path: Path) -> Mapping[str, Any]:
    from transformers import CLIPVisionModel

    if path.is_file():
        return build_image_encoder(described_weights([path]), _ANY)[1]
    return _by_transformers(CLIPVisionModel, path, variant_of(path, place))


def _by_transformers(cls: Any, folder: Path, variant: str | None) -> Mapping[str, Any]:
    """What transformers itself says of the tensors in a folder."""
    state = described(_files_of(folder, _OF_TRANSFORMERS, variant))
    return from_state(cls, cls.config_class.from_pretrained(folder), state, _ANY)[1]


def _files_of(folder: Path, names: Sequence[str], variant: str | None) -> list[Path]:
    """The files that a library reads of a folder: one with the first of these names, or what the index of it names."""
    for name in names:
        stem, _, ending = name.rpartition(".")
        single = folder / (f"{stem}.{variant}.{ending}" if variant else name)
        index = folder / (f"{name}.index.{variant}.json" if variant else f"{name}.index.json")
        if index.is_file():
            return indexed_files(index)
        if single.is_file():
            return [single]
    raise ValueError(f"it has no {names[0]}" + (f" of variant {variant}" if variant else ""))


_REHEARSALS: Mapping[str, Callable[[ModelSource, Source, Path], Mapping[str, Any]]] = {
    "transformer": _transformer,
    "transformer_2": _transformer,
    "vae": _vae,
    "text_encoder": _text_encoder,
    "image_encoder": _image_encoder,
}
