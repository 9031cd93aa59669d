"""Collating and the loader: padding, one copy, order, the state of what was consumed, errors, an end."""

from __future__ import annotations

import threading
import time
from itertools import islice

import pytest
import torch

from simplewan.batches.batch import collate
from simplewan.batches.loader import Loader
from simplewan.batches.sampler import Sampler
from simplewan.batches.sizes import SampleRef
from simplewan.caches.store import Store

SAMPLES = [SampleRef(f"s{number:02d}", "b" if number % 2 else "a") for number in range(12)]


def sampler() -> Sampler:
    return Sampler(SAMPLES, 2, 0, "high")


def batch_of(spec):
    value = torch.tensor([float(name[1:]) for name in spec.names])
    return collate(
        [torch.full((2, 1, 2, 2), float(v)) for v in value],
        [torch.ones(3, 4)] * len(spec.names),
        names=spec.names,
        text_tokens=5,
    )


def test_collate_pads_with_zeros_and_keeps_values_and_dtypes():
    latents = [torch.randn(4, 3, 2, 2).to(torch.bfloat16) for _ in range(3)]
    embeds = [torch.randn(length, 6, dtype=torch.float32) for length in (1, 5, 8)]
    batch = collate(latents, embeds, names=["a", "b", "c"], text_tokens=8, caption_dropped=[False, True, False])
    assert torch.equal(batch.latents_BCFHW, torch.stack(latents))
    assert batch.latents_BCFHW.dtype == torch.bfloat16 and batch.prompt_embeds_BLD.dtype == torch.float32
    assert batch.prompt_embeds_BLD.shape == (3, 8, 6)
    for at, embed in enumerate(embeds):
        assert torch.equal(batch.prompt_embeds_BLD[at, : len(embed)], embed)
        assert not batch.prompt_embeds_BLD[at, len(embed) :].any()
    assert batch.names == ("a", "b", "c") and batch.caption_dropped == (False, True, False)
    assert torch.equal(batch.to("cpu").latents_BCFHW, batch.latents_BCFHW)


@pytest.mark.parametrize(
    ("latents", "embeds", "message"),
    [
        ([torch.ones(2, 1, 1, 1), torch.ones(2, 1, 1, 2)], [torch.ones(1, 3)] * 2, "latents of b are"),
        ([torch.ones(2, 1, 1, 1), torch.ones(2, 1, 1, 1).half()], [torch.ones(1, 3)] * 2, "latents of b are"),
        ([torch.ones(2, 1, 1, 1)] * 2, [torch.ones(1, 3), torch.ones(1, 4)], "embedding of b"),
        ([torch.ones(2, 1, 1, 1)] * 2, [torch.ones(1, 3), torch.ones(9, 3)], "b has 9 tokens"),
    ],
)
def test_what_does_not_fit_together_is_named(latents, embeds, message):
    with pytest.raises(ValueError, match=message):
        collate(latents, embeds, names=["a", "b"], text_tokens=4)


def test_a_batch_is_a_copy_of_the_cache(tmp_path):
    store = Store(tmp_path)
    store.put({"k": (torch.ones(2, 2, 2, 2), {"names": ["k"], "components": {}})})
    batch = collate(store.get_many(["k"]), [torch.ones(1, 1)], names=["k"], text_tokens=1)
    batch.latents_BCFHW.zero_()
    assert float(Store(tmp_path).get("k").sum()) == 16.0 and float(store.get("k").sum()) == 16.0


def test_the_loader_keeps_the_order_and_the_state_of_what_was_consumed():
    expected = list(islice(sampler(), 20))
    with Loader(sampler(), batch_of, prefetch=3) as loader:
        for number, spec in enumerate(expected):
            batch, got, state = loader.next()
            assert got == spec and batch.names == spec.names
            assert batch.latents_BCFHW[:, 0, 0, 0, 0].tolist() == [float(name[1:]) for name in spec.names]
            if number in (0, 5, 6, 13):
                resumed = sampler()
                assert resumed.load_state_dict(state) == ()
                assert next(resumed) == expected[number + 1]


def test_the_loader_works_ahead_but_not_without_bounds():
    fetched = []

    def fetch(spec):
        fetched.append(spec)
        return batch_of(spec)

    with Loader(sampler(), fetch, prefetch=2) as loader:
        for number in range(4):
            deadline = time.time() + 5
            while len(fetched) < number + 2 and time.time() < deadline:
                time.sleep(0.002)
            time.sleep(0.02)
            assert len(fetched) == number + 2
            loader.next()


def test_an_exception_is_raised_in_its_turn_and_again():
    calls = []

    def fetch(spec):
        calls.append(spec)
        if len(calls) == 3:
            raise OSError("the disk is gone")
        return batch_of(spec)

    loader = Loader(sampler(), fetch, prefetch=4)
    loader.next()
    loader.next()
    for _ in range(2):
        with pytest.raises(OSError, match="disk is gone"):
            loader.next()
    loader.close()
    assert len(calls) == 3, "nothing is drawn after a failure"


def test_close_ends_the_thread():
    before = threading.active_count()
    loader = Loader(sampler(), batch_of)
    loader.next()
    loader.close()
    loader.close()
    assert threading.active_count() == before
    with pytest.raises(RuntimeError, match="closed"):
        loader.next()


def test_waiting_is_measured():
    def slow(spec):
        time.sleep(0.03)
        return batch_of(spec)

    with Loader(sampler(), slow) as loader:
        for _ in range(3):
            loader.next()
        assert 0.05 < loader.waited_seconds < 1
