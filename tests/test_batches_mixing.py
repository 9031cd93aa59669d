"""Weights of datasets, batch sizes of buckets, what is pruned, and the error that names `repeats` with all of that."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from functools import partial
from itertools import islice

import pytest
from batching import batches_in_epochs
from hypothesis import assume, given
from hypothesis import strategies as st

from simplewan.batches.mixing import MixedDataset, dataset_weights
from simplewan.batches.sampler import Sampler
from simplewan.batches.sizes import SampleRef, batch_size_of, patterns, prune, unmatched
from simplewan.errors import UserError

MODES = ("auto-weighting", "uniform")


def samples_of(datasets: list[MixedDataset], mode: str, buckets: tuple[str, ...] = ("832x480@81",)) -> list[SampleRef]:
    weights = dataset_weights(datasets, mode)
    return [
        SampleRef(f"{d.name}/{n}", buckets[n % len(buckets)], d.repeats, 1, weights[d.name], dataset=d.name)
        for d in datasets
        for n in range(d.num_samples)
    ]


mixes = st.lists(
    st.tuples(st.integers(1, 50), st.integers(0, 3), st.sampled_from([1.0, 0.5, 0.25, 0.1, 3.0, 0.0])),
    min_size=1,
    max_size=4,
).map(lambda rows: [MixedDataset(f"d{at}", *row) for at, row in enumerate(rows)])


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("probability", [1.0, 0.5, 0.3, 7.0])
def test_one_dataset_alone_and_equal_datasets_are_as_without_mixing(mode, probability):
    one = MixedDataset("a", 10, repeats=3, probability=probability)
    assert dataset_weights([one], mode) == {"a": 1.0}
    assert dataset_weights([one, replace(one, name="b")], mode) == {"a": 1.0, "b": 1.0}
    nobody = [replace(one, name="never", probability=0.0), replace(one, name="empty", num_samples=0)]
    assert dataset_weights([one, *nobody], mode) == {"a": 1.0, "never": 0.0, "empty": 0.0}
    assert dataset_weights(nobody, mode) == {"never": 0.0, "empty": 0.0} and dataset_weights([], mode) == {}


@given(mixes)
def test_draws_are_in_the_proportions_asked_for(datasets):
    assume(any(dataset.probability for dataset in datasets))
    auto, even = (dataset_weights(datasets, mode) for mode in MODES)
    sizes = {d.name: d.num_samples * (d.repeats + 1) for d in datasets}
    total = sum(sizes[name] * weight for name, weight in auto.items())
    assert total == pytest.approx(sum(sizes[name] * weight for name, weight in even.items()))
    probabilities = sum(d.probability for d in datasets)
    for d in datasets:
        assert auto[d.name] == pytest.approx(d.probability / max(other.probability for other in datasets))
        assert sizes[d.name] * even[d.name] == pytest.approx(total * d.probability / probabilities)


def test_a_worked_example():
    datasets = [MixedDataset("large", 300), MixedDataset("small", 50, repeats=1, probability=0.5)]
    assert dataset_weights(datasets) == {"large": 1.0, "small": 0.5}
    assert dataset_weights(datasets, "uniform") == pytest.approx({"large": 7 / 9, "small": 7 / 6})
    assert dataset_weights(datasets, "uniform", {"small": 3})["small"] == pytest.approx(400 / 3 / 200)


@pytest.mark.parametrize(
    ("datasets", "mode", "words"),
    [
        ([MixedDataset("a", 1)], "equal", "one of auto-weighting, uniform, not 'equal'"),
        ([MixedDataset("a", 1, probability=-1.0)], "uniform", "dataset a is negative"),
        ([MixedDataset("a", 1, probability=float("nan"))], "uniform", "dataset a"),
        ([MixedDataset("a", 1), MixedDataset("a", 2)], "uniform", "one name"),
    ],
)
def test_what_cannot_be_mixed_is_refused(datasets, mode, words):
    with pytest.raises(ValueError, match=words):
        dataset_weights(datasets, mode)


def test_the_stream_has_the_proportions_in_every_stretch():
    datasets = [MixedDataset("a", 300), MixedDataset("b", 300, probability=0.5), MixedDataset("c", 30)]
    for mode, shares in [("auto-weighting", {"a": 300, "b": 150, "c": 30}), ("uniform", {"a": 2, "b": 1, "c": 2})]:
        sampler = Sampler(samples_of(datasets, mode), 2, 0, "high")
        count = sampler.batches_in_epochs(4)
        specs = list(islice(sampler, count))
        for stretch in (specs, specs[: count // 2], specs[count // 2 :]):
            seen = Counter(name[0] for spec in stretch for name in spec.names)
            for name, share in shares.items():
                assert seen[name] / sum(seen.values()) == pytest.approx(share / sum(shares.values()), abs=0.035)


def test_a_small_dataset_of_large_weight_mixes_with_the_others_in_the_batches():
    samples = samples_of([MixedDataset("a", 400), MixedDataset("b", 10)], "uniform")
    sampler = Sampler(samples, 4, 0, "high")
    batches = [Counter(name[0] for name in spec.names) for spec in islice(sampler, sampler.batches_in_epochs(2))]
    unmixed = sum(len(batch) == 1 for batch in batches) / len(batches)
    assert unmixed < 0.25, "two in sixteen by chance"
    sampler = Sampler(samples, 4, 0, "high")
    assert all(len(set(spec.names)) == 4 for spec in islice(sampler, 200)), "and none twice"


def test_a_bucket_is_named_by_all_of_it_or_its_size_or_its_frames():
    sizes = {"832x480@81": 1, "832x480": 2, "@81": 3}
    assert patterns("832x480@81 regularisation") == ("832x480@81", "832x480", "@81")
    for bucket, size in {"832x480@81": 1, "832x480@17": 2, "480x832@81": 3, "480x832@17": 9}.items():
        assert batch_size_of(bucket, batch_size=9, bucket_batch_sizes=sizes) == size
        assert batch_size_of(f"{bucket} regularisation", batch_size=9, bucket_batch_sizes=sizes) == size
        assert batch_size_of(bucket, batch_size=9) == 9
    assert batch_size_of("832x480", batch_size=9, bucket_batch_sizes=sizes) == 2
    assert unmatched({**sizes, "480x832": 4, "@5": 1}, ["832x480@81 regularisation", "64x64@1"]) == ["480x832", "@5"]


def test_regularisation_keeps_to_itself():
    buckets = ("832x480@81", "832x480@81 regularisation")
    sampler = Sampler(
        samples_of([MixedDataset("a", 20)], "uniform", buckets), 3, 0, "high", bucket_batch_sizes={"@81": 2}
    )
    specs = list(islice(sampler, 20))
    assert {spec.bucket for spec in specs} == set(buckets) and {len(spec.names) for spec in specs} == {2}
    for spec in specs:
        assert {int(name[2:]) % 2 for name in spec.names} == {int(spec.bucket == buckets[1])}


def test_pruning_and_counting_go_by_the_size_of_the_bucket():
    samples = samples_of([MixedDataset("a", 12)], "uniform", ("832x480@81", "832x480@17", "64x64@1"))  # four of each
    sizes = {"@17": 5, "@1": 2}
    kept, small = prune(samples, batch_size=4, bucket_batch_sizes=sizes, keep_small_buckets=False)
    assert [(pruned.bucket, pruned.batch_size) for pruned in small] == [("832x480@17", 5)]
    assert "too few for a batch of 5" in str(small[0])
    assert batches_in_epochs(kept, 2, batch_size=4, bucket_batch_sizes=sizes) == 2 + 4
    assert batches_in_epochs(samples, 3, batch_size=4, bucket_batch_sizes=sizes, world_size=2) == (3 + 2 + 6) // 2
    sampler = Sampler(samples, 4, 0, "high", bucket_batch_sizes=sizes)
    assert sampler.pruned == small and {len(spec.names) for spec in islice(sampler, 9)} == {2, 4}
    state = sampler.state_dict()
    assert Sampler(samples, 4, 0, "high", bucket_batch_sizes=sizes).load_state_dict(state) == ()
    other = Sampler(samples, 4, 0, "high", bucket_batch_sizes={"@1": 1})
    assert other.load_state_dict(state) == ("samples", "bucket_batch_sizes")
    assert set(Sampler(kept, 4, 0, "high").load_state_dict(state)) == {"bucket_batch_sizes"}


def test_captions_are_drawn_anew_for_every_draw_whatever_the_sizes():
    """Draws are numbered: two of one epoch never have the same number, so that their lots are independent."""
    samples = [
        replace(ref, num_captions=10**6)
        for ref in samples_of([MixedDataset("a", 60)], "uniform", ("832x480@81", "64x64@1"))
    ]
    samplers = [
        Sampler(samples, 1, 0, "high", bucket_batch_sizes={"@1": 5}, rank=rank, world_size=2) for rank in range(2)
    ]
    counts = Counter(index for sampler in samplers for spec in islice(sampler, 18) for index in spec.captions)
    assert counts.total() == 60 and max(counts.values()) == 1


@given(
    mixes,
    st.sampled_from(MODES),
    st.integers(1, 9),
    st.integers(1, 60),
    st.integers(1, 3),
    st.sampled_from([{}, {"@17": 7}, {"832x480": 3, "@17": 11}]),
    st.booleans(),
)
def test_the_error_names_the_smallest_repeats_that_do(datasets, mode, size, accumulation, world, sizes, keep):
    def make(changed: list[MixedDataset]) -> Sampler:
        samples = samples_of(changed, mode, ("832x480@81", "832x480@81", "832x480@81", "64x64@17"))
        return Sampler(
            samples,
            size,
            0,
            "high",
            bucket_batch_sizes=sizes,
            gradient_accumulation_steps=accumulation,
            world_size=world,
            keep_small_buckets=keep,
            reweigh=partial(dataset_weights, changed, mode),
        )

    def raised(repeats: int) -> list[MixedDataset]:
        return [replace(dataset, repeats=max(dataset.repeats, repeats)) for dataset in datasets]

    assume(any(dataset.probability for dataset in datasets))
    try:
        make(datasets)
    except UserError as error:
        text = str(error)
    else:
        return
    smallest = int(re.search(r"set repeats to (\d+) or more in dataset \"d", text)[1])
    with pytest.raises(UserError):
        make(raised(smallest - 1))
    next(make(raised(smallest)))
    assert ("the buckets' own sizes" in text) == any(
        batch_size_of(ref.bucket, batch_size=size, bucket_batch_sizes=sizes) != size
        for ref in samples_of([d for d in datasets if d.probability], mode, ("832x480@81",) * 3 + ("64x64@17",))
    )


def test_the_smallest_repeats_of_datasets_mixed_equally_take_the_weights_along():
    datasets = [MixedDataset("few", 2, repeats=9), MixedDataset("many", 10)]

    def make(*repeats: int) -> Sampler:
        changed = [replace(dataset, repeats=number) for dataset, number in zip(datasets, repeats, strict=True)]
        reweigh = partial(dataset_weights, changed, "uniform")
        samples = samples_of(changed, "uniform")
        return Sampler(samples, 1, 0, "high", gradient_accumulation_steps=100, reweigh=reweigh)

    with pytest.raises(UserError, match='set repeats to 7 or more in dataset "many",'):
        make(9, 0)
    with pytest.raises(UserError):
        make(9, 6)
    make(9, 7)


def test_rounding_errors_of_weights_prune_no_bucket():
    samples = samples_of([MixedDataset("a", 11), MixedDataset("b", 19)], "uniform")
    fifteen = [ref for ref in samples if ref.dataset == "a"]
    assert 11 * fifteen[0].weight < 15, "the test needs one"
    assert prune(fifteen, batch_size=15, keep_small_buckets=False) == (sorted(fifteen, key=lambda ref: ref.name), [])


def test_the_error_tells_of_the_sizes_of_buckets():
    samples = samples_of([MixedDataset("clips", 6)], "uniform", ("832x480@81", "64x64@17"))
    with pytest.raises(UserError) as caught:
        Sampler(samples, 2, 0, "high", bucket_batch_sizes={"@17": 6}, keep_small_buckets=True, world_size=3, where="f")
    assert str(caught.value) == (
        "f: repeats = 0 gives 6 usable draws an epoch from 6 samples in 2 buckets (64x64@17: 3, 832x480@81: 3), which "
        "make 2 batches of the buckets' own sizes (64x64@17: 6, 832x480@81: 2), but one step needs 3 "
        "(gradient_accumulation_steps 1 x 3 processes), and a bucket at least one batch to be used; set repeats to 1 "
        'or more in dataset "clips", add clips, or lower the batch sizes of buckets'
    )
