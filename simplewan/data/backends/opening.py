"""Opening the place that an entry of the dataset file names: for its files, or for a cache.

Imports this package, errors, events, and options for their types alone; each place's own module when it is opened.
Nothing is asked of a network here. What an entry lacks is a UserError.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simplewan.data.backends.base import Backend, WritableBackend
from simplewan.data.backends.local import LocalBackend
from simplewan.errors import Problem, UserError
from simplewan.events import Emit, Progress, silent

if TYPE_CHECKING:
    from simplewan.options.datasets import DatasetOptions

# Strategies that take captions from the place itself. The default one reads text files, where there are any.
_FROM_THE_PLACE = ("textfile", "csv", "huggingface")


@dataclass(frozen=True)
class _Opening:
    """What every kind of place may need: the entry, the folder of its cache, who listens, and who may stop it."""

    dataset: DatasetOptions
    cache: Path
    emit: Emit
    check: Callable[[], None]

    @property
    def needs_captions(self) -> bool:
        asked = self.dataset.caption_strategy in _FROM_THE_PLACE and not self.dataset.only_instance_prompt
        return asked and self.dataset.parquet.path is None

    def missing(self, key: str, fix: str) -> UserError:
        return UserError(Problem(f'dataset "{self.dataset.id}"', "is missing", key, fix=fix))

    def wrong(self, key: str, value: object, message: str, fix: str | None = None) -> UserError:
        return UserError(Problem(f'dataset "{self.dataset.id}"', message, key, value, fix))


def open_backend(
    dataset: DatasetOptions, *, cache: Path, emit: Emit, check: Callable[[], None] = lambda: None
) -> Backend:
    """The place of a dataset's files. What is downloaded goes below `cache`, unless the entry says where.

    `check` may raise to stop a long listing. Raises UserError when the entry lacks something, or names what is not
    there; listing may raise more.
    """
    openers = {"local": _open_local, "csv": _open_csv, "huggingface": _open_hub, "aws": _open_s3}
    return openers[dataset.type](_Opening(dataset, cache, emit, check))


def open_cache_backend(dataset: DatasetOptions) -> WritableBackend | None:
    """The bucket that holds the cache of a text_embeds entry or its like; None where the cache is a local folder."""
    opening = _Opening(dataset, Path(), silent, lambda: None)
    if dataset.type == "local":
        return None
    if dataset.type != "aws":
        fix = "a cache can be in a folder (local) or in a bucket (aws)"
        raise opening.wrong("type", dataset.type, "cannot hold a cache", fix)
    return _open_s3(opening)


def _open_local(opening: _Opening) -> Backend:
    return LocalBackend(_folder(opening))


def _folder(opening: _Opening) -> Path:
    written = opening.dataset.instance_data_dir
    if written is None:
        raise opening.missing("instance_data_dir", "name the folder of the files")
    folder = Path(written).expanduser().absolute()
    if not folder.is_dir():
        what = "is a file, not a folder" if folder.exists() else "is a folder that does not exist"
        raise opening.wrong("instance_data_dir", str(written), what)
    return folder


def _open_csv(opening: _Opening) -> Backend:
    from simplewan.data.backends.csv_table import CAPTION_COLUMN, FILE_COLUMN, CsvBackend
    from simplewan.data.backends.web import Downloads

    dataset = opening.dataset
    if dataset.csv_file is None:
        raise opening.missing("csv_file", "name the table of the files")
    table = Path(dataset.csv_file).expanduser().absolute()
    if not table.is_file():
        what = "is a folder, not a file" if table.exists() else "is a file that does not exist"
        raise opening.wrong("csv_file", str(dataset.csv_file), what)
    video, caption = dataset.csv_video_column, dataset.csv_caption_column

    def tell(count: int, total: int) -> None:
        opening.emit(Progress("scan", f"Asking for {dataset.id}", count, total, "files"))
        opening.check()

    return CsvBackend(
        table,
        base=table.parent if dataset.instance_data_dir is None else _folder(opening),
        downloads=Downloads((dataset.csv_cache_dir or opening.cache / "downloads").expanduser().absolute()),
        file_column=video if video != FILE_COLUMN else None,
        caption_column=caption if caption != CAPTION_COLUMN else None,
        needs_captions=opening.needs_captions,
        dataset=dataset.id,
        tell=tell,
    )


@dataclass(frozen=True)
class _HubKeys:
    """The keys of a dataset on the hub, which may stand in the entry or in its "huggingface" object."""

    dataset_name: str | None
    dataset_config: str | None
    split: str
    revision: str | None
    caption_column: str | None
    video_column: str | None
    image_column: str | None
    streaming: bool


def _hub_keys(opening: _Opening) -> _HubKeys:
    dataset = opening.dataset
    known = [item.name for item in fields(_HubKeys)]
    nested: dict[str, Any] = dict(dataset.huggingface or {})
    for key in nested:
        if key not in known:
            raise opening.wrong(f"huggingface.{key}", None, "is not a key", f"its keys: {', '.join(known)}")
        value, wanted = nested[key], bool if key == "streaming" else str
        if not isinstance(value, wanted) and value is not None:
            raise opening.wrong(f"huggingface.{key}", value, f"is not {'true or false' if wanted is bool else 'text'}")
    given = {key: value for key, value in nested.items() if value is not None}
    return _HubKeys(**{key: given.get(key, getattr(dataset, key)) for key in known})


def _open_hub(opening: _Opening) -> Backend:
    from simplewan.data.backends.hub import HubBackend
    from simplewan.data.backends.hub_loading import Wanted

    keys = _hub_keys(opening)
    if not keys.dataset_name:
        raise opening.missing("dataset_name", "name a dataset of the hub (user/name), or a folder")
    return HubBackend(
        Wanted(keys.dataset_name, keys.dataset_config, keys.split, keys.revision, opening.dataset.id),
        cache=opening.cache / "huggingface",
        kind="image" if opening.dataset.dataset_type == "image" else "video",
        video_column=keys.video_column,
        image_column=keys.image_column,
        caption_column=keys.caption_column,
        streaming=keys.streaming,
        needs_captions=opening.needs_captions,
        emit=opening.emit,
        check=opening.check,
    )


def _open_s3(opening: _Opening) -> WritableBackend:
    from simplewan.data.backends.s3 import S3Backend

    dataset = opening.dataset
    if not dataset.aws_bucket_name:
        raise opening.missing("aws_bucket_name", "name the bucket")
    keys = {"aws_access_key_id": dataset.aws_access_key_id, "aws_secret_access_key": dataset.aws_secret_access_key}
    if (lacking := [key for key, value in keys.items() if not value]) and len(lacking) < len(keys):
        raise opening.missing(lacking[0], "give both keys, or neither: then AWS' own chain finds some")
    try:
        return S3Backend(
            dataset.aws_bucket_name,
            dataset.aws_data_prefix,
            endpoint=dataset.aws_endpoint_url or None,
            region=dataset.aws_region_name or None,
            access_key=dataset.aws_access_key_id or None,
            secret_key=dataset.aws_secret_access_key or None,
            connections=dataset.aws_max_pool_connections,
        )
    except ValueError as error:
        raise opening.wrong("aws_endpoint_url", None, str(error)) from None
