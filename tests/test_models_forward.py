"""Our forward against diffusers' own, on tiny models of the real classes.

Tolerances: float32 1e-5 on outputs of order 2 (measured 1e-6); bfloat16 0.05, three roundings of it. Merged padding
keeps 1e-5 in float32.
"""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace

import pytest
import torch
from diffusers import WanTransformer3DModel
from tiny import save_tiny_model, seeded, tiny_transformer
from torch.utils._python_dispatch import TorchDispatchMode

from simplewan.models.adapters import add_lora, train_fully
from simplewan.models.wan.forward import WanForward, embed, velocity
from simplewan.models.wan.linear import linear
from simplewan.models.wan.padding import padding_bias
from simplewan.models.wan.rotary import Rotary

FLOAT32, BFLOAT16 = 1e-5, 0.05
LENGTHS = (20, 13)


def inputs(transformer, batch: int = 2):
    config = transformer.config
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(batch, config.in_channels, 3, 8, 6, generator=generator)
    text = torch.randn(batch, 512, config.text_dim, generator=generator)
    for row, length in zip(text, LENGTHS, strict=False):
        row[length:] = 0
    return latents, torch.tensor([937.5, 12.25])[:batch], text


def largest_difference(a: torch.Tensor, b: torch.Tensor) -> float:
    assert a.shape == b.shape
    assert a.dtype == b.dtype
    return (a.float() - b.float()).abs().max().item()


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("sizes", [{}, {"in_channels": 36}, {"in_channels": 36, "image_dim": 24}])
@torch.no_grad()
def test_it_equals_diffusers_in_float32(sizes: dict[str, int], batch: int) -> None:
    transformer = tiny_transformer(dim=48, **sizes)
    arguments = inputs(transformer, batch)
    image = torch.randn(batch, 257, 24) if "image_dim" in sizes else None
    expected = transformer(*arguments, encoder_hidden_states_image=image).sample
    result = velocity(transformer, *arguments, encoder_hidden_states_image=image)
    assert largest_difference(result, expected) < FLOAT32
    merged = velocity(transformer, *arguments, encoder_hidden_states_image=image, text_lengths=LENGTHS[:batch])
    assert largest_difference(merged, expected) < FLOAT32


@torch.no_grad()
def test_it_equals_diffusers_in_bfloat16(tmp_path) -> None:
    folder = save_tiny_model(tmp_path, dim=48)
    transformer = WanTransformer3DModel.from_pretrained(folder / "transformer", torch_dtype=torch.bfloat16)
    latents, timestep, text = inputs(transformer)
    expected = transformer(latents.bfloat16(), timestep, text.bfloat16()).sample
    assert largest_difference(velocity(transformer, latents, timestep, text), expected) < BFLOAT16
    merged = velocity(transformer, latents, timestep, text, text_lengths=LENGTHS)
    assert largest_difference(merged, expected) < BFLOAT16


LORA = SimpleNamespace(lora_rank=4, lora_alpha=8, lora_dropout=0.0, lora_targets=("all",), lora_init_type="default")


def lora_model(dropout: float = 0.0, base=None, **sizes):
    options = SimpleNamespace(**(vars(LORA) | {"lora_dropout": dropout}))
    transformer = base if base is not None else tiny_transformer(dim=48, **sizes)
    add_lora(transformer, options, seed=3)
    with seeded(5):
        for name, parameter in transformer.named_parameters():
            if "lora_B" in name:
                parameter.data.normal_(std=0.05)
    return transformer


def loss_and_gradients(transformer, predict, seed: int = 7):
    transformer.zero_grad()
    with seeded(seed):
        loss = predict().float().square().mean()
        loss.backward()
    return loss.detach(), {n: p.grad.clone() for n, p in transformer.named_parameters() if p.grad is not None}


def assert_same_step(transformer, ours, theirs, tolerance: float = FLOAT32) -> None:
    loss, gradients = loss_and_gradients(transformer, ours)
    expected_loss, expected = loss_and_gradients(transformer, theirs)
    assert loss.item() == pytest.approx(expected_loss.item(), rel=tolerance)
    assert gradients.keys() == expected.keys()
    assert gradients
    for name, gradient in expected.items():
        assert largest_difference(gradients[name], gradient) < tolerance * max(1, gradient.abs().max().item()), name


@pytest.mark.parametrize("image", [False, True])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_losses_and_gradients_of_an_adapter_equal_diffusers_and_peft(dropout: float, image: bool) -> None:
    sizes = {"in_channels": 36, "image_dim": 24} if image else {}
    transformer = lora_model(dropout, **sizes).train()
    arguments = inputs(transformer)
    tokens = torch.randn(2, 257, 24) if image else None
    assert_same_step(
        transformer,
        lambda: velocity(transformer, *arguments, encoder_hidden_states_image=tokens),
        lambda: transformer(*arguments, encoder_hidden_states_image=tokens).sample,
    )


def test_merged_padding_changes_no_gradient() -> None:
    transformer = lora_model()
    arguments = inputs(transformer)
    assert_same_step(
        transformer,
        lambda: velocity(transformer, *arguments, text_lengths=LENGTHS),
        lambda: transformer(*arguments).sample,
    )


def test_gradients_of_all_weights_equal_diffusers() -> None:
    transformer = tiny_transformer(dim=48).requires_grad_(True)
    arguments = inputs(transformer)
    assert_same_step(
        transformer, lambda: velocity(transformer, *arguments), lambda: transformer(*arguments).sample, 2e-5
    )


def test_an_adapter_over_a_bfloat16_base(tmp_path) -> None:
    folder = save_tiny_model(tmp_path, dim=48)
    base = WanTransformer3DModel.from_pretrained(folder / "transformer", torch_dtype=torch.bfloat16)
    transformer = lora_model(base=base)
    latents, timestep, text = inputs(transformer)
    loss, gradients = loss_and_gradients(transformer, lambda: velocity(transformer, latents, timestep, text))
    expected_loss, expected = loss_and_gradients(
        transformer, lambda: transformer(latents.bfloat16(), timestep, text.bfloat16()).sample
    )
    assert loss.item() == pytest.approx(expected_loss.item(), rel=0.01)
    for name, gradient in expected.items():
        assert gradients[name].dtype == torch.float32
        cosine = torch.nn.functional.cosine_similarity(gradients[name].flatten(), gradient.flatten(), dim=0)
        assert cosine > 0.99, name


@pytest.mark.parametrize("base", [torch.float32, torch.bfloat16])
def test_under_autocast_it_follows_diffusers(tmp_path, base: torch.dtype) -> None:
    folder = save_tiny_model(tmp_path, dim=48)
    transformer = WanTransformer3DModel.from_pretrained(folder / "transformer", torch_dtype=base)
    transformer = lora_model(base=transformer)
    latents, timestep, text = inputs(transformer)
    with torch.autocast("cpu", torch.bfloat16):
        loss, gradients = loss_and_gradients(transformer, lambda: velocity(transformer, latents, timestep, text))
        expected_loss, expected = loss_and_gradients(
            transformer, lambda: transformer(latents.to(base), timestep, text.to(base)).sample
        )
    assert loss.item() == pytest.approx(expected_loss.item(), rel=0.01)
    for name, gradient in expected.items():
        assert gradients[name].dtype == torch.float32
        cosine = torch.nn.functional.cosine_similarity(gradients[name].flatten(), gradient.flatten(), dim=0)
        assert cosine > 0.99, name


def test_a_full_fine_tune_under_autocast() -> None:
    transformer = tiny_transformer(dim=48)
    assert train_fully(transformer)
    arguments = inputs(transformer)
    with torch.autocast("cpu", torch.bfloat16):
        loss, gradients = loss_and_gradients(transformer, lambda: velocity(transformer, *arguments))
        expected_loss, expected = loss_and_gradients(transformer, lambda: transformer(*arguments).sample)
    assert loss.item() == pytest.approx(expected_loss.item(), rel=0.01)
    assert gradients.keys() == expected.keys()


@torch.no_grad()
def test_timesteps_are_not_rounded() -> None:
    transformer = tiny_transformer().to(torch.bfloat16)
    latents, _, text = inputs(transformer, 1)
    outputs = [velocity(transformer, latents, torch.tensor([t]), text) for t in (937.5, 936.0, 938.0)]
    assert not torch.equal(outputs[0], outputs[1])
    assert not torch.equal(outputs[0], outputs[2])


@torch.no_grad()
def test_modulation_rows_equal_a_timestep_per_token() -> None:
    transformer = tiny_transformer(dim=48)
    latents, _, text = inputs(transformer)
    per_frame = torch.tensor([[0.0, 500.0, 500.0], [0.0, 31.25, 31.25]])
    expected = transformer(latents, per_frame.repeat_interleave(12, dim=1), text).sample
    assert largest_difference(velocity(transformer, latents, per_frame, text), expected) < FLOAT32
    rows = (torch.arange(36) >= 12).long()
    for token_rows in (rows, rows.expand(2, -1)):
        result = velocity(transformer, latents, per_frame[:, :2], text, token_rows=token_rows)
        assert largest_difference(result, expected) < FLOAT32


@pytest.mark.parametrize("recompute", ["full", "keep_attention"])
def test_recomputation_changes_no_bit(recompute: str) -> None:
    transformer = lora_model(0.2).train()
    arguments = inputs(transformer)
    loss, gradients = loss_and_gradients(transformer, lambda: velocity(transformer, *arguments))
    again, recomputed = loss_and_gradients(transformer, lambda: velocity(transformer, *arguments, recompute=recompute))
    assert torch.equal(loss, again)
    assert all(torch.equal(gradients[name], recomputed[name]) for name in gradients)


class CountAttention(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.calls += "_scaled_dot_product" in str(function) and "backward" not in str(function)
        return function(*args, **(kwargs or {}))


def test_recomputation_saves_memory_and_spares_attention_when_asked() -> None:
    transformer = lora_model()
    arguments = inputs(transformer)
    saved, calls = {}, {}
    for recompute in ("none", "keep_attention", "full"):
        kept = 0

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            nonlocal kept
            kept += tensor.numel()
            return tensor

        with CountAttention() as counter:
            with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
                result = velocity(transformer, *arguments, recompute=recompute)
            saved[recompute] = kept
            result.sum().backward()
        calls[recompute] = counter.calls
    assert calls == {"none": 4, "keep_attention": 4, "full": 8}
    assert saved["full"] < 0.3 * saved["none"]


@torch.no_grad()
def test_skipped_layers_and_taps() -> None:
    transformer = tiny_transformer(dim=48, layers=3)
    arguments = inputs(transformer)
    expected: dict[int, torch.Tensor] = {}
    for index, block in enumerate(transformer.blocks):
        block.register_forward_hook(lambda _module, _args, out, index=index: expected.__setitem__(index, out))
    transformer(*arguments)
    taps: dict[int, torch.Tensor | None] = {0: None, 2: None}
    velocity(transformer, *arguments, taps=taps)
    assert all(largest_difference(tap, expected[layer]) < FLOAT32 for layer, tap in taps.items())
    skipped = velocity(transformer, *arguments, skip_layers=(1,))
    del transformer.blocks[1]
    assert largest_difference(skipped, transformer(*arguments).sample) < FLOAT32


@torch.no_grad()
def test_the_forward_object_keeps_tables_per_shape() -> None:
    transformer = tiny_transformer(dim=48)
    forward = WanForward(transformer)
    for height in (8, 4, 8):
        latents, timestep, text = inputs(transformer)
        latents = latents[:, :, :, :height]
        expected = transformer(latents, timestep, text).sample
        assert largest_difference(forward(latents, timestep, text), expected) < FLOAT32


@pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-4)])
def test_padding_counts_as_often_as_it_stands_there(dtype: torch.dtype, error: float) -> None:
    for count in (1, 2, 7, 100, 400, 511):
        biases = padding_bias(count, copies=3 if dtype == torch.bfloat16 else 1, dtype=dtype)
        assert torch.tensor(biases).exp().sum().item() == pytest.approx(count, rel=error)
        assert torch.equal(torch.tensor(biases).to(dtype).double(), torch.tensor(biases, dtype=torch.float64))


@pytest.mark.parametrize("length", [2, 60, 150])
@torch.no_grad()
def test_padding_is_counted_in_the_dtype_of_autocast(length: int) -> None:
    transformer = tiny_transformer()  # float32 masters, as in a full fine-tune
    latents, timestep, text = inputs(transformer, 1)
    how = {"token_rows": None, "text_lengths": (length,), "rotary": Rotary(transformer.rope)}
    with torch.autocast("cpu", torch.bfloat16):
        _, _, shared = embed(transformer, latents, timestep, text, None, **how)
    assert shared.text_bias.dtype == torch.bfloat16
    assert shared.text_bias.double().exp().sum().item() == pytest.approx(512, abs=0.06)


class CountOperations(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.counts[function.overloadpacket.__name__] += 1
        return function(*args, **(kwargs or {}))


def test_a_lora_step_passes_over_the_tokens_half_as_often_as_diffusers() -> None:
    transformer = lora_model()
    arguments = inputs(transformer, 1)
    totals = {}
    for name, predict in (("ours", velocity), ("diffusers", lambda model, *rest: model(*rest).sample)):
        with CountOperations() as counter:
            predict(transformer, *arguments).sum().backward()
        totals[name] = sum(counter.counts[key] for key in ("add", "mul", "div", "pow", "sub", "mm"))
    assert totals["ours"] < 0.5 * totals["diffusers"], totals


@pytest.mark.parametrize("training", [False, True])
def test_several_active_adapters_add_up_as_in_peft(training: bool) -> None:
    transformer = lora_model()
    add_lora(transformer, LORA, seed=4, name="second")
    with seeded(6), torch.no_grad():
        for name, parameter in transformer.named_parameters():
            if "lora_B.second" in name:
                parameter.normal_(std=0.05)
    transformer.set_adapters(["default", "second"])
    transformer.train(training)
    arguments = inputs(transformer)
    assert_same_step(transformer, lambda: velocity(transformer, *arguments), lambda: transformer(*arguments).sample)


def test_a_merged_adapter_counts_once() -> None:
    transformer = lora_model()
    arguments = inputs(transformer)
    with torch.no_grad():
        expected = transformer(*arguments).sample
        transformer.fuse_lora()
        assert largest_difference(velocity(transformer, *arguments), expected) < FLOAT32


def test_a_lora_linear_under_autocast_computes_in_its_dtype() -> None:
    module = lora_model().blocks[0].attn1.to_q
    tokens = torch.randn(1, 7, 48)
    with torch.autocast("cpu", torch.bfloat16):
        assert largest_difference(linear(module, tokens), module(tokens)) == 0
