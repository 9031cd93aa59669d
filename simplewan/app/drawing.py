"""What is drawn from, and how often: the samples of a run as the sampler sees them, and the sampler of a role."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial

from simplewan.app.gathering import Gathered
from simplewan.batches.mixing import MixedDataset, dataset_weights
from simplewan.batches.sampler import Sampler
from simplewan.batches.sizes import SampleRef, unmatched
from simplewan.batches.windows import Window
from simplewan.data.samples import Sample
from simplewan.options import DatasetOptions, Loaded
from simplewan.options.experts import budgets_of
from simplewan.plan import TrainingTurns

# After the name of the shape: such samples share no batch with others, since their target is another.
REGULARISATION = " regularisation"


def make_sampler(
    loaded: Loaded, gathered: Gathered, role: str, *, max_steps: int | None, failed: Collection[str] = ()
) -> Sampler:
    """The sampler of a role, over all samples but those that `failed`. Raises UserError when too little is left.

    `max_steps` is the role's last step, None where there is no limit (see `step_limits`).
    """
    options = loaded.options
    usable = [sample for sample in gathered.training if sample.id not in failed]
    return Sampler(
        sample_refs(loaded, gathered, usable),
        options.data.train_batch_size,
        options.run.seed,
        role,
        bucket_batch_sizes=options.data.bucket_batch_sizes or {},
        gradient_accumulation_steps=options.optimizer.gradient_accumulation_steps,
        caption_dropout_probability=options.data.caption_dropout_probability,
        keep_small_buckets=options.data.disable_bucket_pruning,
        max_steps=max_steps,
        max_epochs=_last_epoch(loaded),
        reweigh=_weights(loaded, gathered, usable),
        where=str(options.data.data_backend_config),
    )


def sample_refs(loaded: Loaded, gathered: Gathered, usable: Sequence[Sample]) -> list[SampleRef]:
    """The usable samples as the sampler sees them."""
    weights = _weights(loaded, gathered, usable)({})
    windows = {
        entry.id: Window(entry.start_epoch, entry.end_epoch, entry.start_step, entry.end_step)
        for entry in gathered.entries.values()
    }
    return [
        _ref(sample, gathered.entries[sample.dataset], weights[sample.dataset], windows[sample.dataset])
        for sample in usable
    ]


def drawn_names(loaded: Loaded, gathered: Gathered, sampler: Sampler, *, max_steps: int | None) -> set[str]:
    """The samples (ids) that a run draws or measures: not those of datasets or buckets that it never comes to.

    `max_steps` is the last step of the role that takes most.
    """
    max_epochs = _last_epoch(loaded)

    def comes(ref: SampleRef) -> bool:
        late = (max_steps and ref.window.start_step > max_steps) or (max_epochs and ref.window.start_epoch > max_epochs)
        return ref.weight > 0 and not late

    measured: set[str] = set()
    if loaded.options.validation.eval_steps_interval:
        measured = {name for name, item in gathered.samples.items() if not gathered.entries[item.dataset].is_training}
    return measured | {ref.name for ref in sampler.samples if comes(ref)}


def unused_sizes(loaded: Loaded, gathered: Gathered) -> list[str]:
    """The keys of bucket_batch_sizes that name no bucket there is."""
    return unmatched(loaded.options.data.bucket_batch_sizes or {}, {sample.bucket for sample in gathered.training})


def turns_of(loaded: Loaded, natural_share: Callable[[], float] = lambda: 0.5) -> TrainingTurns:
    """Who trains when, as the options say; `natural_share` is asked for where they leave the share open."""
    options, flavour = loaded.options.experts, loaded.flavour
    share = options.expert_share if flavour.trains_both else 1.0
    return TrainingTurns(
        flavour.trained_experts,
        natural_share() if share is None else share,
        options.expert_run_steps,
        budgets_of(loaded.options, flavour),
    )


def step_limits(loaded: Loaded, turns: TrainingTurns, taken: Mapping[str, int] | None = None) -> dict[str, int | None]:
    """The last step of each role, None where there is no limit; `taken` are those that each has taken already.

    A role that takes no step counts as if it took one.
    """
    most = [limit for limit in (loaded.options.run.max_train_steps, turns.most_steps(taken)) if limit]
    if most:
        return {name: max(1, steps) for name, steps in turns.until(min(most), taken).items()}
    return {name: turns.budgets.get(name) for name in turns.experts}


def longest(limits: Mapping[str, int | None]) -> str:
    """The role that may take most steps."""
    return max(limits, key=lambda name: limits[name] or sys.maxsize)


def _last_epoch(loaded: Loaded) -> int | None:
    """The last epoch of a run, None where there is no limit."""
    run = loaded.options.run
    return None if run.ignore_final_epochs else run.num_train_epochs or None


def _weights(
    loaded: Loaded, gathered: Gathered, usable: Sequence[Sample]
) -> Callable[[Mapping[str, int]], Mapping[str, float]]:
    """From the repeats of some datasets (else their own) the weights of all."""
    counts = Counter(sample.dataset for sample in usable)
    datasets = [
        MixedDataset(entry.id, counts[entry.id], entry.repeats, entry.probability)
        for entry in gathered.entries.values()
        if entry.is_training
    ]
    return partial(dataset_weights, datasets, loaded.options.data.data_backend_sampling)


def _ref(sample: Sample, entry: DatasetOptions, weight: float, window: Window) -> SampleRef:
    return SampleRef(
        name=sample.id,
        bucket=sample.clip.bucket + (REGULARISATION if entry.is_regularisation_data else ""),
        repeats=entry.repeats,
        num_captions=len(sample.captions),
        weight=weight,
        dataset=entry.id,
        window=window,
    )
