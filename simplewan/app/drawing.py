"""What is drawn from, and how often: the samples of a run as the sampler sees them, and the sampler of a role."""

from __future__ import annotations

from collections import Counter
from functools import partial

from simplewan.app.context import Context
from simplewan.app.fetching import Fetch
from simplewan.batches.mixing import MixedDataset, dataset_weights
from simplewan.batches.sampler import Sampler
from simplewan.batches.sizes import SampleRef, unmatched
from simplewan.batches.windows import Window
from simplewan.data.samples import Sample
from simplewan.options import DatasetOptions

# After the name of the shape: such samples share no batch with others, since their target is another.
REGULARISATION = " regularisation"


def make_sampler(context: Context, fetch: Fetch, role: str) -> Sampler:
    """The sampler of a role. Raises UserError when too little is left."""
    options = context.options
    usable = [sample for sample in fetch.gathered.training if sample.id not in fetch.caches.failed]
    counts = Counter(sample.dataset for sample in usable)
    datasets = [
        MixedDataset(entry.id, counts[entry.id], entry.repeats, entry.probability)
        for entry in fetch.gathered.entries.values()
        if entry.is_training
    ]
    reweigh = partial(dataset_weights, datasets, options.data.data_backend_sampling)
    weights = reweigh({})
    windows = {
        entry.id: Window(entry.start_epoch, entry.end_epoch, entry.start_step, entry.end_step)
        for entry in fetch.gathered.entries.values()
    }
    refs = [
        _ref(sample, fetch.gathered.entries[sample.dataset], weights[sample.dataset], windows[sample.dataset])
        for sample in usable
    ]
    roles = len(context.flavour.trained_experts)
    return Sampler(
        refs,
        options.data.train_batch_size,
        options.run.seed,
        role,
        bucket_batch_sizes=options.data.bucket_batch_sizes or {},
        gradient_accumulation_steps=options.optimizer.gradient_accumulation_steps,
        caption_dropout_probability=options.data.caption_dropout_probability,
        keep_small_buckets=options.data.disable_bucket_pruning,
        max_steps=-(-options.run.max_train_steps // roles) or None,
        max_epochs=None if options.run.ignore_final_epochs else options.run.num_train_epochs or None,
        reweigh=reweigh,
        where=str(options.data.data_backend_config),
    )


def unused_sizes(context: Context, fetch: Fetch) -> list[str]:
    """The keys of bucket_batch_sizes that name no bucket there is."""
    return unmatched(context.options.data.bucket_batch_sizes or {}, {s.bucket for s in fetch.gathered.training})


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
