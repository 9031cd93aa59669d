"""What is to be in the caches of a run: for each store the items, and how they are encoded. Nothing is loaded here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property

from simplewan.app.context import DTYPES, Context
from simplewan.app.encoders import FRAMES
from simplewan.app.gathering import Gathered
from simplewan.app.pictures import ToRender
from simplewan.app.stores import Stores
from simplewan.caches.groups import EncodeGroup, encode_groups
from simplewan.caches.keys import Component, Item
from simplewan.caches.store import Store
from simplewan.data.samples import Sample
from simplewan.models.wan.loading import (
    image_encoder_fingerprint,
    needs_image_embeds,
    text_encoder_fingerprint,
    vae_fingerprint,
)
from simplewan.models.wan.text import clean_prompt
from simplewan.options import DatasetOptions
from simplewan.plan import latents_bytes

# Raise one when what is computed from the same components changes.
TEXT_FORMAT, LATENT_FORMAT, CONDITION_FORMAT, IMAGE_FORMAT = 2, 3, 1, 1
NO_CAPTION = ""
FIRST_FRAME = ", first frame"  # after a sample's name, in the names of what is made of its first frame
TEXT, LATENTS, CONDITION, IMAGE = "text", "latents", "condition", "image"


@dataclass(frozen=True)
class Wanted:
    """Items that belong into one store. `label` and `key` name the work in progress events; `texts` are those that the
    items of texts stand for, by the item's name, `owners` the samples (ids) of the others."""

    kind: str
    store: Store
    items: Sequence[Item]
    batch_size: int
    flush_records: int
    label: str
    key: str
    texts: Mapping[str, str] = field(default_factory=dict)
    owners: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def groups(self) -> list[EncodeGroup]:
        """What is encoded together."""
        return encode_groups(self.items, batch_size=self.batch_size)

    @property
    def missing(self) -> dict[str, Item]:
        """What the store lacks, by the record's key."""
        planned = (pair for group in self.groups for pair in zip(group.keys, group.items, strict=True))
        return {key: item for key, item in planned if key not in self.store}


def everything_wanted(
    context: Context, gathered: Gathered, stores: Stores, rendered: ToRender, *, epochs: int
) -> list[Wanted]:
    """What is to be in all caches of a run of so many epochs."""
    return [
        *wanted_texts(context, gathered, stores, rendered.texts),
        *wanted_latents(context, gathered, stores, epochs=epochs).values(),
        *wanted_conditions(context, gathered, stores, epochs=epochs).values(),
        *wanted_images(context, gathered, stores, epochs=epochs).values(),
        *wanted_pictures(context, stores, rendered).values(),
    ]


def wanted_texts(context: Context, gathered: Gathered, stores: Stores, prompts: Sequence[str]) -> list[Wanted]:
    """Every caption, no caption, and the validation prompts, by store."""
    model, flavour, caches = context.options.model, context.flavour, context.options.caches
    settings = {
        "kind": TEXT,
        "format": TEXT_FORMAT,
        "encoder": text_encoder_fingerprint(model, flavour),
        "dtype": str(context.weight_dtype),
        "max_tokens": flavour.text_tokens,
    }
    texts: dict[Store, dict[str, str]] = {}  # store -> name -> text
    for dataset in gathered.entries:
        names = texts.setdefault(stores.texts(dataset), {"(no caption)": NO_CAPTION})
        for sample in gathered.of(dataset):
            file = f"{dataset}/{sample.source.path}"  # the clips of one file share its captions
            names.update({f"{file}, caption {n}": caption for n, caption in enumerate(sample.captions, start=1)})
    names = texts.setdefault(stores.texts(None), {"(no caption)": NO_CAPTION})
    names.update({f"validation prompt {n}": prompt for n, prompt in enumerate(dict.fromkeys(prompts), start=1)})
    return [
        Wanted(
            kind=TEXT,
            store=store,
            items=[Item(name, {**settings, "prompt": clean_prompt(text)}) for name, text in names.items()],
            batch_size=caches.text_encoder_batch_size,
            flush_records=stores.flush_records(store),
            label="Caching text",
            key="text_cache",
            texts=names,
        )
        for store, names in texts.items()
    ]


def wanted_latents(context: Context, gathered: Gathered, stores: Stores, *, epochs: int) -> dict[str, Wanted]:
    """The latents of every sample, by dataset, in all the cuts that so many epochs show."""
    return {
        dataset: wanted_latents_of(context, entry, stores.latents(dataset), gathered.of(dataset), epochs=epochs)
        for dataset, entry in gathered.entries.items()
    }


def wanted_latents_of(
    context: Context, entry: DatasetOptions, store: Store, samples: Sequence[Sample], *, epochs: int = 1
) -> Wanted:
    """The latents of samples of one dataset; those of one shape may be encoded together."""
    settings = {
        "kind": LATENTS,
        "format": LATENT_FORMAT,
        "vae": vae_fingerprint(context.options.model, context.flavour),
        "dtype": context.options.caches.vae_dtype,
    }
    shown = _shown(samples, epochs=epochs)
    return Wanted(
        kind=LATENTS,
        store=store,
        items=[Item(cut.id, {**settings, **_origin(cut)}, group=cut.clip.bucket) for cut, _sample in shown],
        owners={cut.id: sample.id for cut, sample in shown},
        batch_size=context.options.caches.vae_batch_size,
        flush_records=entry.write_batch_size or context.options.caches.write_batch_size,
        label=f"Caching latents of {entry.id}",
        key="vae_cache",
    )


def cuts(sample: Sample, *, epochs: int) -> list[Sample]:
    """A sample in all the cuts that so many epochs show, by their names."""
    return [sample.cut(number) for number in range(min(epochs, 1 + len(sample.crops)))]


def _shown(samples: Sequence[Sample], *, epochs: int) -> list[tuple[Sample, Sample]]:
    """Samples in all the cuts that so many epochs show: (cut, sample)."""
    return [(cut, sample) for sample in samples for cut in cuts(sample, epochs=epochs)]


def shown_first_frames(context: Context, gathered: Gathered, *, epochs: int) -> dict[str, Sample]:
    """For image-to-video: the first frame of every cut that so many epochs show, by its name in the caches."""
    if not context.flavour.extra_channels:
        return {}
    shown = _shown(list(gathered.samples.values()), epochs=epochs)
    return {cut.id + FIRST_FRAME: gathered.first_frame(sample, cut) for cut, sample in shown}


def wanted_conditions(context: Context, gathered: Gathered, stores: Stores, *, epochs: int) -> dict[str, Wanted]:
    """For image-to-video: the first frame of every cut as the model takes it, by dataset; beside the latents."""
    if not context.flavour.extra_channels:
        return {}
    settings = _condition_settings(context)
    return {
        dataset: replace(
            wanted_latents_of(context, entry, stores.latents(dataset), []),
            kind=CONDITION,
            items=[
                Item(
                    cut.id + FIRST_FRAME,
                    {**settings, FRAMES: cut.clip.num_frames, **_origin(gathered.first_frame(sample, cut))},
                    group=cut.clip.bucket,
                )
                for cut, sample in _shown(gathered.of(dataset), epochs=epochs)
            ],
            owners=_owners(gathered, dataset, epochs=epochs),
            label=f"Caching first frames of {dataset}",
            key="condition_cache",
        )
        for dataset, entry in gathered.entries.items()
    }


def _owners(gathered: Gathered, dataset: str, *, epochs: int) -> dict[str, str]:
    """The samples (ids) of a dataset by the names of what is made of their first frames."""
    return {cut.id + FIRST_FRAME: sample.id for cut, sample in _shown(gathered.of(dataset), epochs=epochs)}


def wanted_images(context: Context, gathered: Gathered, stores: Stores, *, epochs: int) -> dict[str, Wanted]:
    """For models with CLIP: its embedding of the first frame of every cut, by dataset."""
    if not needs_image_embeds(context.flavour):
        return {}
    settings = _image_settings(context)
    return {
        dataset: Wanted(
            kind=IMAGE,
            store=stores.images(dataset),
            items=[
                Item(
                    cut.id + FIRST_FRAME,
                    {**settings, **_origin(first)},
                    group=f"{first.clip.width}x{first.clip.height}",
                )
                for cut, sample in _shown(gathered.of(dataset), epochs=epochs)
                for first in [gathered.first_frame(sample, cut)]
            ],
            batch_size=1,
            flush_records=stores.flush_records(stores.images(dataset)),
            owners=_owners(gathered, dataset, epochs=epochs),
            label=f"Caching image embeddings of {dataset}",
            key="image_cache",
        )
        for dataset in gathered.entries
    }


def condition_items(context: Context, rendered: ToRender) -> list[Item]:
    """The pictures that clips begin with, as the model takes them: extra channels (I2V), or a latent frame (TI2V)."""
    if not context.flavour.takes_first_frame or not rendered.pictures:
        return []
    settings = _condition_settings(context)
    frames = rendered.num_frames if context.flavour.extra_channels else 1
    return [
        Item(name, {**settings, FRAMES: frames, **_origin(cut)}, group=cut.clip.bucket)
        for name, cut in rendered.cuts.items()
    ]


def image_items(context: Context, rendered: ToRender) -> list[Item]:
    """The same pictures for CLIP, where the model takes its embeddings."""
    if not needs_image_embeds(context.flavour) or not rendered.pictures:
        return []
    settings = _image_settings(context)
    return [
        Item(name, {**settings, **_origin(whole)}, group=whole.clip.bucket) for name, whole in rendered.wholes.items()
    ]


def wanted_pictures(context: Context, stores: Stores, rendered: ToRender) -> dict[str, Wanted]:
    """What rendering needs of pictures, by kind."""
    store = stores.pictures()
    wanted = {
        kind: Wanted(
            kind=kind,
            store=store,
            items=items,
            batch_size=1,
            flush_records=stores.flush_records(store),
            label=f"Caching {what} of validation",
            key=key,
        )
        for kind, items, what, key in (
            (CONDITION, condition_items(context, rendered), "first frames", "condition_cache"),
            (IMAGE, image_items(context, rendered), "image embeddings", "image_cache"),
        )
    }
    return {kind: part for kind, part in wanted.items() if part.items}


def _condition_settings(context: Context) -> dict[str, Component]:
    return {
        "kind": CONDITION,
        "format": CONDITION_FORMAT,
        "vae": vae_fingerprint(context.options.model, context.flavour),
        "dtype": context.options.caches.vae_dtype,
    }


def _image_settings(context: Context) -> dict[str, Component]:
    return {
        "kind": IMAGE,
        "format": IMAGE_FORMAT,
        "encoder": image_encoder_fingerprint(context.options.model, context.flavour),
        "dtype": str(context.weight_dtype),
    }


def _origin(sample: Sample) -> dict[str, Component]:
    return {"content": sample.content, **asdict(sample.clip)}


def bytes_missing(context: Context, wanted: Wanted) -> int:
    """Bytes of the latents (or conditions, which are as large) that their store lacks, were they not packed."""
    return sum(
        latents_bytes(
            width=int(str(item.components["width"])),
            height=int(str(item.components["height"])),
            num_frames=int(str(item.components.get(FRAMES, item.components["num_frames"]))),
            vae=context.flavour.vae,
            bytes_per_value=DTYPES[context.options.caches.vae_dtype].itemsize,
        )
        for item in wanted.missing.values()
    )
