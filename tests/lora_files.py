"""LoRA and LyCORIS files as other tools write them, made from a tiny transformer, for tests."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from tiny import seeded, tiny_transformer
from torch import Tensor, nn

from simplewan.models.wan.forward import velocity

LINEARS = ("attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0", "attn2.to_q", "attn2.to_k", "attn2.to_v")
LINEARS = (*LINEARS, "attn2.to_out.0", "ffn.net.0.proj", "ffn.net.2")
# Written by hand: the tests are not to ask the code that they test.
WAN = {
    "attn1.to_q": "self_attn.q",
    "attn1.to_k": "self_attn.k",
    "attn1.to_v": "self_attn.v",
    "attn1.to_out.0": "self_attn.o",
    "attn2.to_q": "cross_attn.q",
    "attn2.to_k": "cross_attn.k",
    "attn2.to_v": "cross_attn.v",
    "attn2.to_out.0": "cross_attn.o",
    "attn2.add_k_proj": "cross_attn.k_img",
    "attn2.add_v_proj": "cross_attn.v_img",
    "ffn.net.0.proj": "ffn.0",
    "ffn.net.2": "ffn.2",
}


def pairs(
    transformer: nn.Module, *, rank: int = 4, linears: tuple[str, ...] = LINEARS, seed: int = 3
) -> dict[str, Any]:
    """{diffusers' module: (down, up)} for the linears of all blocks."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for block in range(len(transformer.blocks)):
        for linear in linears:
            out, inner = transformer.get_submodule(f"blocks.{block}.{linear}").weight.shape
            down = torch.randn(rank, inner, generator=generator) / inner**0.5
            found[f"blocks.{block}.{linear}"] = (down, torch.randn(out, rank, generator=generator) / 4)
    return found


def wan_name(module: str) -> str:
    """Wan's own name of a linear in a block."""
    _, block, linear = module.split(".", 2)
    return f"blocks.{block}.{WAN[linear]}"


def spelled(found: Mapping[str, tuple[Tensor, Tensor]], style: str, *, alpha: float | None = None) -> dict[str, Tensor]:
    """The pairs in the keys of a tool; with `alpha` beside them, where the tool writes one."""
    tensors: dict[str, Tensor] = {}
    for module, (down, up) in found.items():
        wan = wan_name(module)
        name, words = {
            "universal": (f"diffusion_model.{wan}", ("lora_A.weight", "lora_B.weight")),
            "bare": (wan, ("lora_A.weight", "lora_B.weight")),
            "kohya": (f"diffusion_model.{wan}", ("lora_down.weight", "lora_up.weight")),
            "diffusers": (f"transformer.{module}", ("lora_A.weight", "lora_B.weight")),
            "musubi": (f"lora_unet_{wan.replace('.', '_')}", ("lora_down.weight", "lora_up.weight")),
            "peft": (f"base_model.model.{module}", ("lora_A.default.weight", "lora_B.default.weight")),
            "lycoris": (f"lycoris_{module.replace('.', '_')}", ("lora_down.weight", "lora_up.weight")),
        }[style]
        tensors[f"{name}.{words[0]}"], tensors[f"{name}.{words[1]}"] = down.contiguous(), up.contiguous()
        if alpha is not None:
            tensors[f"{name}.alpha"] = torch.tensor(float(alpha))
    return tensors


def predict(transformer: nn.Module) -> Tensor:
    """One pass of our forward over fixed inputs."""
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(1, 16, 2, 4, 4, generator=generator)
    text = torch.randn(1, 512, 32, generator=generator)
    with torch.no_grad():
        return velocity(transformer, latents, torch.tensor([500.0]), text)


def merged_by_hand(found: Mapping[str, tuple[Tensor, Tensor]], *, scale: float, seed: int = 0) -> nn.Module:
    """A tiny transformer with the products in its weights."""
    transformer = tiny_transformer(seed=seed)
    with torch.no_grad():
        for module, (down, up) in found.items():
            transformer.get_submodule(module).weight += scale * up @ down
    return transformer


def lycoris_tensors(
    algorithm: str, *, linear_dim: int = 4, seed: int = 5, trained: bool = True, **settings: Any
) -> tuple[nn.Module, dict[str, Tensor]]:
    """(a tiny transformer with lycoris-lora's own modules acting in it, the file that lycoris-lora would save).

    Without `trained` they are as lycoris-lora makes them.
    """
    from lycoris import LycorisNetwork, create_lycoris

    transformer = tiny_transformer()
    LycorisNetwork.apply_preset({"target_module": ["WanTransformerBlock"], "module_algo_map": {}})
    with seeded(seed):
        network = create_lycoris(transformer, 1.0, linear_dim=linear_dim, linear_alpha=2, algo=algorithm, **settings)
        network.apply_to()
        with torch.no_grad():
            for name, parameter in network.named_parameters() if trained else ():
                if "dora_scale" in name:
                    parameter.mul_(1 + 0.1 * torch.rand_like(parameter))
                else:
                    parameter.add_(0.1 * torch.randn_like(parameter))
    return transformer.eval(), {key: value.detach().clone() for key, value in network.state_dict().items()}
