"""The sampler: coverage over epochs, exact resumption, ranks, captions, pruning, the error that names `repeats`."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from itertools import islice

import pytest
from batching import batches_in_epochs
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from simplewan.batches.sampler import Sampler
from simplewan.batches.sizes import SampleRef, prune
from simplewan.errors import UserError


def refs_of(*counts: int, repeats: int = 0, **changes: object) -> list[SampleRef]:
    return [
        SampleRef(f"bucket{bucket}/{number:03d}", f"bucket{bucket}", repeats=repeats, **changes)
        for bucket, count in enumerate(counts)
        for number in range(count)
    ]


@st.composite
def setups(draw, max_world: int = 3):
    counts = draw(st.lists(st.integers(0, 9), min_size=1, max_size=4))
    samples = [replace(ref, repeats=draw(st.integers(0, 2)), num_captions=3) for ref in refs_of(*counts)]
    setup = {
        "batch_size": draw(st.integers(1, 4)),
        "seed": draw(st.integers(0, 5)),
        "role": draw(st.sampled_from(["high", "low"])),
        "world_size": draw(st.integers(1, max_world)),
        "keep_small_buckets": draw(st.booleans()),
        "caption_dropout_probability": draw(st.sampled_from([0.0, 0.3])),
    }
    kept, _ = prune(samples, batch_size=setup["batch_size"], keep_small_buckets=setup["keep_small_buckets"])
    assume(sum(ref.rate for ref in kept) >= setup["batch_size"] * setup["world_size"])
    return samples, setup


def ranks(samples, setup) -> list[Sampler]:
    return [Sampler(samples, rank=rank, **setup) for rank in range(setup["world_size"])]


@given(setups(), st.integers(1, 6))
@settings(max_examples=80, deadline=None)
def test_over_k_epochs_each_sample_is_seen_k_times_give_or_take_what_waits(case, epochs):
    samples, setup = case
    samplers = ranks(samples, setup)
    count = samplers[0].batches_in_epochs(epochs)
    seen, waiting = Counter(), Counter()
    for sampler in samplers:
        specs = list(islice(sampler, count))
        assert all(spec.epoch < epochs for spec in specs), "no batch of a later epoch"
        assert all(len(spec.names) == setup["batch_size"] for spec in specs)
        assert all({name.split("/")[0] for name in spec.names} == {spec.bucket} for spec in specs)
        seen.update(name for spec in specs for name in spec.names)
        assert next(sampler).epoch >= epochs, "and all batches of these epochs"
    state = samplers[0].state_dict()
    if state["epoch"] == epochs:  # later when this epoch is too small to give a batch
        waiting.update(name for names in state["carried"].values() for name in names)
        assert seen + waiting == Counter({ref.name: epochs * (ref.repeats + 1) for ref in samplers[0].samples})
    per_batch = setup["batch_size"] * len({ref.bucket for ref in samples})
    left = sum(epochs * (ref.repeats + 1) for ref in samplers[0].samples) - sum(seen.values())
    assert 0 <= left < per_batch + setup["batch_size"] * setup["world_size"]


@given(setups(max_world=1), st.integers(2, 5))
@settings(max_examples=60, deadline=None)
def test_nobody_starves(case, rounds):
    samples, setup = case
    sampler = Sampler(samples, **setup)
    seen = Counter(name for spec in islice(sampler, sampler.batches_in_epochs(rounds)) for name in spec.names)
    for ref in sampler.samples:
        ceiling = rounds * (ref.repeats + 1)
        assert ceiling - setup["batch_size"] < seen[ref.name] <= ceiling


@given(setups(), st.integers(0, 40), st.integers(0, 40))
@settings(max_examples=80, deadline=None)
def test_resumption_at_any_batch_gives_the_identical_stream(case, start, length):
    samples, setup = case
    for sampler in ranks(samples, setup):
        list(islice(sampler, start))
        state = json.loads(json.dumps(sampler.state_dict()))
        expected = list(islice(sampler, length))
        rank = sampler._rank
        resumed = Sampler(list(reversed(samples)), rank=rank, **setup)
        list(islice(resumed, 7))
        assert resumed.load_state_dict(state) == ()
        assert list(islice(resumed, length)) == expected


@given(setups())
@settings(max_examples=60, deadline=None)
def test_ranks_share_out_what_is_there(case):
    samples, setup = case
    samplers = ranks(samples, setup)
    count = samplers[0].batches_in_epochs(1)
    assert {sampler.batches_in_epochs(1) for sampler in samplers} == {count}
    streams = [list(islice(sampler, count + 5)) for sampler in samplers]
    for step in zip(*streams, strict=True):
        assert len({spec.epoch for spec in step}) == 1
    first_epoch = Counter(name for stream in streams for spec in stream[:count] for name in spec.names)
    assert all(first_epoch[ref.name] <= ref.repeats + 1 for ref in samplers[0].samples), "no draw goes to two ranks"
    assert len({json.dumps(sampler.state_dict()) for sampler in samplers}) == 1


@pytest.mark.parametrize("seed", range(4))
def test_a_batch_that_found_no_step_is_first_in_the_next_epoch(seed):
    samples = refs_of(2, 2, 2, 2)
    setup = {"batch_size": 2, "seed": seed, "role": "high", "world_size": 3}
    samplers = ranks(samples, setup)
    streams = [list(islice(sampler, sampler.batches_in_epochs(40))) for sampler in samplers]
    for epoch in range(40):
        seen = Counter(name for stream in streams for spec in stream if spec.epoch <= epoch for name in spec.names)
        assert all(epoch <= seen[ref.name] <= epoch + 1 for ref in samples)


def test_ranks_of_a_step_share_a_bucket_where_they_can():
    samplers = ranks(refs_of(16, 16), {"batch_size": 2, "seed": 0, "role": "high", "world_size": 2})
    streams = [list(islice(sampler, 8)) for sampler in samplers]
    assert all(a.bucket == b.bucket for a, b in zip(*streams, strict=True))
    assert len({spec.bucket for spec in streams[0]}) == 2


@given(setups(), st.integers(0, 5))
@settings(max_examples=60, deadline=None)
def test_the_closed_form_counts_what_the_stream_does(case, epochs):
    samples, setup = case
    weighted = [replace(ref, weight=(1.0, 0.5, 1.3)[number % 3]) for number, ref in enumerate(samples)]
    kept, _ = prune(weighted, batch_size=setup["batch_size"], keep_small_buckets=setup["keep_small_buckets"])
    assume(sum(ref.rate for ref in kept) >= setup["batch_size"] * setup["world_size"])
    sampler = Sampler(weighted, **setup)
    count = sampler.batches_in_epochs(epochs)
    specs = list(islice(sampler, count + 1))
    assert sum(spec.epoch < epochs for spec in specs) == count


def test_weights_come_out_exactly_over_many_epochs():
    samples = refs_of(8, weight=0.3)
    sampler = Sampler(samples, 2, 0, "high", keep_small_buckets=True)
    seen = Counter(name for spec in islice(sampler, sampler.batches_in_epochs(50)) for name in spec.names)
    assert all(abs(seen[ref.name] - 15) <= 2 for ref in samples)


def test_epochs_roles_and_seeds_differ_and_repeat_themselves():
    def order(seed, role, epoch=0):
        sampler = Sampler(refs_of(12), 1, seed, role)
        return [spec.names[0] for spec in islice(sampler, 12 * (epoch + 1))][12 * epoch :]

    orders = [order(0, "high"), order(1, "high"), order(0, "low"), order(0, "high", 1)]
    assert len(set(map(tuple, orders))) == 4
    assert order(0, "high") == orders[0] != sorted(orders[0])


def test_a_sample_is_not_twice_in_a_batch_when_there_are_others():
    specs = list(islice(Sampler(refs_of(7, repeats=2), 3, 1, "high"), 70))
    assert all(len(set(spec.names)) == 3 for spec in specs)


def test_captions_are_drawn_by_position_alone():
    def captions(**changes):
        sampler = Sampler(refs_of(10, num_captions=3), 2, 3, "high", **changes)
        return [index for spec in islice(sampler, 400) for index in spec.captions]

    plain, dropped = captions(), captions(caption_dropout_probability=0.25)
    assert set(plain) == {0, 1, 2} and set(dropped) == {-1, 0, 1, 2}
    assert 150 < dropped.count(-1) < 250
    assert all(a == b for a, b in zip(plain, dropped, strict=True) if b != -1), "dropout moves no other draw"
    assert all(abs(plain.count(index) - 800 / 3) < 80 for index in range(3))
    assert set(captions(caption_dropout_probability=1.0)) == {-1}


def test_a_changed_list_restarts_the_epoch_and_says_so():
    sampler = Sampler(refs_of(7, 5), 2, 0, "high")
    list(islice(sampler, 9))
    state = json.loads(json.dumps(sampler.state_dict()))
    assert state["epoch"] == 1 and state["position"] > 0 and state["carried"]
    gone = next(iter(state["carried"].values()))[0]
    fewer = [ref for ref in refs_of(7, 5) if ref.name != gone]
    other = Sampler(fewer, 2, 0, "high")
    assert other.load_state_dict(state) == ("samples",)
    resumed = list(islice(other, 6))
    assert resumed[0].epoch == 1
    assert all(gone not in spec.names for spec in resumed)
    wider = Sampler(refs_of(7, 5), 1, 1, "high", world_size=2)
    assert wider.load_state_dict(state) == ("batch_size", "world_size", "seed")
    captioned = Sampler(refs_of(7, 5, num_captions=4), 2, 0, "high")
    assert captioned.load_state_dict(state) == ()
    with pytest.raises(ValueError, match="version"):
        sampler.load_state_dict({**state, "version": 99})


def test_small_buckets_are_pruned_and_listed_unless_kept():
    sampler = Sampler(refs_of(6, 1, 2), 3, 0, "high")
    assert [(pruned.bucket, pruned.num_samples) for pruned in sampler.pruned] == [("bucket1", 1), ("bucket2", 2)]
    assert {spec.bucket for spec in islice(sampler, 20)} == {"bucket0"}
    keeping = Sampler(refs_of(6, 1, 2), 3, 0, "high", keep_small_buckets=True)
    assert keeping.pruned == []
    seen = Counter(name for spec in islice(keeping, keeping.batches_in_epochs(6)) for name in spec.names)
    assert seen["bucket1/000"] == 6 and set(seen.values()) == {6}
    repeated = Sampler(refs_of(6, 1, 2, repeats=2), 3, 0, "high")
    assert repeated.pruned == []


@pytest.mark.parametrize(
    ("counts", "batch_size", "accumulation", "world_size", "smallest"),
    [((3,), 4, 1, 1, 1), ((5, 1), 2, 4, 1, 1), ((1, 1), 8, 1, 1, 7), ((10,), 4, 2, 4, 3), ((2, 3), 4, 2, 1, 1)],
)
def test_too_few_samples_name_the_smallest_repeats_that_would_do(
    counts, batch_size, accumulation, world_size, smallest
):
    def make(repeats):
        return Sampler(
            refs_of(*counts, repeats=repeats),
            batch_size,
            0,
            "high",
            world_size=world_size,
            gradient_accumulation_steps=accumulation,
            where='multidatabackend.json, dataset "clips"',
        )

    with pytest.raises(UserError) as caught:
        make(smallest - 1)
    text = str(caught.value)
    assert 'dataset "clips": repeats = ' in text and f"repeats to {smallest} or" in text
    assert f"from {sum(counts)} samples" in text and str(batch_size * accumulation * world_size) in text
    next(make(smallest))


def test_nothing_to_train_on_is_an_error():
    with pytest.raises(UserError, match="no sample"):
        Sampler([], 1, 0, "high")
    with pytest.raises(ValueError, match="bucket0/000"):
        Sampler(refs_of(2) + refs_of(1), 1, 0, "high")


def test_planning_arithmetic():
    samples = refs_of(7, 5, repeats=1)
    assert batches_in_epochs(samples, 1, batch_size=4) == 5
    assert batches_in_epochs(samples, 2, batch_size=4) == 12
    assert batches_in_epochs(samples, 2, batch_size=4, world_size=5) == 2


def test_planning_needs_no_torch():
    code = "import sys, simplewan.batches.sampler, simplewan.caches.groups; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
