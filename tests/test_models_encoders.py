"""What files of the text encoder and of CLIP may hold beside the encoder, and what is refused in them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from originals import CLIP_WIDTH, fp8_scaled, original_clip
from safetensors.torch import save_file
from tiny import Model, save_tiny_model, tiny_clip, tiny_text

from simplewan.errors import UserError
from simplewan.flavours import find_flavour
from simplewan.models.wan.loading import load_image_encoder, load_text_encoder

MINI, I2V_21 = find_flavour("t2v-mini-high"), find_flavour("i2v-14b-2.1")


@pytest.mark.parametrize("folder_too", [False, True])
def test_scales_that_are_not_known_are_refused(folder_too: bool, tmp_path: Path) -> None:
    """Read without them, the weights would be far off, and nothing would tell."""
    scaled = fp8_scaled(tiny_text()[1].state_dict(), marker=False, suffix="weight_scale_inv")
    if folder_too:
        save_tiny_model(tmp_path)
        scaled = {name: value.float() for name, value in scaled.items() if not name.endswith("scale_input")}
        model = Model(pretrained_t5_model_name_or_path=str(tmp_path))
        file = next((tmp_path / "text_encoder").glob("*.safetensors"))
    else:
        file = tmp_path / "umt5_xxl_fp8.safetensors"
        tiny_text()[0].save_pretrained(tmp_path / "google/umt5-xxl")
        model = Model(pretrained_t5_model_name_or_path=str(file))
    save_file({name: value.clone() for name, value in scaled.items()}, file, metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"tensors that it has no place for, .*weight_scale_inv"):
        load_text_encoder(model, MINI, torch.float32)


def test_a_whole_umt5_or_clip_is_read_for_its_encoder(tmp_path: Path) -> None:
    _, encoder = tiny_text()
    tiny_text()[0].save_pretrained(tmp_path / "google/umt5-xxl")
    state = {name: value.clone() for name, value in encoder.state_dict().items()}
    others = {name: torch.zeros(2) for name in ("decoder.final_layer_norm.weight", "lm_head.weight")}
    save_file(state | others, tmp_path / "umt5.safetensors")
    model = Model(pretrained_t5_model_name_or_path=str(tmp_path / "umt5.safetensors"))
    assert torch.equal(load_text_encoder(model, MINI, torch.float32)[1].shared.weight, encoder.shared.weight)
    _, clip = tiny_clip(dim=CLIP_WIDTH)
    state = {f"vision_model.{name.removeprefix('vision_model.')}": value for name, value in clip.state_dict().items()}
    others = {name: torch.zeros(2) for name in ("text_model.final_layer_norm.weight", "text_projection.weight")}
    file = tmp_path / "clip.safetensors"
    model = Model(pretrained_image_encoder_model_name_or_path=str(file))
    save_file(state | others, file)
    load_image_encoder(model, I2V_21, torch.float32)
    for odd in (
        state | {"vision_model.extra.weight": torch.zeros(2)},
        original_clip(clip) | {"visual.extra": torch.zeros(2)},
    ):
        save_file(odd, file)
        with pytest.raises(UserError, match=r"1 tensors that it has no place for, .*extra"):
            load_image_encoder(model, I2V_21, torch.float32)
