"""What is drawn from, and how often: the samples of a run as the sampler sees them, and the sampler of a role."""

from __future__ import annotations

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

# After the name of the shape: such samples share no batch with others, since their target is another.
REGULARISATION = " regularisation"


def make_sampler(loaded: Loaded, gathered: Gathered, role: str, *, failed: Collection[str] = ()) -> Sampler:
    """The sampler of a role, over all samples but those that `failed`. Raises UserError when too little is left."""
    options = loaded.options
    usable = [sample for sample in gathered.training if sample.id not in failed]
    max_steps, max_epochs = _limits(loaded)
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
        max_epochs=max_epochs,
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


def drawn_names(loaded: Loaded, gathered: Gathered, sampler: Sampler) -> set[str]:
    """The samples (ids) that a run draws or measures: not those of datasets or buckets that it never comes to."""
    max_steps, max_epochs = _limits(loaded)

    def comes(ref: SampleRef) -> bool:
        late = (max_steps and ref.window.start_step > max_steps) or (max_epochs and ref.window.start_epoch > max_epochs)
        return ref.weight > 0 and not late

    measured: set[str] = set()
    validation = loaded.options.validation
    if validation.eval_steps_interval and (validation.eval_dataset_id is not None or gathered.measures_apart):
        measured = {sample.id for sample in gathered.evaluation(validation.eval_dataset_id)}
    return measured | {ref.name for ref in sampler.samples if comes(ref)}


def unused_sizes(loaded: Loaded, gathered: Gathered) -> list[str]:
    """The keys of bucket_batch_sizes that name no bucket there is."""
    return unmatched(loaded.options.data.bucket_batch_sizes or {}, {sample.bucket for sample in gathered.training})


def _limits(loaded: Loaded) -> tuple[int | None, int | None]:
    """The last step of a role and the last epoch of a run; None where there is no limit."""
    run = loaded.options.run
    steps = -(-run.max_train_steps // len(loaded.flavour.trained_experts))
    return steps or None, None if run.ignore_final_epochs else run.num_train_epochs or None


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
