"""Filling the caches of a run, and fetching batches from them. Each model is loaded only if something is missing.

Text first (captions, the empty caption, validation prompts), then the text encoder is dropped; then latents, then the
VAE is dropped. Nothing of either is in memory while training.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from simplewan.app.budget import check_disk
from simplewan.app.context import DTYPES, Context
from simplewan.app.device import release_memory
from simplewan.app.gathering import Gathered
from simplewan.batches.batch import Batch, collate
from simplewan.batches.sampler import DROPPED, BatchSpec
from simplewan.caches.fill import Filled, ItemError, fill
from simplewan.caches.groups import encode_groups
from simplewan.caches.keys import Item
from simplewan.caches.store import Store
from simplewan.data.loading import load_clip, to_pixels
from simplewan.data.mediainfo import MediaError
from simplewan.data.samples import Sample
from simplewan.errors import Problem, UserError
from simplewan.events import Stage
from simplewan.models.wan.loading import load_text_encoder, load_vae, text_encoder_fingerprint, vae_fingerprint
from simplewan.models.wan.text import clean_prompt, encode_prompts
from simplewan.models.wan.vae import encode, place
from simplewan.plan import latents_bytes

FORMAT = 2  # raise it when what is computed from the same components changes
NO_CAPTION = ""


Place = tuple[Store, str]


@dataclass(frozen=True)
class Caches:
    """Where each sample's latents and each text's embedding are, as (store, key); and what could not be encoded."""

    latents: Mapping[str, Place]
    texts: Mapping[str, Place]
    failed: Mapping[str, str]

    def text(self, text: str) -> torch.Tensor:
        """The embedding (L, D) of a caption or prompt, not padded; a view of the cache."""
        store, key = self.texts[text]
        return store.get(key)


class TextEncoder:
    """Encodes prompts; loads tokenizer and encoder at the first call."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._models: tuple[object, torch.nn.Module] | None = None

    def __call__(self, items: Sequence[Item]) -> Sequence[torch.Tensor]:
        return self.encode([str(item.components["prompt"]) for item in items])

    def encode(self, prompts: Sequence[str]) -> list[torch.Tensor]:
        """The embedding (L, D) of each prompt, not padded, on the device; they go through the encoder together."""
        if self._models is None:
            self._context.emit(Stage("text_encoder", "Loading the text encoder"))
            context = self._context
            tokenizer, encoder = load_text_encoder(context.options.model, context.flavour, context.weight_dtype)
            self._models = tokenizer, encoder.to(self._context.device)
        tokenizer, encoder = self._models
        return encode_prompts(tokenizer, encoder, prompts, max_tokens=self._context.flavour.text_tokens)


class _VaeEncoder:
    """Decodes clips and encodes them to latents; loads the VAE at the first call."""

    def __init__(self, context: Context, samples: Mapping[str, Sample]) -> None:
        self._context = context
        self._samples = samples
        self._vae: torch.nn.Module | None = None
        self._dtype = DTYPES[context.options.caches.vae_dtype]

    def __call__(self, items: Sequence[Item]) -> Sequence[torch.Tensor]:
        if self._vae is None:
            self._context.emit(Stage("vae", "Loading the VAE"))
            options, flavour = self._context.options.model, self._context.flavour
            self._vae = place(load_vae(options, flavour, self._dtype), self._context.device)
        clips = []
        for item in items:
            try:
                clips.append(to_pixels(load_clip(self._samples[item.name])))
            except MediaError as error:
                raise ItemError(item.name, str(error)) from error
        pixels_BCFHW = torch.stack(clips).to(self._context.device, self._dtype)
        return list(encode(self._vae, pixels_BCFHW).to(self._dtype).cpu())


def fill_caches(context: Context, gathered: Gathered, prompts: Sequence[str]) -> Caches:
    """Encode whatever is missing; `prompts` are the validation prompts, the negative one among them.

    Raises UserError, before anything is encoded, when a disk has no room for the latents.
    """
    latents = _latent_items(context, gathered)
    check_disk(
        context, {dataset: _bytes_missing(context, *latents[dataset], gathered) for dataset in latents}, gathered
    )
    texts = _fill_texts(context, gathered, prompts)
    places, failed = _fill_latents(context, gathered, latents)
    return Caches(latents=places, texts=texts, failed=failed)


def _fill_texts(context: Context, gathered: Gathered, prompts: Sequence[str]) -> dict[str, Place]:
    model, flavour = context.options.model, context.flavour
    settings = {
        "kind": "text",
        "format": FORMAT,
        "encoder": text_encoder_fingerprint(model, flavour),
        "dtype": str(context.weight_dtype),
        "max_tokens": flavour.text_tokens,
    }
    wanted: dict[Path, dict[str, str]] = {}  # folder -> name -> text
    for dataset in gathered.datasets:
        names = wanted.setdefault(gathered.text_folder(dataset), {"(no caption)": NO_CAPTION})
        for sample in gathered.of(dataset):
            names.update({f"{sample.id}, caption {n}": caption for n, caption in enumerate(sample.captions, start=1)})
    names = wanted.setdefault(gathered.text_folder(None), {})
    names.update({f"validation prompt {n}": prompt for n, prompt in enumerate(dict.fromkeys(prompts), start=1)})
    places: dict[str, Place] = {}
    encoder = TextEncoder(context)
    for folder, names in wanted.items():
        store = Store(folder)
        filled = fill(
            store,
            [Item(name=name, components={**settings, "prompt": clean_prompt(text)}) for name, text in names.items()],
            encoder,
            batch_size=context.options.caches.text_encoder_batch_size,
            flush_records=gathered.records_per_file(folder) or context.options.caches.write_batch_size,
            label="Caching text",
            key="text_cache",
            emit=context.emit,
            check=context.check,
        )
        if filled.failed:
            raise UserError(*(Problem(name, f"cannot be encoded: {why}") for name, why in filled.failed.items()))
        _report(context, filled, "text")
        places.update({text: (store, filled.keys[name]) for name, text in names.items()})
    del encoder
    release_memory()
    return places


def _latent_items(context: Context, gathered: Gathered) -> dict[str, tuple[Store, list[Item]]]:
    """For each dataset its store and what is to be in it."""
    settings = {
        "kind": "latents",
        "format": FORMAT,
        "vae": vae_fingerprint(context.options.model, context.flavour),
        "dtype": context.options.caches.vae_dtype,
    }
    return {
        dataset: (
            Store(gathered.latents_folder(dataset)),
            [
                Item(
                    name=sample.id,
                    components={**settings, "content": sample.content, **asdict(sample.clip)},
                    group=sample.clip.bucket,
                )
                for sample in gathered.of(dataset)
            ],
        )
        for dataset in gathered.datasets
    }


def _bytes_missing(context: Context, store: Store, items: Sequence[Item], gathered: Gathered) -> int:
    """Bytes of the latents that `store` lacks."""
    return sum(
        latents_bytes(
            width=clip.width,
            height=clip.height,
            num_frames=clip.num_frames,
            vae=context.flavour.vae,
            bytes_per_value=DTYPES[context.options.caches.vae_dtype].itemsize,
        )
        for group in encode_groups(items, batch_size=context.options.caches.vae_batch_size)
        for item, key in zip(group.items, group.keys, strict=True)
        if key not in store
        for clip in [gathered.samples[item.name].clip]
    )


def _fill_latents(
    context: Context, gathered: Gathered, latents: Mapping[str, tuple[Store, list[Item]]]
) -> tuple[dict[str, Place], dict[str, str]]:
    places: dict[str, Place] = {}
    failed: dict[str, str] = {}
    encoder = _VaeEncoder(context, gathered.samples)
    for dataset, (store, items) in latents.items():
        filled = fill(
            store,
            items,
            encoder,
            batch_size=context.options.caches.vae_batch_size,
            flush_records=gathered.entries[dataset].write_batch_size or context.options.caches.write_batch_size,
            label=f"Caching latents of {dataset}",
            key="vae_cache",
            emit=context.emit,
            check=context.check,
        )
        _report(context, filled, f"latents of {dataset}")
        failed.update(filled.failed)
        places.update({name: (store, key) for name, key in filled.keys.items()})
    del encoder
    release_memory()
    return places, failed


def _report(context: Context, filled: Filled, what: str) -> None:
    if filled.encoded:
        context.say(f"{what}: {filled.encoded} encoded, {filled.reused} already cached")


@dataclass(frozen=True)
class Fetch:
    """Makes the batch of a draw from the caches."""

    gathered: Gathered
    caches: Caches
    text_tokens: int
    pin_memory: bool

    def __call__(self, spec: BatchSpec) -> Batch:
        latents, embeds = [], []
        for name, caption in zip(spec.names, spec.captions, strict=True):
            sample = self.gathered.samples[name]
            text = NO_CAPTION if caption == DROPPED else sample.captions[caption]
            store, key = self.caches.latents[name]
            latents.append(store.get(key))
            embeds.append(self.caches.text(text))
        return collate(
            latents,
            embeds,
            names=spec.names,
            text_tokens=self.text_tokens,
            caption_dropped=[caption == DROPPED for caption in spec.captions],
            pin_memory=self.pin_memory,
        )
