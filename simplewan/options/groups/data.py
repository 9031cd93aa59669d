"""Options of the data: the dataset file, the defaults of its entries, batches and captions."""

from __future__ import annotations

import re
from pathlib import Path

from pydantic import field_validator

from simplewan.options.declare import HOLDS_FIRST_FRAME, Group, option
from simplewan.options.values import Resolution

_DEFAULT = "Default for every dataset"


# "832x480@81", "832x480" or "@81".
_BUCKET = re.compile(r"^(?=.)(\d+x\d+)?(@\d+)?$")


class DataOptions(Group):
    data_backend_config: Path = option(
        Path("config/multidatabackend.json"),
        restart_safe=True,
        help="The dataset file; relative to the working directory, else to the folder of config.json.",
    )
    resolution: Resolution = option(
        480, help=f'{_DEFAULT}: size in the unit of resolution_type, or exact sizes such as "832x480".'
    )
    resolution_type: str = option(
        "pixel_area",
        choices=("pixel", "pixel_area", "area"),
        help=f"{_DEFAULT}: pixel is the shorter edge, pixel_area the area of a square of that edge, area megapixels.",
    )
    minimum_image_size: float | None = option(
        None, minimum=0, help=f"{_DEFAULT}: smaller sources are left out, in the unit of resolution_type; 0 is off."
    )
    maximum_image_size: float | None = option(
        None,
        minimum=0,
        help=f"{_DEFAULT}: larger sources are left out, or, with target_downsample_size, made smaller; 0 is off.",
    )
    target_downsample_size: float | None = option(
        None, minimum=0, help=f"{_DEFAULT}: the size that sources above maximum_image_size are first brought to."
    )
    aspect_bucket_rounding: int = option(
        2, minimum=0, maximum=9, unit="decimals", help=f"{_DEFAULT}: decimals of the aspect ratio that names a bucket."
    )
    train_batch_size: int = option(1, minimum=1, unit="samples", help="Samples of one forward pass, all of one bucket.")
    bucket_batch_sizes: dict[str, int] | None = option(
        None,
        help='Another train_batch_size for some buckets: {"832x480@81": 1, "@1": 8, "480x480": 4}. A whole name goes '
        "before a size, a size before a number of frames.",
    )

    @field_validator("bucket_batch_sizes", mode="after")
    @classmethod
    def _buckets(cls, value: dict[str, int] | None) -> dict[str, int] | None:
        for bucket, size in (value or {}).items():
            if not _BUCKET.match(bucket):
                raise ValueError(f'has "{bucket}", which is no bucket: write "832x480@81", "832x480" or "@81"')
            if size < 1:
                raise ValueError(f'has {size} for "{bucket}"; a batch has at least 1 sample')
        return value

    caption_dropout_probability: float = option(
        0.0, minimum=0, maximum=1, help="Share of samples trained with an empty caption; keeps guidance working."
    )
    i2v_probability: float = option(
        0.5,
        minimum=0,
        maximum=1,
        applies=HOLDS_FIRST_FRAME,
        help="TI2V: share of clips trained as image-to-video, with the first frame given; the rest is text-to-video. "
        "A dataset's video.is_i2v goes before. The evaluation loss is that of image-to-video from 0.5 on.",
    )
    disable_bucket_pruning: bool = option(
        False,
        help="Keep buckets with fewer samples (times repeats + 1) than a batch: they give a batch every few epochs.",
    )
    data_backend_sampling: str = option(
        "auto-weighting",
        choices=("auto-weighting", "uniform"),
        help="How datasets are mixed: auto-weighting draws each in proportion to its samples, uniform all equally "
        "often; both times the dataset's probability.",
    )
    delete_problematic_images: bool = option(
        False,
        help="Put files that fail while they are encoded on a list (problematic_files.txt beside the cache) and leave "
        "them alone from then on; a user's file is never deleted.",
    )
    dataloader_prefetch: bool = option(True, restart_safe=True, help="Read the coming batches while a step computes.")
    dataloader_prefetch_qlen: int = option(
        2,
        minimum=1,
        unit="batches",
        applies="dataloader_prefetch",
        restart_safe=True,
        help="How many batches are read ahead.",
    )
