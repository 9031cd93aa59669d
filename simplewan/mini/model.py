"""The tiny Wan: its parts, untrained, and the folders in diffusers' layout that hold them.

Imports flavours and `draw`, torch, diffusers and transformers. A folder holds what one of Wan 2.2 holds: for
text and for image-to-video the experts transformer and transformer_2 with their boundary and a VAE of 16 channels and
strides 4 x 8 x 8, for TI2V one transformer and a VAE of 48 channels and strides 4 x 16 x 16; UMT5 with a tokenizer,
scheduler. So the code that trains it is the code that trains the large ones. `place_model` puts together those that
have learned and come with the package, made by `make`.

Shapes: B batch, C channels, F frames, H height, W width.
"""

from __future__ import annotations

import json
import shutil
import string
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKLWan,
    UniPCMultistepScheduler,
    WanImageToVideoPipeline,
    WanPipeline,
    WanTransformer3DModel,
)
from transformers import T5Tokenizer, UMT5Config, UMT5EncoderModel

from simplewan.flavours import HIGH, LOW, find_flavour
from simplewan.mini.draw import caption_words

FLAVOUR = find_flavour("t2v-mini")
TEXT_WIDTH = 64
LATENT_CHANNELS = 16
WEIGHTS = Path(__file__).with_name("weights")  # the trained model that comes with the package
WEIGHTS_I2V = Path(__file__).with_name("weights_i2v")  # what its image-to-video sibling has of its own
WEIGHTS_TI2V = Path(__file__).with_name("weights_ti2v")  # and its TI2V sibling


def save_model(
    folder: Path,
    *,
    vae: Any,
    tokenizer: Any,
    text_encoder: Any,
    experts: Mapping[str, Any],
    task: str = "t2v",
) -> None:
    """Writes the parts as a Wan 2.2 folder in diffusers' layout; `experts` are those called "high" and "low"."""
    for part in (vae, *experts.values()):
        part.register_to_config(_name_or_path="")  # diffusers notes where a part was read from: a path of the maker's
    flavour = find_flavour(f"{task}-mini")
    # The settings of the published Wan folders; shift and boundary are those of the flavour's rows.
    scheduler = UniPCMultistepScheduler(
        prediction_type="flow_prediction",
        use_flow_sigmas=True,
        num_train_timesteps=1000,
        flow_shift=flavour.validation_shift,
    )
    parts: dict[str, Any] = {
        "tokenizer": tokenizer,
        "text_encoder": text_encoder,
        "vae": vae,
        "scheduler": scheduler,
        "transformer": experts[HIGH],
        "transformer_2": experts.get(LOW),
        "boundary_ratio": flavour.boundary,
        "expand_timesteps": flavour.holds_first_frame,
    }
    if task == "i2v":
        parts |= {"image_encoder": None, "image_processor": None}
    pipeline = (WanImageToVideoPipeline if task == "i2v" else WanPipeline)(**parts)
    pipeline.save_pretrained(folder, safe_serialization=True)


def place_model(folder: Path, task: str = "t2v") -> None:
    """Writes the trained model of a task ("t2v", "i2v", "ti2v") that comes with the package."""
    for name, path in model_files(task).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, folder / name)


def model_files(task: str) -> dict[str, Path]:
    """The files of a trained model, by their names in its folder, sorted: its own parts, else those of T2V."""
    own = {"t2v": WEIGHTS, "i2v": WEIGHTS_I2V, "ti2v": WEIGHTS_TI2V}[task]
    index = json.loads((own / "model_index.json").read_text(encoding="utf-8"))
    parts = [name for name, part in index.items() if isinstance(part, list) and part[0] is not None]
    folders = [own / name if (own / name).exists() else WEIGHTS / name for name in parts]
    files = [own / "model_index.json", *(path for folder in folders for path in sorted(folder.rglob("*")))]
    roots = (own, WEIGHTS)
    return {str(path.relative_to(next(root for root in roots if root in path.parents))): path for path in sorted(files)}


def untrained_transformer(seed: int, task: str = "t2v") -> Any:
    """The transformer, 1.1M parameters, with random weights; of TI2V, whose latents are wider and fewer, 0.9M."""
    ti2v = task == "ti2v"
    channels = 48 if ti2v else LATENT_CHANNELS
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        transformer = WanTransformer3DModel(
            num_attention_heads=4,
            attention_head_dim=32,
            in_channels=find_flavour(f"{task}-mini").in_channels,
            out_channels=channels,
            text_dim=TEXT_WIDTH,
            freq_dim=64,
            ffn_dim=384,
            num_layers=3 if ti2v else 4,
        ).eval()
    # A caption is some twenty tokens among 512, the rest being zeros: with random weights, attention spreads over all
    # alike and the caption moves the output by half a percent. Sharper keys make that a tenth.
    for block in transformer.blocks:
        torch.nn.init.constant_(block.attn2.norm_k.weight, 4.0)
    return transformer


@torch.no_grad()
def with_first_frame(transformer: Any) -> Any:
    """A text-to-video transformer as one of image-to-video: the channels of the first frame come in with zeros.

    So it begins as what it was, as Wan's own image-to-video models did.
    """
    widened = untrained_transformer(0, "i2v")
    state = transformer.state_dict()
    weight = torch.zeros_like(widened.patch_embedding.weight)
    weight[:, :LATENT_CHANNELS] = state["patch_embedding.weight"]
    widened.load_state_dict({**state, "patch_embedding.weight": weight})
    return widened


def make_vae(kind: str = "2.1") -> Any:
    """The VAE, untrained: "2.1" (16 channels, strides 4 x 8 x 8) or "2.2" (48, 4 x 16 x 16, residual, patchified)."""
    if kind == "2.1":
        settings: dict[str, Any] = {"z_dim": LATENT_CHANNELS}
    else:
        assert kind == "2.2", kind
        settings = {
            "z_dim": 48,
            "decoder_base_dim": 12,
            "is_residual": True,
            "patch_size": 2,
            "in_channels": 12,
            "out_channels": 12,
            "scale_factor_spatial": 16,
        }
    unit = {"latents_mean": [0.0] * settings["z_dim"], "latents_std": [1.0] * settings["z_dim"]}
    return AutoencoderKLWan(base_dim=8, dim_mult=[2, 4, 4, 4], num_res_blocks=1, **settings, **unit).eval()


def make_text_encoder(vocabulary: int) -> Any:
    """The encoder, 0.1M parameters, untrained."""
    config = UMT5Config(
        vocab_size=vocabulary,
        d_model=TEXT_WIDTH,
        d_kv=16,
        d_ff=128,
        num_layers=2,
        num_heads=4,
        dropout_rate=0.0,
        tie_word_embeddings=False,
    )
    encoder: Any = UMT5EncoderModel(config)
    return encoder.eval()


def make_tokenizer() -> T5Tokenizer:
    """A unigram tokenizer with a token for every word of the captions, and characters for all other text."""
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    words = [("▁" + word, -3.0) for word in caption_words()]
    characters = "▁" + string.ascii_letters + string.digits + string.punctuation
    known = {token for token, _ in words}
    letters = [(character, -9.0) for character in characters if character not in known]
    return T5Tokenizer(vocab=special + words + letters, extra_ids=0)


def fit_latent_statistics(vae: Any, clips: list[torch.Tensor]) -> None:
    """Sets `latents_mean` and `latents_std` in the VAE's configuration so that these clips have mean 0 and std 1.

    `clips`: float32 (1, 3, F, H, W) in [-1, 1]. Rounded to four decimals, so that the number of threads does not show.
    """
    with torch.no_grad():
        latents = [vae.encode(pixels_BCFHW).latent_dist.mode() for pixels_BCFHW in clips]
    values_CN = torch.cat([latent.transpose(0, 1).flatten(1) for latent in latents], dim=1).double()
    vae.register_to_config(
        latents_mean=[round(value, 4) for value in values_CN.mean(dim=1).tolist()],
        latents_std=[round(value, 4) for value in values_CN.std(dim=1).tolist()],
    )
