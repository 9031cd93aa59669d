"""Windows, weights and batch sizes of buckets together: nothing outside its window, nothing lost, exact counts."""

from __future__ import annotations

import json
import re
from collections import Counter
from itertools import islice

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from simplewan.batches.course import Course, Mark
from simplewan.batches.loader import Loader
from simplewan.batches.mixing import MixedDataset, dataset_weights
from simplewan.batches.sampler import Sampler
from simplewan.batches.sizes import SampleRef, appearances
from simplewan.batches.windows import ALWAYS, Window
from simplewan.errors import UserError

BUCKETS = ("832x480@81", "480x832@81", "832x480@17", "832x480@81 regularisation")
SIZES = ({}, {}, {"@17": 3}, {"832x480": 2, "832x480@17": 1}, {"832x480@81": 3, "480x832": 1})
EPOCHS = 6


@st.composite
def windows(draw) -> Window:
    def bounds(most: int) -> tuple[int, int | None]:
        start = draw(st.integers(0, most))
        return start, draw(st.none() | st.integers(max(1, start), start + most))

    kind = draw(st.sampled_from(["epochs", "steps", "both"]))
    epochs = bounds(3) if kind != "steps" else (1, None)
    steps = bounds(9) if kind != "epochs" else (0, None)
    return Window(*epochs, *steps)


def samples_of(datasets, mode: str, windows_of) -> list[SampleRef]:
    """The samples of datasets given as (buckets of the samples, repeats, probability)."""
    mixed = [MixedDataset(f"d{at}", len(each[0]), *each[1:]) for at, each in enumerate(datasets)]
    weights = dataset_weights(mixed, mode)
    return [
        SampleRef(f"d{at}/{number}", bucket, repeats, 2, weights[f"d{at}"], dataset=f"d{at}", window=windows_of[at])
        for at, (buckets, repeats, _) in enumerate(datasets)
        for number, bucket in enumerate(buckets)
    ]


@st.composite
def runs(draw, windowed: bool = True, always: bool = True):
    """Samples of several datasets, the first of which is always open, and the rest of a sampler's arguments."""
    dataset = st.tuples(
        st.lists(st.sampled_from(BUCKETS), min_size=1, max_size=8),
        st.integers(0, 2),
        st.sampled_from([1.0, 0.5, 0.3, 2.0]),
    )
    datasets = draw(st.lists(dataset, min_size=1, max_size=4))
    datasets[0] = ([*datasets[0][0], *BUCKETS[:2] * 3], *datasets[0][1:])
    window = windows() if windowed else st.just(ALWAYS)
    windows_of = [ALWAYS if always else draw(window), *(draw(window) for _ in datasets[1:])]
    setup = {
        "batch_size": draw(st.integers(1, 3)),
        "seed": draw(st.integers(0, 5)),
        "role": draw(st.sampled_from(["high", "low"])),
        "bucket_batch_sizes": draw(st.sampled_from(SIZES)),
        "world_size": draw(st.integers(1, 5)),
        "gradient_accumulation_steps": draw(st.integers(1, 3)),
        "keep_small_buckets": draw(st.booleans()),
        "caption_dropout_probability": 0.2,
    }
    samples = samples_of(datasets, draw(st.sampled_from(["auto-weighting", "uniform"])), windows_of)
    if always:
        try:
            Sampler(samples, **setup)
        except UserError:
            assume(False)
    return samples, setup


def epochs_of(sampler: Sampler, epochs: int) -> list:
    """The batches of the first epochs, by iteration alone."""
    found = []
    for spec in sampler:
        if spec.epoch >= epochs:
            return found
        found.append(spec)
    return found


@given(runs(windowed=False), st.integers(1, EPOCHS))
@settings(max_examples=80)
def test_over_k_epochs_each_sample_is_seen_k_times_its_rate_give_or_take_what_waits(case, epochs):
    samples, setup = case
    samplers = [Sampler(samples, rank=rank, **setup) for rank in range(setup["world_size"])]
    count = samplers[0].batches_in_epochs(epochs)
    streams = [list(islice(sampler, count)) for sampler in samplers]
    seen = Counter(name for stream in streams for spec in stream for name in spec.names)
    sizes = {ref.bucket: samplers[0]._demand.size_of(ref.bucket) for ref in samples}
    for stream in streams:
        assert all(spec.epoch < epochs and len(spec.names) == sizes[spec.bucket] for spec in stream)
    assert {next(sampler).epoch >= epochs for sampler in samplers} == {True}
    state = samplers[0].state_dict()
    assume(state["epoch"] == epochs)
    waiting = Counter(name for names in state["carried"].values() for name in names)
    for ref in samplers[0].samples:
        assert abs(seen[ref.name] + waiting[ref.name] - epochs * ref.rate) < 1 - 1e-9 + (ref.weight != 1)
        assert ref.weight != 1 or seen[ref.name] + waiting[ref.name] == epochs * ref.rate
    full = sum(len(names) // sizes[bucket] for bucket, names in state["carried"].items())
    assert full < setup["world_size"], "only what makes no step waits"


@pytest.mark.slow
@given(runs())
@settings(max_examples=120)
def test_no_sample_outside_its_window_and_all_counts_exact(case):
    samples, setup = case
    windows_of = {ref.name: ref.window for ref in samples}
    sampler = Sampler(samples, **setup)
    specs = epochs_of(sampler, EPOCHS)
    for number, spec in enumerate(specs):
        step = number // setup["gradient_accumulation_steps"] + 1
        assert all(windows_of[name].is_open(epoch=spec.epoch + 1, step=step) for name in spec.names)
    for epochs in range(EPOCHS + 1):
        assert sampler.batches_in_epochs(epochs) == sum(spec.epoch < epochs for spec in specs)


@given(runs())
@settings(max_examples=80)
def test_ranks_stay_in_step_and_what_is_always_open_is_never_lost(case):
    samples, setup = case
    samplers = [Sampler(samples, rank=rank, **setup) for rank in range(setup["world_size"])]
    count = samplers[0].batches_in_epochs(EPOCHS)
    streams = [list(islice(sampler, count)) for sampler in samplers]
    for step in zip(*streams, strict=True):
        assert len({spec.epoch for spec in step}) == 1
    assert len({json.dumps(sampler.state_dict()) for sampler in samplers}) == 1
    assert {next(sampler).epoch >= EPOCHS for sampler in samplers} == {True}
    state = samplers[0].state_dict()
    assume(state["epoch"] == EPOCHS)
    seen = Counter(name for stream in streams for spec in stream for name in spec.names)
    waiting = Counter(name for names in state["carried"].values() for name in names)
    for ref in samplers[0].samples:
        whole = appearances(ref, 0, EPOCHS, seed=setup["seed"], role=setup["role"])
        if not ref.window.has_steps and ref.window.end_epoch is None:
            assert seen[ref.name] + waiting[ref.name] == whole
        else:
            assert seen[ref.name] + waiting[ref.name] <= whole + 1


@pytest.mark.slow
@given(runs(), st.data())
@settings(max_examples=60)
def test_resumption_at_any_batch_gives_the_identical_stream(case, data):
    samples, setup = case
    rank = data.draw(st.integers(0, setup["world_size"] - 1))
    sampler = Sampler(samples, rank=rank, **setup)
    states, specs = [sampler.state_dict()], []
    for spec in islice(sampler, min(60, sampler.batches_in_epochs(EPOCHS))):
        specs.append(spec)
        states.append(json.loads(json.dumps(sampler.state_dict())))
    resumed = Sampler(list(reversed(samples)), rank=rank, **setup)
    for at, state in enumerate(states):
        assert state["micro_batches"] == at
        assert resumed.load_state_dict(state) == ()
        assert list(islice(resumed, min(3, len(specs) - at))) == specs[at : at + 3]
    assert resumed.load_state_dict(states[len(states) // 2]) == ()
    assert list(islice(resumed, len(specs) - len(states) // 2)) == specs[len(states) // 2 :]


@given(runs(always=False), st.integers(5, 30))
@settings(max_examples=120)
def test_what_is_accepted_lasts_and_what_is_refused_ends_at_that_very_step(case, max_steps):
    samples, setup = case
    micro_batches = setup["gradient_accumulation_steps"]
    try:
        sampler = Sampler(samples, max_steps=max_steps, **setup)
    except UserError as error:
        found = re.search(r"no dataset is open at step (\d+) ", str(error))
        if found is None or int(found[1]) == 1:
            return
        max_steps = int(found[1]) - 1
        sampler = Sampler(samples, max_steps=max_steps, **setup)
    assert len(list(islice(sampler, max_steps * micro_batches))) == max_steps * micro_batches


def clips(dataset: str, count: int, bucket: str = "832x480@81", repeats: int = 0, **window) -> list[SampleRef]:
    opened = Window(**window) if window else ALWAYS
    return [SampleRef(f"{dataset}/{n:03d}", bucket, repeats, dataset=dataset, window=opened) for n in range(count)]


def datasets_by_step(sampler: Sampler, batches: int, accumulation: int) -> list[set[str]]:
    specs = list(islice(sampler, batches))
    return [
        {name.split("/")[0] for spec in specs[at : at + accumulation] for name in spec.names}
        for at in range(0, len(specs), accumulation)
    ]


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("accumulation", [1, 2, 3])
def test_datasets_change_over_at_the_very_step_in_the_middle_of_an_epoch(world_size, accumulation):
    samples = [*clips("a", 200, end_step=7), *clips("b", 200, start_step=8)]
    setup = {"world_size": world_size, "gradient_accumulation_steps": accumulation}
    for rank in range(world_size):
        sampler = Sampler(samples, 2, 0, "high", rank=rank, **setup)
        steps = datasets_by_step(sampler, 12 * accumulation, accumulation)
        assert steps == [{"a"}] * 7 + [{"b"}] * 5
    progress = 7 * accumulation / (100 // world_size)
    epoch_end = sampler.batches_in_epochs(1)
    rest = (1 - progress) * 100 // world_size
    assert abs(epoch_end - 7 * accumulation - rest) < 25 / world_size, "the epoch goes on with the share that is left"
    assert sampler.batches_in_epochs(2) - epoch_end in range(100 // world_size - 1, 100 // world_size + 2)


def test_what_opens_within_an_epoch_joins_in_proportion():
    samples = [*clips("a", 400), *clips("b", 400, start_step=201)]
    shares, counts = [], []
    for seed in range(5):
        specs = epochs_of(Sampler(samples, 1, seed, "high"), 2)
        later = [spec.names[0][0] for spec in specs[200:] if spec.epoch == 0]
        assert "b" not in {spec.names[0][0] for spec in specs[:200]}
        counts.append(len(later))
        shares.append(sum(name == "b" for name in later[:100]) / 100)
        assert Counter(name for spec in specs if spec.epoch == 0 for name in spec.names).most_common(1)[0][1] == 1
        assert Counter(spec.names[0][0] for spec in specs if spec.epoch == 1) == {"a": 400, "b": 400}
    assert all(abs(count - 400) < 40 for count in counts), "half of each"
    assert abs(sum(shares) / 5 - 0.5) < 0.12, "and mixed from the start"


def test_a_dataset_is_there_from_its_first_step_on():
    samples = [*clips("a", 20), *clips("b", 2000, start_step=11)]
    for accumulation in (1, 2):
        steps = [
            datasets_by_step(
                Sampler(samples, 1, seed, "high", gradient_accumulation_steps=accumulation), 20, accumulation
            )
            for seed in range(4)
        ]
        assert all(step == {"a"} for found in steps for step in found[:10])
        assert accumulation == 2 or sum("b" in found[10] for found in steps) >= 3


def test_what_opens_second_within_an_epoch_gets_the_share_left_by_then():
    samples = [*clips("a", 400), *clips("b", 400, start_step=101), *clips("c", 400, start_step=301)]
    specs = epochs_of(Sampler(samples, 1, 0, "high"), 1)
    counts = Counter(spec.names[0][0] for spec in specs)
    assert counts["a"] == 400 and abs(counts["b"] - 300) < 30 and abs(counts["c"] - 200) < 30


def test_what_leaves_is_gone_at_once_also_what_was_carried_over():
    samples = [*clips("a", 7, end_epoch=1), *clips("b", 8)]
    sampler = Sampler(samples, 4, 1, "high")
    specs = epochs_of(sampler, 3)
    first = Sampler(samples, 4, 1, "high")
    list(islice(first, first.batches_in_epochs(1)))
    carried = [name for names in first._plan.carried.values() for name in names]
    assert len(carried) == 3 and any(name.startswith("a") for name in carried), "the test needs one of a to wait"
    assert all(name.startswith("b") for spec in specs if spec.epoch > 0 for name in spec.names)


def test_the_iteration_ends_when_nothing_can_open_any_more():
    sampler = Sampler(clips("a", 10, end_step=4), 1, 0, "high", max_steps=4)
    assert len(list(sampler)) == 4 and sampler.batches_in_epochs(9) == 4
    by_epochs = Sampler(clips("a", 10, end_epoch=3), 4, 0, "high", max_epochs=3)
    assert len(list(by_epochs)) == 7 == by_epochs.batches_in_epochs(3) == by_epochs.batches_in_epochs(64)
    assert by_epochs.load_state_dict(by_epochs.state_dict()) == () and list(by_epochs) == []
    with Loader(Sampler(clips("a", 10, end_step=4), 1, 0, "high", max_steps=4), lambda spec: spec) as loader:
        assert [loader.next()[1].epoch for _ in range(4)] == [0] * 4
        with pytest.raises(StopIteration):
            loader.next()


@pytest.mark.parametrize(
    ("datasets", "limits", "words"),
    [
        ({"a": {"end_step": 10}}, {}, ["step 11 (epoch 3)", '"a" ends with end_step 10']),
        ({"a": {"end_epoch": 3}}, {}, ["step 25 (epoch 4)", '"a" ends with end_epoch 3']),
        ({"a": {"end_step": 10}, "b": {"start_step": 12}}, {}, ["step 11 ", '"b" begins with start_step 12']),
        ({"a": {"end_epoch": 1}, "b": {"start_epoch": 3}}, {}, ["(epoch 2)", '"b" begins with start_epoch 3']),
        ({"a": {"end_epoch": 2}, "b": {"start_step": 18}}, {}, ["step 17 (epoch 3)", '"b" begins with start_step 18']),
        ({"a": {"end_epoch": 2}, "b": {"start_step": 16}}, {}, None),
        ({"a": {"end_step": 9}, "b": {"start_epoch": 3}}, {}, None),  # the second epoch ends with step 9
        ({"a": {"end_step": 9}, "b": {"start_epoch": 4}}, {}, ["step 10 (epoch 3)", '"a" ends with end_step 9']),
        ({"a": {"start_step": 2}}, {}, ["step 1 (epoch 1)", '"a" begins with start_step 2']),
        ({"a": {"end_step": 10}}, {"max_steps": 10}, None),
        ({"a": {"end_step": 10}}, {"max_steps": 11}, ["step 11"]),
        ({"a": {"end_step": 16}}, {"max_epochs": 2}, None),
        ({"a": {"end_step": 15}}, {"max_epochs": 2}, None),
        ({"a": {"end_step": 15}}, {"max_epochs": 3}, ["step 16 (epoch 3)"]),
        ({"a": {"end_epoch": 3}}, {"max_epochs": 3}, None),
        ({"a": {"end_epoch": 3}}, {"max_steps": 24}, None),
        ({"a": {"end_epoch": 3}}, {"max_steps": 25}, ["step 25"]),
        ({"a": {"end_epoch": 3}, "b": {"start_step": 24, "end_step": 40}}, {"max_steps": 40, "max_epochs": 9}, None),
        ({"a": {"end_epoch": 3}, "b": {"start_step": 20, "end_step": 40}}, {"max_steps": 41}, ["step 41"]),
    ],
)
def test_a_time_with_nothing_open_is_refused_before_training(datasets, limits, words):
    samples = [ref for name, window in datasets.items() for ref in clips(name, 8, **window)]
    if words is None:
        sampler = Sampler(samples, 1, 0, "high", **limits)
        wanted = limits.get("max_steps") or sampler.batches_in_epochs(limits.get("max_epochs", 9))
        assert len(list(islice(sampler, wanted))) == wanted
        return
    with pytest.raises(UserError) as caught:
        Sampler(samples, 1, 0, "high", where="multidatabackend.json", **limits)
    assert all(word in str(caught.value) for word in [*words, "multidatabackend.json", "no dataset is open"])


def test_too_little_for_a_step_after_a_window_closed_is_refused():
    def make(repeats: int, **limits) -> Sampler:
        samples = [*clips("a", 9, end_step=20), *clips("b", 3, repeats=repeats)]
        return Sampler(samples, 2, 0, "high", gradient_accumulation_steps=4, where="f.json", **limits)

    with pytest.raises(UserError) as caught:
        make(1)
    assert "gives 6 usable draws an epoch from step 21 (epoch 11) on from 3 samples" in str(caught.value)
    assert 'set repeats to 2 or more in dataset "b"' in str(caught.value)
    make(2)
    make(1, max_steps=20)


def test_far_ends_cost_nothing():
    samples = [*clips("a", 8, end_step=10**9, end_epoch=10**8), *clips("b", 8, start_epoch=10**7)]
    sampler = Sampler(samples, 1, 0, "high", max_epochs=10**7)
    assert sampler.batches_in_epochs(10**6) == 8 * 10**6 and len(sampler._course._stretches) == 1


def test_a_changed_run_goes_on_counting_steps_and_is_checked_from_there():
    def make(accumulation: int = 2, extra: int = 0, end: int = 30) -> Sampler:
        samples = [*clips("a", 10, end_step=20), *clips("b", 10 + extra, start_step=15, end_step=end)]
        return Sampler(samples, 1, 0, "high", gradient_accumulation_steps=accumulation, max_steps=30)

    sampler = make()
    list(islice(sampler, 24))
    state = json.loads(json.dumps(sampler.state_dict()))
    more = make(extra=3)
    assert more.load_state_dict(state) == ("samples",)
    assert datasets_by_step(more, 18 * 2, 2)[:2] == [{"a"}] * 2, "steps 13 and 14"
    assert make(end=31).load_state_dict(state) == ("samples",), "a window is part of it"
    more.load_state_dict(state)
    assert all(step == {"b"} for step in datasets_by_step(more, 18 * 2, 2)[8:])
    single = make(accumulation=1)
    assert single.load_state_dict(state) == ("gradient_accumulation_steps",)
    assert len(list(single)) == 18 and single.state_dict()["micro_batches"] == 30


def test_a_change_that_leaves_a_gap_is_refused_when_the_state_is_loaded():
    before = Sampler(clips("a", 20), 1, 0, "high")
    list(islice(before, 35))  # in the second epoch
    changed = Sampler([*clips("a", 10, end_step=40), *clips("b", 10, start_epoch=5)], 1, 0, "high")
    with pytest.raises(UserError, match=r"no dataset is open at step 41 \(epoch 3\)"):
        changed.load_state_dict(before.state_dict())
    list(islice(before, 40))  # in the fourth epoch
    with pytest.raises(UserError, match=r"no dataset is open at step 76 \(epoch 4\)"):
        changed.load_state_dict(before.state_dict())
    sooner = Sampler([*clips("a", 10, end_step=40), *clips("b", 10, start_epoch=4)], 1, 0, "high")
    assert sooner.load_state_dict(before.state_dict()) == ("samples",)


def test_states_stay_small_while_windows_open_and_close():
    samples = [*clips("a", 3000, end_step=2000), *clips("b", 3000, start_step=1000)]
    sampler = Sampler(samples, 2, 0, "high")
    sizes = [len(json.dumps(sampler.state_dict())) for _ in islice(sampler, 2500)]
    assert max(sizes) < 700


def test_never_drawn_datasets_are_named():
    samples = [
        *clips("a", 8),
        *clips("late", 3, start_step=50),
        *clips("never", 4, start_epoch=3, end_epoch=2),
        *(SampleRef(f"zero/{n}", "832x480@81", weight=0.0, dataset="zero") for n in range(5)),
    ]
    sampler = Sampler(samples, 1, 0, "high", max_steps=20)
    notices = [str(pruned) for pruned in sampler.pruned]
    assert len(notices) == 3
    assert notices[0].startswith('dataset "late" (3 samples) is never drawn: it begins with start_step 50')
    assert 'dataset "never" (4 samples) is never drawn: its end_epoch' in notices[1]
    assert notices[2] == 'dataset "zero" (5 samples) is never drawn: its probability is 0'
    assert {ref.dataset for ref in sampler.samples} == {"a", "late"}
    with pytest.raises(UserError, match="probability above 0"):
        Sampler(samples[11:], 1, 0, "high")


def test_the_course_of_a_long_list_is_counted_without_planning_where_nothing_changes():
    samples = [*clips("a", 50), *clips("b", 50, start_epoch=3)]
    sampler = Sampler(samples, 3, 0, "high", world_size=2)
    assert isinstance(sampler._course, Course)
    assert sampler.batches_in_epochs(10) == len(epochs_of(sampler, 10))
    assert len(sampler._course._stretches) == 1


def test_before_the_first_epoch_of_a_course_there_is_what_there_was():
    """Also when smaller batches make batches of what was carried over."""
    stream = Sampler(clips("a", 10), 1, 0, "high")._stream
    carried = {"832x480@81": [ref.name for ref in stream.samples[:3]]}
    course = Course(stream, Mark(2, 21, carried))
    assert [course.batches_in_epochs(epochs) for epochs in (2, 3, 4)] == [21, 34, 44]
