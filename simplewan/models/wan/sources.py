"""Where the parts of a model lie: options to a file or folder on this machine. Imports recognition, flavours, errors.

A part (transformer, transformer_2, vae, text_encoder, tokenizer, image_encoder, image_processor) comes from the base
model or from a place of its own. A place is a local folder in diffusers' layout or in that of Wan's original
repositories, a single file, a folder with one part's files at its top, or a hub repository in one of the two layouts,
of which only the part's files are downloaded.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from simplewan.errors import Problem, UserError
from simplewan.flavours import EXPERT_SUBFOLDER, Flavour
from simplewan.headers import WEIGHT_ENDINGS, read_header, weight_files
from simplewan.models.wan.hub import download
from simplewan.recognition import is_original, part_in

WHOLE_FILE_BYTES = 64 * 2**20
_SAMPLE_BYTES = 2**20
_HASHED_ENDINGS = frozenset({".json", ".safetensors", ".bin", ".model", ".pth"})
# A few kilobytes that tell how a repository is laid out, and what model it holds.
_MARKERS = ("model_index.json", "config.json", "high_noise_model/config.json", "low_noise_model/config.json")
# A part's files in the original repositories (fnmatch: "*" matches "/" too).
_ORIGINAL_FILES = {
    "vae": ("Wan2.?_VAE.*",),
    "text_encoder": ("models_t5_*",),
    "tokenizer": ("google/umt5-xxl/*",),
    "image_encoder": ("models_clip_*",),
    "image_processor": ("models_clip_*",),  # it is CLIP's own, and has no file
}
_TOP_WEIGHTS = ("config.json", "diffusion_pytorch_model*.safetensors", "diffusion_pytorch_model*.json")
OTHER_PLACES = {
    "transformer": "pretrained_transformer_model_name_or_path",
    "transformer_2": "pretrained_transformer_2_model_name_or_path",
    "vae": "pretrained_vae_model_name_or_path",
    "text_encoder": "pretrained_t5_model_name_or_path",
    "tokenizer": "pretrained_tokenizer_model_name_or_path",
    "image_encoder": "pretrained_image_encoder_model_name_or_path",
    "image_processor": "pretrained_image_encoder_model_name_or_path",
}
BASE = "pretrained_model_name_or_path"
TOKENIZER_TENSOR = "spiece_model"
# How else a model is named, where nothing tells of one.
NAME_CONFIGURATION = "or a configuration that does: example=mini, env=NAME or --config FILE"


class ModelSource(Protocol):
    """The options that are read here (the model group)."""

    pretrained_model_name_or_path: str | None
    pretrained_transformer_model_name_or_path: str | None
    pretrained_transformer_subfolder: str | None
    pretrained_transformer_2_model_name_or_path: str | None
    pretrained_transformer_2_subfolder: str | None
    pretrained_vae_model_name_or_path: str | None
    pretrained_t5_model_name_or_path: str | None
    pretrained_tokenizer_model_name_or_path: str | None
    pretrained_image_encoder_model_name_or_path: str | None
    revision: str | None
    variant: str | None


@dataclass(frozen=True)
class Source:
    """A part's place: the option that names it, what it says, and the subfolder there (None: at the top).

    `chosen` says that the user named the subfolder; otherwise it is where diffusers puts the part. `is_base` says that
    it is the base model's.
    """

    part: str
    key: str
    name: str
    subfolder: str | None
    revision: str | None = None
    variant: str | None = None
    chosen: bool = False
    is_base: bool = True

    @property
    def is_local(self) -> bool:
        """A name that exists, or can be no repository's, is a path."""
        looks_like_path = self.name.startswith(("/", ".", "~")) or self.name.count("/") != 1
        return looks_like_path or Path(self.name).expanduser().exists()


def needs_image_embeds(flavour: Flavour) -> bool:
    """Whether the model takes CLIP's embeddings of the first frame: I2V of Wan 2.1 does; I2V of 2.2, TI2V do not."""
    return flavour.clip_conditioning


def source(model: ModelSource, flavour: Flavour, part: str) -> Source:
    """Where `part` is to be taken from. Raises UserError when neither the options nor the flavour name a place."""
    own = {
        "transformer": model.pretrained_transformer_model_name_or_path,
        "transformer_2": model.pretrained_transformer_2_model_name_or_path,
        "vae": model.pretrained_vae_model_name_or_path,
        "text_encoder": model.pretrained_t5_model_name_or_path,
        "tokenizer": model.pretrained_tokenizer_model_name_or_path or _tokenizer_beside(model),
        "image_encoder": model.pretrained_image_encoder_model_name_or_path,
        "image_processor": model.pretrained_image_encoder_model_name_or_path,
    }
    subfolder = {
        "transformer": model.pretrained_transformer_subfolder,
        "transformer_2": model.pretrained_transformer_2_subfolder,
    }.get(part)
    base = model.pretrained_model_name_or_path
    # Whoever names parts one by one, and no base model, is told the option of the part that is missing.
    key = OTHER_PLACES[part] if own[part] or (base is None and flavour.repository and any(own.values())) else BASE
    name = own[part] or base or flavour.repository
    if not name:
        fix = f"name the folder of a {flavour.name} model, {NAME_CONFIGURATION}"
        raise UserError(Problem("model", "is needed: this flavour has no repository", key=key, fix=fix))
    where = None if subfolder == "none" else subfolder or part
    return Source(
        part, key, name, where, model.revision, model.variant, chosen=subfolder is not None, is_base=own[part] is None
    )


def _tokenizer_beside(model: ModelSource) -> str | None:
    """The text encoder's place, where that holds a tokenizer too; of one that does not, the base model's is taken."""
    name = model.pretrained_t5_model_name_or_path
    if name is None or Path(name).suffix not in WEIGHT_ENDINGS:
        return name
    file = Path(name).expanduser()
    return name if part_in(file.parent, "tokenizer") or embeds_tokenizer(file) else None


def embeds_tokenizer(file: Path) -> bool:
    """Whether a text encoder's file holds its tokenizer, as ComfyUI's do."""
    try:
        header = read_header(file) if file.is_file() else None
    except ValueError:  # it is told where the file itself is looked at
        return False
    return header is not None and TOKENIZER_TENSOR in header.tensors


def part_path(place: Source) -> Path:
    """The folder or single file with the part, downloaded if need be. It need not be there. Raises UserError."""
    if place.is_local:
        return _part_in(_local(place), place)
    root = _markers(place)
    if not place.chosen and is_original(root):
        patterns, but = _original_patterns(root, place.part), ()
    else:
        folder = "" if place.subfolder is None else f"{place.subfolder}/"
        patterns = ("model_index.json", *(f"{folder}{name}" for name in ("*.json", "*.model", "*.safetensors")))
        but = () if place.subfolder else ("*/*",)
    return _part_in(download(place.name, patterns, key=place.key, revision=place.revision, but=but), place)


def part_config(place: Source) -> Path:
    """Where on this machine the configuration of a part on the hub lies, if it has one; without its weights."""
    assert not place.is_local, "what is here needs no download"
    return _part_in(_markers(place), place)


def _markers(place: Source) -> Path:
    names = [*_MARKERS, *([f"{place.subfolder}/config.json"] if place.subfolder else [])]
    return download(place.name, names, key=place.key, revision=place.revision)


def _original_patterns(root: Path, part: str) -> tuple[str, ...]:
    if part in _ORIGINAL_FILES:
        return _ORIGINAL_FILES[part]
    folder = {"transformer": "high_noise_model", "transformer_2": "low_noise_model"}[part]
    return (f"{folder}/*",) if (root / folder).is_dir() else _TOP_WEIGHTS


def _local(place: Source) -> Path:
    path = Path(place.name).expanduser()
    if not path.exists():
        fix = "give the path of a folder or file, or a hub repository as owner/name"
        raise UserError(Problem("model", "is not there", key=place.key, value=place.name, fix=fix))
    return path


def _part_in(root: Path, place: Source) -> Path:
    """The part below `root`; where it would lie in diffusers' layout when it is nowhere."""
    if root.is_file():
        beside = part_in(root.parent, place.part) if place.part in ("tokenizer", "image_processor") else None
        return beside or root
    if place.subfolder is None:
        return root
    if place.chosen:
        return root / place.subfolder
    found = part_in(root, place.part)
    if found is None and place.part == "image_processor" and is_original(root):
        found = part_in(root, "image_encoder")
    if found is None and not place.is_base and not (root / "model_index.json").is_file():
        return root  # a folder with this one part
    return found or root / place.subfolder


def present_experts(model: ModelSource, flavour: Flavour) -> tuple[str, ...]:
    """The experts whose transformers the model has: what is local is looked for, a repository is taken to have all.

    Where no base model is named and one expert is, the other is not fetched from the flavour's repository. Where none
    is there, those that `flavour` trains, so that `check_files` says what is missing.
    """
    places = {expert: source(model, flavour, EXPERT_SUBFOLDER[expert]) for expert in flavour.experts}
    if model.pretrained_model_name_or_path is None and not all(place.is_base for place in places.values()):
        places = {expert: place for expert, place in places.items() if not place.is_base}
    present = tuple(expert for expert, place in places.items() if _is_present(place))
    return present or flavour.trained_experts


def _is_present(place: Source) -> bool:
    return not place.is_local or (Path(place.name).expanduser().exists() and part_path(place).exists())


def fingerprint(path: Path) -> str:
    """16 hex digits that name the contents of a part's folder (or single file), for cache keys.

    Hashed are names, configurations, and weights: files up to 64 MiB whole, larger ones by size, first and last MiB.
    Where the folder lies and when it was written play no role, so a copy keeps its caches.
    """
    files = [path] if path.is_file() else sorted(file for file in path.iterdir() if file.suffix in _HASHED_ENDINGS)
    return _digest([("" if path.is_file() else file.name, file) for file in files], samples=2)


def files_fingerprint(files: Iterable[Path]) -> str:
    """16 hex digits that name files of one folder and what is in them."""
    return _digest([(file.name, file) for file in sorted(files)], samples=2)


def weights_fingerprint(path: Path) -> str:
    """16 hex digits that name the weights in a folder (or single file), whatever the files are called.

    Of files above 64 MiB their size and evenly spread MiB are hashed, the first (with the header) and the last among
    them, 64 of all files together or 2 of each: other weights of the same model differ everywhere.
    """
    files = weight_files(path)
    return _digest([("", file) for file in files], samples=max(2, WHOLE_FILE_BYTES // _SAMPLE_BYTES // len(files)))


def _digest(files: Sequence[tuple[str, Path]], *, samples: int) -> str:
    """Of names, sizes and contents; of large files `samples` MiB, evenly spread."""
    digest = hashlib.sha256()
    for name, file in files:
        # A symbolic link of the hub's cache has its target's size.
        size = file.stat().st_size
        digest.update(f"{name}\0{size}\0".encode())
        with file.open("rb") as stream:
            if size <= WHOLE_FILE_BYTES:
                for block in iter(lambda: stream.read(_SAMPLE_BYTES), b""):
                    digest.update(block)
            else:
                for number in range(samples):
                    stream.seek((size - _SAMPLE_BYTES) * number // (samples - 1))
                    digest.update(stream.read(_SAMPLE_BYTES))
    return digest.hexdigest()[:16]
