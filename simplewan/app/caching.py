"""Filling the caches of a run, and fetching batches from them. Each model is loaded only if something is missing.

Text first (captions, the empty caption, validation prompts), then the text encoder is dropped; then latents, then the
VAE is dropped. Nothing of either is in memory while training.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from simplewan.app.context import DTYPES, Context
from simplewan.app.device import release_memory
from simplewan.app.samples import Gathered
from simplewan.batches.batch import Batch, collate
from simplewan.batches.sampler import DROPPED, BatchSpec
from simplewan.caches.fill import Filled, ItemError, fill
from simplewan.caches.keys import Item
from simplewan.caches.store import Store
from simplewan.data.loading import load_clip, to_pixels
from simplewan.data.media import MediaError
from simplewan.data.samples import Sample
from simplewan.events import Stage
from simplewan.models.wan.loading import load_text_encoder, load_vae, text_encoder_fingerprint, vae_fingerprint
from simplewan.models.wan.text import clean_prompt, encode_prompts
from simplewan.models.wan.vae import encode

FORMAT = 1  # raise it when what is computed from the same components changes
NO_CAPTION = ""


@dataclass(frozen=True)
class Caches:
    """Where each sample's latents and each text's embedding are: (store, key). Texts are cleaned prompts."""

    latents: Mapping[str, tuple[Store, str]]
    texts: Mapping[tuple[str, str], tuple[Store, str]]
    prompts: Mapping[str, tuple[Store, str]]
    failed: Mapping[str, str]

    def prompt(self, text: str) -> torch.Tensor:
        """The embedding (1, L, D) of a validation prompt, not padded."""
        store, key = self.prompts[text]
        return store.get(key).clone().unsqueeze(0)


class _TextEncoder:
    """Encodes prompts; loads tokenizer and encoder at the first call."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._models: tuple[object, torch.nn.Module] | None = None

    def __call__(self, items: Sequence[Item]) -> Sequence[torch.Tensor]:
        if self._models is None:
            self._context.emit(Stage("text_encoder", "Loading the text encoder"))
            context = self._context
            tokenizer, encoder = load_text_encoder(context.options.model, context.flavour, context.weight_dtype)
            self._models = tokenizer, encoder.to(self._context.device)
        tokenizer, encoder = self._models
        prompts = [str(item.components["prompt"]) for item in items]
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
            self._vae = load_vae(options, flavour, self._dtype).to(self._context.device)
        clips = []
        for item in items:
            try:
                clips.append(to_pixels(load_clip(self._samples[item.name])))
            except MediaError as error:
                raise ItemError(item.name, str(error)) from error
        pixels_BCFHW = torch.stack(clips).to(self._context.device, self._dtype)
        return list(encode(self._vae, pixels_BCFHW).to(self._dtype).cpu())


def fill_caches(context: Context, gathered: Gathered, prompts: Sequence[str]) -> Caches:
    """Encode whatever is missing; `prompts` are the validation prompts, the negative one among them."""
    texts, validation = _fill_texts(context, gathered, prompts)
    latents, failed = _fill_latents(context, gathered)
    return Caches(latents=latents, texts=texts, prompts=validation, failed=failed)


def _fill_texts(
    context: Context, gathered: Gathered, prompts: Sequence[str]
) -> tuple[dict[tuple[str, str], tuple[Store, str]], dict[str, tuple[Store, str]]]:
    model, flavour = context.options.model, context.flavour
    fingerprint = text_encoder_fingerprint(model, flavour)
    dtype = context.options.optimizer.mixed_precision

    def item(name: str, text: str) -> Item:
        components = {
            "kind": "text",
            "format": FORMAT,
            "prompt": clean_prompt(text),
            "encoder": fingerprint,
            "dtype": dtype,
            "max_tokens": flavour.text_tokens,
        }
        return Item(name=name, components=components)

    wanted: dict[Path, dict[str, tuple[Item, str, str]]] = {}
    for dataset in gathered.datasets:
        folder = gathered.text_folder(dataset)
        of_folder = wanted.setdefault(folder, {})
        of_folder["(no caption)"] = (item("(no caption)", NO_CAPTION), dataset, NO_CAPTION)
        for sample in gathered.of(dataset):
            for number, caption in enumerate(sample.captions):
                name = f"{sample.id}, caption {number + 1}"
                of_folder[name] = (item(name, caption), dataset, caption)
    default = gathered.text_folder(None)
    for number, prompt in enumerate(dict.fromkeys(prompts)):
        name = f"validation prompt {number + 1}"
        wanted.setdefault(default, {})[name] = (item(name, prompt), "", prompt)
    texts: dict[tuple[str, str], tuple[Store, str]] = {}
    validation: dict[str, tuple[Store, str]] = {}
    encoder = _TextEncoder(context)
    for folder, entries in wanted.items():
        store = Store(folder)
        filled = fill(
            store,
            [entry for entry, _, _ in entries.values()],
            encoder,
            batch_size=context.options.caches.text_encoder_batch_size,
            flush_records=gathered.records_per_file(folder),
            label="Caching text",
            key="text_cache",
            emit=context.emit,
            check=context.check,
        )
        _report(context, filled, "text")
        for name, (_, dataset, text) in entries.items():
            place = (store, filled.keys[name])
            if dataset:
                texts[dataset, text] = place
            else:
                validation[text] = place
    del encoder
    release_memory()
    for dataset in gathered.datasets:
        texts.setdefault((dataset, NO_CAPTION), texts[gathered.datasets[0], NO_CAPTION])
    return texts, validation


def _fill_latents(context: Context, gathered: Gathered) -> tuple[dict[str, tuple[Store, str]], dict[str, str]]:
    fingerprint = vae_fingerprint(context.options.model, context.flavour)
    places: dict[str, tuple[Store, str]] = {}
    failed: dict[str, str] = {}
    encoder = _VaeEncoder(context, gathered.samples)
    for dataset in gathered.datasets:
        store = Store(gathered.latents_folder(dataset))
        items = [
            Item(
                name=sample.id,
                components={
                    "kind": "latents",
                    "format": FORMAT,
                    "content": sample.content,
                    "vae": fingerprint,
                    "dtype": context.options.caches.vae_dtype,
                    **asdict(sample.clip),
                },
                group=sample.clip.bucket,
            )
            for sample in gathered.of(dataset)
        ]
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
            store, key = self.caches.texts[sample.dataset, text]
            embeds.append(store.get(key))
        return collate(
            latents,
            embeds,
            names=spec.names,
            text_tokens=self.text_tokens,
            caption_dropped=[caption == DROPPED for caption in spec.captions],
            pin_memory=self.pin_memory,
        )
