"""The entries of the dataset file (multidatabackend.json): every key, declared as the other options are.

What lives here: `DatasetOptions` and its nested `VideoOptions`. Imports the declarations and pydantic. The trade-off:
one model for all kinds of entry, as in the file itself; what a kind does not use is ignored.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import model_validator

from simplewan.options.declare import Group, declarations, option
from simplewan.options.groups.data import DataOptions
from simplewan.options.values import Numbers, Resolution, Words

_CSV = "datasets from a CSV file"
_HUB = "datasets from the Hugging Face hub"
_CAPTIONS = "other sources of captions"
_LINKS = "conditioning from another dataset"
_MIX = "mixing datasets by weight or time"
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

    num_frames: int = option(
        81, minimum=1, unit="frames", help="Frames to train on, rounded down to 4n+1 (75 gives 73); an image has 1."
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
        choices=("head",),
        later_choices={
            "chunk": "several clips a file",
            "slide": "several clips a file",
            "uniform": "several clips a file",
            "full": "whole files as one clip",
        },
        help="Which part of a longer source is used; head is its beginning.",
    )
    is_i2v: bool | None = option(
        None,
        later="image-to-video training",
        help="Image-to-video training on this dataset; none follows the flavour.",
    )

    @model_validator(mode="after")
    def _range(self) -> VideoOptions:
        least = "num_frames" if self.min_frames is None else "min_frames"
        if self.max_frames is not None and self.max_frames < getattr(self, least):
            raise ValueError(f"cannot hold: max_frames {self.max_frames} is below {least} {getattr(self, least)}")
        return self


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
        choices=("video", "image", "text_embeds"),
        later_choices={
            "image_embeds": "a cache of latents shared by datasets",
            "conditioning_image_embeds": _LINKS,
            "conditioning": _LINKS,
            "eval": "a dataset for evaluation alone",
        },
        help="What it holds: video or image to train on, text_embeds for the cache of encoded captions. An entry that "
        'names none is a video dataset when it has a "video" object.',
    )
    disabled: bool = option(False, help="Leave this entry out.")
    instance_data_dir: Path | None = option(None, help="Folder of the files; searched with its subfolders.")
    metadata_backend: str = option(
        "discovery",
        choices=("discovery",),
        later_choices={"parquet": _CAPTIONS, "csv": _CSV, "huggingface": _HUB, "json": _CAPTIONS},
        help="Where sizes and lengths come from; discovery reads the files.",
    )
    caption_strategy: str = option(
        "textfile",
        choices=("textfile",),
        later_choices=dict.fromkeys(("filename", "instanceprompt", "parquet", "csv", "huggingface", "none"), _CAPTIONS),
        help="Where captions come from; textfile is NAME.txt beside NAME.mp4, one variant a line.",
    )
    instance_prompt: str | None = option(
        None, applies="caption_strategy=instanceprompt", help="The caption of all files."
    )
    only_instance_prompt: bool = option(False, later=_CAPTIONS, help="Use instance_prompt alone.")
    prepend_instance_prompt: bool = option(
        False, later="caption edits", help="Put instance_prompt before each caption."
    )
    caption_filter_list: Any = option(
        None, later="caption edits", help="Replacements made in captions: a file, or a list of regular expressions."
    )
    resolution: Resolution = _from_config("resolution")
    resolution_type: str = _from_config("resolution_type")
    minimum_image_size: float | None = _from_config("minimum_image_size")
    maximum_image_size: float | None = _from_config("maximum_image_size")
    target_downsample_size: float | None = _from_config("target_downsample_size")
    crop: bool = option(False, help="Crop to crop_aspect; without it each source keeps its aspect ratio.")
    crop_style: str = option(
        "center",
        choices=("center",),
        aliases={"centre": "center"},
        later_choices={"random": "random crops", "corner": "corner crops", "face": "crops around faces"},
        help="Which part stays.",
    )
    crop_aspect: str = option(
        "square",
        choices=("square", "preserve", "closest"),
        later_choices={"random": "random aspect ratios"},
        applies="crop",
        help="The aspect ratio that is cropped to: square, preserve (the source's), closest of crop_aspect_buckets.",
    )
    crop_aspect_buckets: Numbers = option(
        (), applies="crop_aspect=closest|random", help="The aspect ratios of closest and random, width / height."
    )
    minimum_aspect_ratio: float | None = option(None, minimum=0, help="Narrower sources are left out.")
    maximum_aspect_ratio: float | None = option(None, minimum=0, help="Wider sources are left out.")
    aspect_bucket_rounding: int = _from_config("aspect_bucket_rounding")
    repeats: int = option(0, minimum=0, help="How many extra times each sample is seen in an epoch; 0 is once.")
    probability: float = option(1.0, minimum=0, later=_MIX, help="Weight of this dataset when several are mixed.")
    start_epoch: int = option(1, minimum=0, unit="epochs", later=_MIX, help="First epoch it is used in.")
    end_epoch: int | None = option(None, minimum=1, unit="epochs", later=_MIX, help="Last epoch it is used in.")
    start_step: int = option(0, minimum=0, unit="steps", later=_MIX, help="First step it is used in.")
    end_step: int | None = option(None, minimum=1, unit="steps", later=_MIX, help="Last step it is used in.")
    is_regularisation_data: bool = option(
        False, later="regularisation data", help="Train on it towards the base model's own prediction."
    )
    cache_dir_vae: Path | None = option(
        None, restart_safe=True, help="Folder of the latents; none takes cache_dir/vae/ID."
    )
    cache_dir: Path | None = option(
        None, restart_safe=True, help="Folder of a text_embeds entry's cache; none takes cache_dir/text."
    )
    default: bool = option(False, restart_safe=True, help="The text_embeds entry of datasets that name none.")
    text_embeds: str | None = option(
        None, restart_safe=True, help="Id of the text_embeds entry that holds this dataset's captions."
    )
    image_embeds: str | None = option(
        None, later="a cache of latents shared by datasets", help="Id of the entry that holds this dataset's latents."
    )
    write_batch_size: int | None = option(
        None,
        minimum=1,
        unit="records",
        restart_safe=True,
        help="Most records of one cache file; none takes the config's.",
    )
    vae_cache_clear_each_epoch: bool = option(
        False, later="new crops in each epoch", help="Encode anew in each epoch (for random crops)."
    )
    hash_filenames: bool = option(
        True, restart_safe=True, help="Of no effect: caches are named after content. Kept for old files."
    )
    conditioning_data: Words = option((), later=_LINKS, help="Ids of the entries that condition this one.")
    conditioning_type: str | None = option(
        None, applies="conditioning_data", help="What they are: controlnet, mask, reference_strict, reference_loose."
    )
    conditioning_image_embeds: str | None = option(
        None, later=_LINKS, help="Id of the conditioning_image_embeds entry of this dataset."
    )
    cache_dir_conditioning_image_embeds: Path | None = option(
        None, applies="conditioning_image_embeds", restart_safe=True, help="Folder of that cache."
    )
    csv_file: Path | None = option(
        None, applies="type=csv", help="The table: CSV, TSV, JSON lines or Parquet. Its files count from its folder."
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
    parquet: dict[str, Any] | None = option(
        None, applies="metadata_backend=parquet", help="path, filename_column, caption_column, width_column ..."
    )
    video: VideoOptions = option(
        None, factory=VideoOptions, help="How videos are cut: num_frames, min_frames, bucket_strategy ..."
    )

    @property
    def is_training(self) -> bool:
        """Whether this entry holds samples to train on."""
        return self.dataset_type in TRAINING_TYPES
