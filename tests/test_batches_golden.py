"""The stream of runs without weights, windows or batch sizes of buckets is fixed, bit for bit; so are their states.

A change of these digests breaks the resumption of every run that is under way.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from itertools import islice, pairwise

import pytest

from simplewan.batches.sampler import Sampler
from simplewan.batches.sizes import SampleRef

KEYS = ("version", "epoch", "position", "carried", "fingerprint")


def refs_of(*counts: int) -> list[SampleRef]:
    return [
        SampleRef(f"set/{number:03d} é.mp4", f"{832 - 16 * bucket}x480@81", num_captions=1 + number % 3)
        for bucket, count in enumerate(counts)
        for number in range(sum(counts[:bucket]), sum(counts[: bucket + 1]))
    ]


def with_repeats(refs: list[SampleRef]) -> list[SampleRef]:
    return [replace(ref, repeats=(0, 2, 1, 0, 5)[number % 5]) for number, ref in enumerate(refs)]


def weighted(refs: list[SampleRef]) -> list[SampleRef]:
    return [replace(ref, weight=(1.0, 0.5, 0.3)[number % 3]) for number, ref in enumerate(refs)]


CASES = {
    "plain": (refs_of(12), {"batch_size": 1, "seed": 42, "role": "transformer"}),
    "buckets": (refs_of(13, 7, 9), {"batch_size": 4, "seed": 1, "role": "high", "caption_dropout_probability": 0.2}),
    "repeats": (with_repeats(refs_of(11, 6)), {"batch_size": 3, "seed": 2, "role": "low"}),
    "pruned": (refs_of(9, 1, 2), {"batch_size": 3, "seed": 3, "role": "low"}),
    "small buckets": (refs_of(9, 1, 2), {"batch_size": 3, "seed": 3, "role": "low", "keep_small_buckets": True}),
    "ranks": (
        with_repeats(refs_of(14, 5, 8)),
        {"batch_size": 2, "seed": 4, "role": "high", "world_size": 3, "gradient_accumulation_steps": 2},
    ),
    "weights": (weighted(refs_of(15, 10)), {"batch_size": 2, "seed": 5, "role": "high", "world_size": 2}),
}


def digest(samples: list[SampleRef], setup: dict, batches: int = 60) -> str:
    """Of every rank's batches, and of what its state holds of old, after each."""
    found = hashlib.sha256()
    for rank in range(setup.get("world_size", 1)):
        sampler = Sampler(samples, rank=rank, **setup)
        found.update(f"{sampler.batches_in_epochs(3)} {[ref.name for ref in sampler.samples]}".encode())
        drawn = [(spec, sampler.state_dict()) for spec in islice(sampler, batches + 1)]
        for (spec, state), (after, _) in pairwise(drawn):
            shown = (spec.names, spec.captions, spec.epoch, spec.bucket, after.epoch > spec.epoch)
            found.update(repr((shown, json.dumps({key: state[key] for key in KEYS}))).encode())
    return found.hexdigest()[:16]


DIGESTS = {
    "plain": "da703f0e4ece0b11",
    "buckets": "42ab66ebd1389543",
    "repeats": "08524be08030df0c",
    "pruned": "e9d2c4a177291269",
    "small buckets": "1e86a459a0e535f4",
    "ranks": "c21c7d581bd0fd65",
    "weights": "664c6708269ad929",
}


@pytest.mark.parametrize("case", CASES)
def test_the_stream_is_what_it_always_was(case):
    samples, setup = CASES[case]
    assert digest(samples, setup) == DIGESTS[case]


def test_a_state_of_old_is_still_understood():
    listed = "639b51ae7ef2b06ade4ec8cf27eea852637aed6fae967a350ae6b4198bf5db91"
    state = {
        "version": 1,
        "epoch": 1,
        "position": 2,
        "carried": {"816x480@81": ["set/008 é.mp4"], "832x480@81": [f"set/00{number} é.mp4" for number in (6, 1, 5)]},
        "fingerprint": {"samples": listed, "batch_size": 4, "world_size": 1, "seed": 9, "role": "high"},
    }
    sampler = Sampler(refs_of(7, 5), 4, 9, "high")
    assert sampler.load_state_dict(state) == ()
    numbers = [[int(name[4:7]) for name in spec.names] for spec in islice(sampler, 3)]
    assert numbers == [[3, 0, 4, 1], [5, 6, 4, 1], [9, 8, 7, 10]]
