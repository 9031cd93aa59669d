"""What a file or folder of weights is: from names, configurations and headers, before anything is loaded.

Imports headers; standard library alone. Options infer the flavour from what is said here, models check and build by it.
What a file does not tell is None: nothing is guessed here. Two namings are known: diffusers' and the original one of
Wan's own repositories, which ComfyUI's files share.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from simplewan.headers import WEIGHT_ENDINGS, Header, Info, read_header, read_headers, weight_files

TRANSFORMER, VAE, TEXT_ENCODER, IMAGE_ENCODER, LORA = "transformer", "vae", "text_encoder", "image_encoder", "lora"
OPTIMIZER = "optimizer"
# What a kind is called, and where it belongs.
KINDS = {
    TRANSFORMER: ("a Wan transformer", "it belongs to pretrained_transformer_model_name_or_path"),
    VAE: ("a Wan VAE", "it belongs to pretrained_vae_model_name_or_path"),
    TEXT_ENCODER: ("a UMT5 text encoder", "it belongs to pretrained_t5_model_name_or_path"),
    IMAGE_ENCODER: ("a CLIP image encoder", "it belongs to pretrained_image_encoder_model_name_or_path"),
    LORA: ("a LoRA", "training starts from it with init_lora, `sample` puts it on with adapter"),
    OPTIMIZER: ("the state of an optimizer", "it belongs to a checkpoint; a run goes on with resume_from_checkpoint"),
}
DIFFUSERS, ORIGINAL = "diffusers", "original"
# What tools put before the names of a transformer's tensors; the longest first.
PREFIXES = ("model.diffusion_model.", "diffusion_model.")
VAE_PREFIXES = ("", "first_stage_model.", "vae.", "model.")
# A head of Wan is 128 wide, one of CLIP's ViT-H 80: no shape tells how many there are.
HEAD_WIDTH, CLIP_HEAD_WIDTH = 128, 80
# Tensors that only models have which are not trained here, by the model's word (flavours.UNSUPPORTED).
_MARKS = {
    "vace": ("vace_blocks.", "vace_patch_embedding."),
    "animate": ("motion_encoder.", "face_adapter.", "pose_patch_embedding."),
    "s2v": ("casual_audio_encoder.", "audio_injector.", "frame_packer."),
    "flf2v": ("img_emb.emb_pos", "condition_embedder.image_embedder.pos_embed"),
    "fun-control": ("ref_conv.", "control_adapter."),
}
_CLASSES = {"WanVACETransformer3DModel": "vace", "WanAnimateTransformer3DModel": "animate"}
# Folders and files of the parts in the original repositories; "." is the folder itself.
_ORIGINAL_PARTS: Mapping[str, tuple[str, ...]] = {
    "transformer": ("high_noise_model", "."),
    "transformer_2": ("low_noise_model",),
    "vae": ("Wan2.*_VAE.*", "*[vV][aA][eE]*"),
    "text_encoder": ("models_t5*", "*umt5*"),
    "tokenizer": ("google/umt5-xxl", "umt5-xxl"),
    "image_encoder": ("models_clip*", "clip_vision*"),
}
_NOISE = re.compile(r"(?<![a-z])(high|low)[^a-z]?noise")
_CAMEL_NOISE = re.compile(r"(High|Low)[^A-Za-z]?Noise")
# HIGH or LOW as a word of its own, which does not say how good or how large something is.
_WORD = re.compile(
    r"(?<![a-z])(high|low)(?![a-z])"
    r"(?![^a-z0-9]*(?:quality|q|res|resolution|details?|detailed|def|definition|fidelity|v?ram|mem|memory|poly|light"
    r"|key|angle|contrast|motion|speed|precision|dynamic|saturation|fps|cfg|end)(?![a-z]))"
)
# The version in a name: said of Wan, by the size that only 2.2 has, or as a number, which may be that of a merge.
_WAN_VERSION = re.compile(r"wan[^a-z0-9]?v?2[._-]?([12])(?![0-9])")
_VERSION = re.compile(r"(?<![0-9.])2[._]([12])(?![0-9])")


@dataclass(frozen=True)
class Found:
    """What was recognised; a field is None when the file does not tell (and `image_dim` 0 when there is no CLIP).

    `task` is t2v, i2v or ti2v, or the word of a model that is not trained here. `sizes` are what a transformer is
    built by, in diffusers' words. `misfit` says which tensor of the time embedding has a shape that Wan's has not.
    `quantised` is "fp8", "fp8 scaled", or the number format of what is not read here.
    """

    kind: str
    naming: str
    task: str | None = None
    width: int | None = None
    blocks: int | None = None
    in_channels: int | None = None
    image_dim: int | None = None
    latent_channels: int | None = None
    expert: str | None = None
    quantised: str | None = None
    misfit: str | None = None
    sizes: Mapping[str, int] = field(default_factory=dict)

    @property
    def size(self) -> tuple[int, int] | None:
        """(width, blocks) of a transformer, where both are known."""
        return None if self.width is None or self.blocks is None else (self.width, self.blocks)


def recognise(path: Path) -> Found | None:
    """What the weights in a file, or in a folder of one part, are; None when that cannot be told.

    Raises ValueError for a damaged header or configuration, OSError for a file that is named and not there.
    """
    if path.is_dir():
        config = read_config(path)
        found = of_config(config)
        files = weight_files(path)
        if found is None or found.naming == ORIGINAL:
            header = read_headers(files)
            found = _merged(found, None if header is None else of_header(header))
        elif found.kind == TRANSFORMER and files and files[0].is_file():
            header = read_header(files[0])
            found = replace(found, quantised=None if header is None else _quantised(header.tensors))
    else:
        header = read_header(path)
        found = None if header is None else of_header(header)
    if found is None or found.kind != TRANSFORMER or found.expert is not None:
        return found
    if path.is_dir():
        return replace(found, expert=_told_by_folder(path))
    named = told_expert(path.stem)
    # Whatever folder a file of 2.1 lies in, it is no expert.
    by_folder = None if told_version(path.stem) == "2.1" else _told_by_folder(path.parent)
    return replace(found, expert=named or by_folder)


def _told_by_folder(folder: Path) -> str | None:
    """The expert that a folder's name speaks of; in diffusers' layout only a model of two has a transformer_2."""
    if folder.name == "transformer_2":
        return "low"
    if folder.name == "transformer" and folder.with_name("transformer_2").is_dir():
        return "high"
    return told_expert(folder.name)


def _merged(config: Found | None, header: Found | None) -> Found | None:
    """What the tensors say, and of what they do not tell the configuration."""
    if config is None or header is None:
        return header or config
    return replace(header, task=header.task if config.task in (None, "t2v", "i2v", "ti2v") else config.task)


def read_config(folder: Path, name: str = "config.json") -> dict[str, Any]:
    """A folder's configuration; {} when there is none. Raises ValueError when it is no JSON."""
    file = folder / name
    if not file.is_file():
        return {}
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"has a {name} that is no JSON ({error})") from error
    return content if isinstance(content, dict) else {}


def of_config(config: Mapping[str, Any]) -> Found | None:
    """What a config.json of diffusers, of transformers or of an original repository describes; None if unknown."""
    name, kind = str(config.get("_class_name", "")), str(config.get("model_type", ""))
    if "dim" in config and "num_layers" in config and "in_dim" in config:
        task = {"t2v": None, "i2v": None, "ti2v": None}.get(kind, kind or None)
        sizes = {"out_channels": config["out_dim"]} if "out_dim" in config else {}
        return _transformer(
            ORIGINAL, config["dim"], config["num_layers"], config["in_dim"], image_dim=None, task=task, sizes=sizes
        )
    if name.startswith("Wan") and "Transformer" in name:
        width = config.get("num_attention_heads", 40) * config.get("attention_head_dim", 128)
        task = _CLASSES.get(name) or ("flf2v" if config.get("pos_embed_seq_len") else None)
        clip = config.get("image_dim") or 0
        blocks, channels = config.get("num_layers", 40), config.get("in_channels", 16)
        sizes = {"out_channels": config["out_channels"]} if config.get("out_channels") else {}
        return _transformer(DIFFUSERS, width, blocks, channels, image_dim=clip, task=task, sizes=sizes)
    if name == "AutoencoderKLWan":
        return Found(VAE, DIFFUSERS, latent_channels=config.get("z_dim", 16))
    if kind in ("umt5", "clip_vision_model"):
        clip = config.get("hidden_size") if kind == "clip_vision_model" else None
        return Found(TEXT_ENCODER if kind == "umt5" else IMAGE_ENCODER, DIFFUSERS, width=clip or config.get("d_model"))
    return None


def _transformer(
    naming: str,
    width: int,
    blocks: int,
    channels: int,
    *,
    image_dim: int | None,
    task: str | None,
    sizes: Mapping[str, int],
    **others: Any,
) -> Found:
    """A transformer; its inputs tell the task, if nothing else does. TI2V returns as many channels as it takes."""
    ti2v = width < 5120 and sizes.get("out_channels", 48) == 48
    by_channels = {16: "t2v", 36: "i2v", 48: "ti2v" if ti2v else "fun-control"}.get(channels)
    return Found(
        TRANSFORMER, naming, task=task or by_channels, width=width, blocks=blocks, in_channels=channels,
        image_dim=image_dim, sizes=sizes, **others,
    )  # fmt: skip


def inside(tensors: Mapping[str, Any]) -> dict[str, str]:
    """The names of a transformer's tensors without what tools put before them: bare name -> name in the file.

    Where a prefix is used, what has none (the VAE of an all-in-one file) is left out.
    """
    for prefix in PREFIXES:
        if any(name.startswith(prefix) for name in tensors):
            return {name.removeprefix(prefix): name for name in tensors if name.startswith(prefix)}
    return {name: name for name in tensors}


def inside_vae(tensors: Mapping[str, Any]) -> dict[str, str]:
    """The same for a VAE, in either naming."""
    for prefix in VAE_PREFIXES:
        if any(f"{prefix}{conv}" in tensors for conv in ("decoder.conv1.weight", "decoder.conv_in.weight")):
            return {name.removeprefix(prefix): name for name in tensors if name.startswith(prefix)}
    return {name: name for name in tensors}


def of_header(header: Header) -> Found | None:
    """What a file is by the names and shapes of its tensors; None when they are nobody's that is known here.

    Raises ValueError for a transformer whose patches have no shape of patches.
    """
    names = inside(header.tensors)
    bare = Header({name: header.tensors[whole] for name, whole in names.items()}, header.metadata)
    if any(_is_lora(name) for name in header.tensors):
        return Found(LORA, ORIGINAL)
    if any(name.endswith((".exp_avg", ".exp_avg_sq", ".momentum_buffer")) for name in header.tensors):
        return Found(OPTIMIZER, ORIGINAL)
    quantised = _quantised(header.tensors)
    if "patch_embedding.weight" in bare.tensors and any(name.startswith("blocks.") for name in bare.tensors):
        return replace(_of_transformer(bare), quantised=quantised)
    vae = Header({name: header.tensors[whole] for name, whole in inside_vae(header.tensors).items()})
    for conv, latents, naming in (
        ("decoder.conv1.weight", "conv2.weight", ORIGINAL),
        ("decoder.conv_in.weight", "post_quant_conv.weight", DIFFUSERS),
    ):
        if len(vae.shape(conv)) == 5 and vae.shape(latents):
            return Found(VAE, naming, latent_channels=vae.shape(latents)[0], quantised=quantised)
    for name, naming in (("token_embedding.weight", ORIGINAL), ("shared.weight", DIFFUSERS)):
        if len(bare.shape(name)) == 2 and _is_umt5(bare):
            return Found(TEXT_ENCODER, naming, width=bare.shape(name)[1], quantised=quantised)
    for name in ("visual.patch_embedding.weight", *(f"{p}embeddings.patch_embedding.weight" for p in CLIP_PREFIXES)):
        if bare.shape(name):
            naming = ORIGINAL if name.startswith("visual.") else DIFFUSERS
            return Found(IMAGE_ENCODER, naming, width=bare.shape(name)[0], quantised=quantised)
    return None


CLIP_PREFIXES = ("vision_model.", "")


def _is_lora(name: str) -> bool:
    return any(word in name for word in (".lora_", "lora_unet_", ".hada_", ".lokr_"))


def _is_umt5(header: Header) -> bool:
    """UMT5 has a table of positions in every block; the T5 of other models only in the first."""
    return bool(
        header.shape("blocks.1.pos_embedding.embedding.weight")
        or header.shape("encoder.block.1.layer.0.SelfAttention.relative_attention_bias.weight")
    )


def _quantised(tensors: Mapping[str, Info]) -> str | None:
    weights = {info.dtype for name, info in tensors.items() if name.endswith(".weight")}
    if odd := sorted(weights - {"F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2"}):
        return odd[0]
    if not any(dtype.startswith("F8") for dtype in weights):
        return None
    scaled = any(name.endswith((".scale_weight", ".weight_scale", "scaled_fp8")) for name in tensors)
    return "fp8 scaled" if scaled else "fp8"


def _of_transformer(header: Header) -> Found:
    def shape(original: str, diffusers: str) -> tuple[int, ...]:
        return header.shape(original) or header.shape(diffusers)

    patch = header.shape("patch_embedding.weight")
    if len(patch) != 5 or 0 in patch:
        raise ValueError(f"patch_embedding.weight has shape {list(patch)}, expected 5 dimensions")
    clip = shape("img_emb.proj.0.weight", "condition_embedder.image_embedder.norm1.weight")
    time = shape("time_embedding.0.weight", "condition_embedder.time_embedder.linear_1.weight")
    text = shape("text_embedding.0.weight", "condition_embedder.text_embedder.linear_1.weight")
    ffn = shape("blocks.0.ffn.0.weight", "blocks.0.ffn.net.0.proj.weight")
    head = shape("head.head.weight", "proj_out.weight")
    sizes: dict[str, int] = {}
    for name, value in (("freq_dim", time[1:]), ("text_dim", text[1:]), ("ffn_dim", ffn[:1])):
        if value:
            sizes[name] = value[0]
    if head:
        sizes["out_channels"] = head[0] // (patch[2] * patch[3] * patch[4])
    marks = (word for word, starts in _MARKS.items() if any(name.startswith(starts) for name in header.tensors))
    blocks = {name.split(".")[1] for name in header.tensors if name.startswith("blocks.")}
    return _transformer(
        DIFFUSERS if "blocks.0.attn1.to_q.weight" in header.tensors else ORIGINAL,
        patch[0],
        len(blocks),
        patch[1],
        image_dim=clip[0] if clip else 0,
        task=next(marks, None),
        sizes=sizes,
        misfit=_misfit(header, patch[0]),
        expert=told_expert(header.metadata.get("expert", "")),
    )


def _misfit(header: Header, width: int) -> str | None:
    """Which tensor of the time embedding has a shape that the time embedding of Wan (2.1 and 2.2 alike) has not."""
    expected = {
        "time_embedding.2.weight": (width, width),
        "condition_embedder.time_embedder.linear_2.weight": (width, width),
        "time_projection.1.weight": (6 * width, width),
        "condition_embedder.time_proj.weight": (6 * width, width),
        "blocks.0.modulation": (1, 6, width),
        "blocks.0.scale_shift_table": (1, 6, width),
    }
    for name, shape in expected.items():
        found = header.shape(name)
        if found and found != shape:
            return f"{name} has shape {list(found)}, expected {list(shape)}"
    return None


def told_by(metadata: Mapping[str, str], file: Path) -> str | None:
    """The expert that a LoRA's metadata, else the file's name, speak of."""
    return told_expert(metadata.get("expert", "")) or told_expert(file.stem)


def told_expert(text: str) -> str | None:
    """The expert that a name or metadata speak of, as fox_high_noise, FoxLowNoise-v2 or Wan2_2-T2V-A14B-HIGH do."""
    told = {*_NOISE.findall(text.lower()), *(word.lower() for word in _CAMEL_NOISE.findall(text))}
    if not told and told_version(text) == "2.2":
        told = set(_WORD.findall(text.lower()))
    return told.pop() if len(told) == 1 else None


def told_version(*texts: str) -> str | None:
    """The version of Wan, "2.1" or "2.2", that the first of these names tells which tells one.

    What is said of Wan itself counts before other numbers, and among those 2.1: v2.2 may be the version of a merge.
    """
    for text in map(str.lower, texts):
        if said := _WAN_VERSION.search(text):
            return f"2.{said[1]}"
        if "a14b" in text:
            return "2.2"
        if numbers := _VERSION.findall(text):
            return f"2.{min(numbers)}"
    return None


def part_in(folder: Path, part: str) -> Path | None:
    """Where a part of a whole model lies: in diffusers' layout, or in that of the original repositories; or None."""
    if (folder / part).is_dir():
        return folder / part
    for pattern in _ORIGINAL_PARTS.get(part, ()):
        if pattern == ".":
            if holds_transformer(folder):
                return folder
        elif "*" not in pattern:
            if (folder / pattern).is_dir():
                return folder / pattern
        elif files := sorted(file for file in folder.glob(pattern) if file.suffix in WEIGHT_ENDINGS):
            return files[0]
    return None


def holds_transformer(folder: Path) -> bool:
    """Whether the weights of a transformer lie at the top of a folder."""
    found = of_config(read_config(folder))
    if found is not None:
        return found.kind == TRANSFORMER
    return any(folder.glob("diffusion_pytorch_model*.safetensors"))


def is_original(folder: Path) -> bool:
    """Whether a folder is laid out as the original repositories are."""
    places = (folder, folder / "high_noise_model", folder / "low_noise_model")
    found = [of_config(read_config(place)) for place in places]
    return any(each is not None and each.naming == ORIGINAL for each in found)
