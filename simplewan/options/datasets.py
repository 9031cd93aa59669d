"""The entries of the dataset file (multidatabackend.json): every key, declared as the other options are.

What lives here: `DatasetOptions` and its nested `VideoOptions`. Imports the declarations and pydantic. The trade-off:
one model for all kinds of entry, as in the file itself; what a kind does not use is ignored.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import field_validator, model_validator

from simplewan.options.declare import Group, declarations, option
from simplewan.options.groups.data import DataOptions
from simplewan.options.values import Integers, Numbers, Resolution, Resolutions, Words

TRAINING_TYPES = ("video", "image")
# config.json gives these their defaults.
INHERITED = (
    "resolution",
    "resolution_type",
    "minimum_image_size",
    "maximum_image_size",
    "target_downsample_size",
    "aspect_bucket_rounding",
)


def _from_config(key: str) -> Any:
    """The declaration of the key in config.json, whose value is this one's default."""
    declared = declarations(DataOptions)[key]
    return option(
        declared.default,
        help=declared.help.removeprefix("Default for every dataset: "),
        minimum=declared.minimum,
        maximum=declared.maximum,
        choices=declared.choices,
        unit=declared.unit,
    )


class VideoOptions(Group):
    """The "video" object of an entry."""

    num_frames: Integers = option(
        (81,),
        unit="frames",
        help="Frames to train on, rounded down to 4n+1 (75 gives 73); an image has 1. Of several numbers each gives "
        "clips of its own from the same file.",
    )
    min_frames: int | None = option(
        None,
        minimum=1,
        unit="frames",
        help="Shortest source that is used, counted at the model's frame rate; none is num_frames.",
    )
    max_frames: int | None = option(
        None,
        minimum=1,
        unit="frames",
        help="Longest source that is used, counted likewise; with resolution_frames the most that is taken of one. "
        "None is no limit.",
    )
    bucket_strategy: str = option(
        "aspect_ratio",
        choices=("aspect_ratio", "resolution_frames"),
        help="aspect_ratio makes buckets by shape; resolution_frames by shape and length (832x480@73).",
    )
    frame_interval: int = option(
        1,
        minimum=1,
        unit="frames",
        applies="bucket_strategy=resolution_frames",
        help="Lengths are rounded down to a multiple of this, then to 4n+1.",
    )
    keep_source_fps: bool = option(
        False, help="Count frames at the source's own rate instead of resampling to the model's."
    )
    source_fps: float | None = option(
        None, minimum=0.1, unit="frames a second", help="Rate of the sources where the files state a wrong one."
    )
    extraction: str = option(
        "head",
        choices=("head", "chunk", "slide", "uniform", "random", "full"),
        help="Which parts of a longer source are used: head is its beginning, chunk tiles it, slide begins a clip "
        "every frame_stride frames, uniform takes frame_sample clips evenly spread, random as many at random places, "
        "full is the whole source as one clip (no longer than max_frames).",
    )
    frame_stride: int = option(
        1, minimum=1, unit="frames", applies="extraction=slide", help="Frames from the start of a clip to the next."
    )
    frame_sample: int = option(
        1, minimum=1, unit="clips", applies="extraction=uniform|random", help="Clips that are taken of a source."
    )
    scene_cuts: bool = option(
        True,
        applies="extraction=chunk|slide|uniform|random",
        help="Find hard cuts (each file is decoded once, small) and let no clip straddle one.",
    )
    is_i2v: bool | None = option(
        None,
        help="TI2V: whether the first frame of these clips is always (true) or never (false) given; none follows "
        "i2v_probability. I2V models are always given it.",
    )

    @field_validator("num_frames", mode="after")
    @classmethod
    def _positive(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if not value or min(value) < 1:
            raise ValueError("must be at least 1")
        return value

    @model_validator(mode="after")
    def _range(self) -> VideoOptions:
        least = "num_frames" if self.min_frames is None else "min_frames"
        value = min(self.num_frames) if self.min_frames is None else self.min_frames
        if self.max_frames is not None and self.max_frames < value:
            raise ValueError(f"cannot hold: max_frames {self.max_frames} is below {least} {value}")
        return self

    @property
    def by_length(self) -> bool:
        """Whether a clip is as long as its source, so that buckets are by length."""
        return self.extraction == "full" or (self.extraction == "head" and self.bucket_strategy == "resolution_frames")


class ParquetOptions(Group):
    """The "parquet" object of an entry: a table of what is in the files. It may be parquet, CSV, TSV or JSONL."""

    path: Path | None = option(None, help="The table; its ending tells the format.")
    filename_column: str = option("filename", help="Column of the files: a path inside the dataset, a name or a stem.")
    caption_column: str = option("caption", help="Column of the captions; a list holds variants.")
    fallback_caption_column: str | None = option(None, help="Column that is taken where the caption is empty.")
    width_column: str = option("width", help="Column of the width in pixels, as shown.")
    height_column: str = option("height", help="Column of the height in pixels, as shown.")
    num_frames_column: str = option("num_frames", help="Column of the number of frames.")
    fps_column: str = option("fps", help="Column of the frames a second.")


class DatasetOptions(Group):
    """One entry of the dataset file."""

    id: str = option("", help="Name of the entry; every entry has one of its own.")
    type: str = option(
        "local",
        choices=("local", "csv", "huggingface", "aws"),
        help="Where the files are: local is a folder, csv a table that names them, huggingface a dataset of the hub or "
        "of its library, aws a bucket of S3 or a service like it (which may hold caches, too).",
    )
    dataset_type: str = option(
        "image",
        choices=(
            "video",
            "image",
            "eval",
            "conditioning",
            "text_embeds",
            "image_embeds",
            "conditioning_image_embeds",
        ),
        help="What it holds: video or image to train on, eval to measure the loss on alone, conditioning for pictures "
        "that are the first frames of another dataset's clips; or a cache: text_embeds of encoded captions, "
        "image_embeds of latents, conditioning_image_embeds of CLIP embeddings. An entry that names none is a "
        'video dataset when it has a "video" object.',
    )
    disabled: bool = option(False, help="Leave this entry out.")
    instance_data_dir: Path | None = option(None, help="Folder of the files; searched with its subfolders.")
    metadata_backend: str = option(
        "discovery",
        choices=("discovery", "parquet", "csv"),
        aliases={"json": "discovery", "huggingface": "discovery"},
        help="Where sizes and lengths come from; discovery reads the files, the others a table (see parquet).",
    )
    parquet: ParquetOptions = option(
        None,
        factory=ParquetOptions,
        help="The table of metadata_backend and caption_strategy parquet, csv and jsonl: its path and columns.",
    )
    caption_strategy: str = option(
        "textfile",
        choices=("textfile", "filename", "instanceprompt", "parquet", "csv", "jsonl", "huggingface", "none"),
        help="Where captions come from; textfile is NAME.txt beside NAME.mp4, one variant a line; filename the words "
        "of the file's name; parquet, csv and jsonl a table; huggingface a column; none trains without.",
    )
    instance_prompt: str | None = option(None, help="The caption of instanceprompt; what is put before the others.")
    only_instance_prompt: bool = option(False, help="Use instance_prompt alone, whatever caption_strategy is.")
    prepend_instance_prompt: bool = option(False, help="Put instance_prompt before each caption.")
    caption_filter_list: Path | tuple[str, ...] | None = option(
        None,
        help="Edits of captions: a text file of one a line, or a list. A plain text is removed, "
        '"s/PATTERN/REPLACEMENT/" replaces a regular expression (a letter i after it: in any case).',
    )
    caption_shuffle_count: int = option(
        0, minimum=0, help="Captions of tags: train on this many orders of them instead of the one written; 0 is off."
    )
    caption_shuffle_keep: int = option(
        0, minimum=0, applies="caption_shuffle_count", help="So many tags at the beginning stay where they are."
    )
    caption_separator: str = option(",", applies="caption_shuffle_count", help="What stands between tags.")
    resolution: Resolution = _from_config("resolution")
    resolutions: Resolutions = option(
        (), help='Train each clip at each of these, in place of resolution: [480, 720] or ["832x480", 320].'
    )
    resolution_type: str = _from_config("resolution_type")
    minimum_image_size: float | None = _from_config("minimum_image_size")
    maximum_image_size: float | None = _from_config("maximum_image_size")
    target_downsample_size: float | None = _from_config("target_downsample_size")
    crop: bool = option(False, help="Crop to crop_aspect; without it each source keeps its aspect ratio.")
    crop_style: str = option(
        "center",
        choices=("center", "random", "corner", "face"),
        aliases={"centre": "center"},
        help="Which part stays: the middle, a part chosen by random_seed and the file's name, the upper left corner, "
        "or that around the largest face of the middle frame (the middle where there is none).",
    )
    crop_aspect: str = option(
        "square",
        choices=("square", "preserve", "closest", "random"),
        applies="crop",
        help="The aspect ratio that is cropped to: square, preserve (the source's), closest or random of "
        "crop_aspect_buckets.",
    )
    crop_aspect_buckets: Numbers = option(
        (), applies="crop_aspect=closest|random", help="The aspect ratios of closest and random, width / height."
    )
    random_seed: int = option(0, minimum=0, help="Seed of random crops, aspect ratios, clips and orders of tags.")
    minimum_aspect_ratio: float | None = option(None, minimum=0, help="Narrower sources are left out.")
    maximum_aspect_ratio: float | None = option(None, minimum=0, help="Wider sources are left out.")
    aspect_bucket_rounding: int = _from_config("aspect_bucket_rounding")
    repeats: int = option(0, minimum=0, help="How many extra times each sample is seen in an epoch; 0 is once.")
    probability: float = option(
        1.0, minimum=0, help="Weight of this dataset beside the others; 0.5 is drawn half as often."
    )
    start_epoch: int = option(1, minimum=0, unit="epochs", help="First epoch it is used in.")
    end_epoch: int | None = option(None, minimum=1, unit="epochs", help="Last epoch it is used in.")
    start_step: int = option(0, minimum=0, unit="steps", help="First step it is used in.")
    end_step: int | None = option(None, minimum=1, unit="steps", help="Last step it is used in.")
    is_regularisation_data: bool = option(
        False, help="Train on it towards the base model's own prediction, so that what it shows stays as it was."
    )
    cache_dir_vae: Path | None = option(
        None, restart_safe=True, help="Folder of the latents; none takes cache_dir/vae/ID."
    )
    cache_dir: Path | None = option(
        None, restart_safe=True, help="Folder of a cache entry; none takes cache_dir/text, cache_dir/ID for the others."
    )
    default: bool = option(False, restart_safe=True, help="The text_embeds entry of datasets that name none.")
    text_embeds: str | None = option(
        None, restart_safe=True, help="Id of the text_embeds entry that holds this dataset's captions."
    )
    image_embeds: str | None = option(
        None, restart_safe=True, help="Id of the image_embeds entry that holds this dataset's latents."
    )
    write_batch_size: int | None = option(
        None,
        minimum=1,
        unit="records",
        restart_safe=True,
        help="Most records of one cache file; none takes the config's.",
    )
    vae_cache_clear_each_epoch: bool = option(
        False,
        applies="crop_style=random",
        help="Draw random crops anew in each epoch; after 16 they come round again. All are encoded before training.",
    )
    hash_filenames: bool = option(
        True, restart_safe=True, help="Of no effect: caches are named after content. Kept for old files."
    )
    conditioning_data: Words = option(
        (),
        help="Id of the conditioning entry whose pictures are the first frames of this one's clips, for I2V training; "
        "a picture belongs to the clip of the same name (a.png to a.mp4).",
    )
    conditioning_type: str | None = option(
        None,
        choices=("reference_strict",),
        applies="conditioning_data",
        help="What they are: reference_strict, a picture that is cut as its clip is.",
    )
    conditioning_image_embeds: str | None = option(
        None, restart_safe=True, help="Id of the conditioning_image_embeds entry of this dataset."
    )
    cache_dir_conditioning_image_embeds: Path | None = option(
        None, applies="conditioning_image_embeds", restart_safe=True, help="Folder of that cache."
    )
    csv_file: Path | None = option(
        None,
        help="The table of type csv (columns video,prompt, or named below); else one of captions or metadata.",
    )
    csv_caption_column: str = option(
        "caption", applies="type=csv", help="Column of the captions; prompt or text is taken where there is no caption."
    )
    csv_video_column: str = option(
        "video",
        applies="type=csv",
        help="Column of the files or addresses; file_name, path ... where there is no video.",
    )
    csv_cache_dir: Path | None = option(
        None,
        applies="type=csv",
        restart_safe=True,
        help="Folder for files that are downloaded; none is one below the dataset's cache.",
    )
    dataset_name: str | None = option(
        None, applies="type=huggingface", help="Dataset on the hub (user/name), or a folder of this machine."
    )
    dataset_config: str | None = option(None, applies="type=huggingface", help="Its configuration.")
    split: str = option("train", applies="type=huggingface", help="Its split.")
    revision: str | None = option(None, applies="type=huggingface", help="Its branch, tag or commit.")
    caption_column: str | None = option(
        None, applies="type=huggingface", help="Its column of captions; none takes the one that can be meant."
    )
    video_column: str | None = option(
        None, applies="type=huggingface", help="Its column of videos; none takes the one that can be meant."
    )
    image_column: str | None = option(
        None, applies="type=huggingface", help="Its column of images; none takes the one that can be meant."
    )
    streaming: bool = option(
        False,
        applies="type=huggingface",
        restart_safe=True,
        help="Read it once, row by row, into the cache instead of loading it as a whole.",
    )
    huggingface: dict[str, Any] | None = option(
        None, applies="type=huggingface", help="The eight keys before this one as one object, which goes before them."
    )
    aws_bucket_name: str | None = option(None, applies="type=aws", help="The bucket.")
    aws_endpoint_url: str | None = option(
        None, applies="type=aws", restart_safe=True, help="Address of the service; none is AWS."
    )
    aws_region_name: str | None = option(None, applies="type=aws", restart_safe=True, help="Its region.")
    aws_data_prefix: str = option("", applies="type=aws", help="Folder in the bucket, of the files or of the cache.")
    aws_access_key_id: str | None = option(
        None,
        applies="type=aws",
        restart_safe=True,
        secret=True,
        help="Access key; use {env:NAME}. None leaves both to AWS' own chain (environment, profile, role).",
    )
    aws_secret_access_key: str | None = option(
        None, applies="type=aws", restart_safe=True, secret=True, help="Its secret; use {env:NAME}."
    )
    aws_max_pool_connections: int = option(
        128, minimum=1, applies="type=aws", restart_safe=True, help="Connections at a time."
    )
    video: VideoOptions = option(
        None, factory=VideoOptions, help="How videos are cut: num_frames, min_frames, bucket_strategy ..."
    )

    @field_validator("aws_endpoint_url", mode="after")
    @classmethod
    def _without_keys(cls, value: str | None) -> str | None:
        if value is not None and "@" in value.partition("://")[2].partition("/")[0]:
            raise ValueError("must not hold a name and password; use aws_access_key_id and aws_secret_access_key")
        return value

    @property
    def renews_crops(self) -> bool:
        """Whether random crops are drawn anew in each epoch."""
        return self.vae_cache_clear_each_epoch and self.crop_style == "random"

    @property
    def holds_files(self) -> bool:
        """Whether this entry is of clips or pictures, and no cache."""
        return self.dataset_type in (*TRAINING_TYPES, "eval", "conditioning")

    @property
    def is_training(self) -> bool:
        """Whether this entry holds samples to train on."""
        return self.dataset_type in TRAINING_TYPES


# Keys that hold an object of keys of their own.
NESTED: dict[str, type[Group]] = {"video": VideoOptions, "parquet": ParquetOptions}
