"""Options of the caches: latents and text embeddings, encoded once before training."""

from __future__ import annotations

from pathlib import Path

from simplewan.options.declare import Group, option


class CacheOptions(Group):
    cache_dir: Path = option(
        Path("cache"), restart_safe=True, help="Folder of the caches of datasets that name none of their own."
    )
    vae_batch_size: int = option(
        1, minimum=1, unit="samples", help="Clips that the VAE encodes together; more is faster and needs more memory."
    )
    vae_dtype: str = option(
        "bf16",
        choices=("bf16", "fp16", "fp32"),
        aliases={"default": "bf16"},
        help="Number format in which the VAE computes and latents are cached.",
    )
    text_encoder_batch_size: int = option(
        1, minimum=1, unit="prompts", help="Prompts that the text encoder takes together."
    )
    write_batch_size: int = option(
        128, minimum=1, unit="records", restart_safe=True, help="Most records of one cache file."
    )
    compress_disk_cache: bool = option(
        False,
        restart_safe=True,
        help="Compress each cached record (zstd); off keeps plain memory maps. What is there is read either way.",
    )
