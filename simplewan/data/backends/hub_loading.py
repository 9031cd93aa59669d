"""Loading a dataset with the `datasets` library, and choosing its columns; every failure in words for people.

Imports errors; the libraries when something is loaded. A name that is a folder of this machine is that folder, whether
it was written with `save_to_disk` or holds Parquet files, or clips as the library lays them out.
"""

from __future__ import annotations

import hashlib
import tarfile
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from simplewan.errors import Problem, UserError, shorten

CAPTION_COLUMNS = ("caption", "text", "prompt")
PATH_COLUMNS = (
    "video",
    "image",
    "file_name",
    "filename",
    "file",
    "path",
    "url",
    "video_path",
    "image_path",
    "video_url",
)
LOCAL = (
    "download it where there is a network, and name the local folder instead (Parquet files, clips, or save_to_disk)"
)


@dataclass(frozen=True)
class Wanted:
    """Which dataset: a name on the hub, or a folder. `dataset` is the entry's id, for messages."""

    name: str
    config: str | None = None
    split: str = "train"
    revision: str | None = None
    dataset: str = ""

    @property
    def folder(self) -> Path | None:
        """The folder, if it is one of this machine."""
        path = Path(self.name).expanduser()
        return path.absolute() if path.is_dir() else None

    def __str__(self) -> str:
        revision = f"@{self.revision}" if self.revision else ""
        return ":".join(filter(None, (f"{self.folder or self.name}{revision}", self.config, self.split)))

    def problem(
        self, message: str, *, fix: str | None = None, key: str = "dataset_name", value: object = None
    ) -> UserError:
        """What is wrong with it, as an error for people."""
        return UserError(Problem(f'dataset "{self.dataset}"', message, key, value or self.name, fix))


def failures() -> tuple[type[Exception], ...]:
    """Everything that loading a dataset, or reading from the hub, raises when it fails."""
    import aiohttp
    import pyarrow
    from datasets.exceptions import DatasetsError
    from huggingface_hub.errors import HfHubHTTPError

    http = [kind for kind in HfHubHTTPError.__mro__ if kind.__name__ == "HTTPError"]  # of the library that the hub uses
    known = OSError, ValueError, RuntimeError, KeyError, ImportError, DatasetsError, pyarrow.ArrowException
    archives = zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError
    return (*known, *archives, aiohttp.ClientError, *http)


def load(wanted: Wanted, *, streaming: bool) -> Any:
    """The dataset, media not decoded. Raises UserError."""
    folder = wanted.folder
    if folder is None and (len(Path(wanted.name).parts) > 2 or wanted.name.startswith((".", "~", "/"))):
        raise wanted.problem(
            "is a folder that does not exist", fix="name a folder, or a dataset of the hub (user/name)"
        )
    known = failures()
    try:
        if folder is not None and _was_saved(folder):
            return _load_saved(wanted, folder, streaming=streaming)
        import datasets
        from huggingface_hub.utils import validate_repo_id

        if folder is None:
            validate_repo_id(wanted.name)
        name = str(folder) if folder is not None else wanted.name
        revision = None if folder is not None else wanted.revision
        return datasets.load_dataset(name, wanted.config, split=wanted.split, revision=revision, streaming=streaming)
    except UserError:
        raise
    except known as error:
        raise _explain(wanted, error) from None


def identity(wanted: Wanted, *, cache: Path) -> str | None:
    """What changes whenever the dataset does: its commit on the hub, or its files. None when nobody can say.

    What lies below `cache` is ours, even if that is in the dataset's folder.
    """
    folder = wanted.folder
    if folder is not None:
        paths = (path for path in sorted(folder.rglob("*")) if path.is_file() and cache.absolute() not in path.parents)
        stats = [(path, path.stat()) for path in paths]
        files = [(path.relative_to(folder).as_posix(), stat.st_size, stat.st_mtime_ns) for path, stat in stats]
        return hashlib.sha256(repr(files).encode()).hexdigest()[:24]
    from huggingface_hub import HfApi

    try:
        return str(HfApi().dataset_info(wanted.name, revision=wanted.revision).sha)
    except failures():
        return None


def fingerprint(dataset: Any) -> str:
    """What changes whenever a loaded dataset does."""
    stats = [Path(item["filename"]).stat() for item in dataset.cache_files]
    files = [(stat.st_size, stat.st_mtime_ns) for stat in stats]
    return hashlib.sha256(repr((dataset._fingerprint, files)).encode()).hexdigest()[:16]


def _was_saved(folder: Path) -> bool:
    return (folder / "dataset_dict.json").exists() or (folder / "state.json").exists()


def _load_saved(wanted: Wanted, folder: Path, *, streaming: bool) -> Any:
    import datasets

    found = datasets.load_from_disk(str(folder))
    if isinstance(found, datasets.DatasetDict):
        if wanted.split not in found:
            raise wanted.problem(f"is not one of {', '.join(found)}", key="split", value=wanted.split)
        found = found[wanted.split]
    return found.to_iterable_dataset() if streaming else found


def _explain(wanted: Wanted, error: Exception) -> UserError:
    """A failure of loading as an error for people."""
    if type(error).__name__ == "DatasetGenerationError" and isinstance(error.__cause__, Exception):
        error = error.__cause__  # what the library says of itself is less
    said = shorten((str(error).strip() or type(error).__name__).splitlines()[0], 300)
    if wanted.folder is not None:
        if isinstance(error, FileNotFoundError):
            return wanted.problem("holds no files that make a dataset", fix="Parquet files, clips, or save_to_disk's")
        return wanted.problem(f"cannot be loaded: {said}", fix="check split and dataset_config")
    names = [kind.__name__ for kind in type(error).__mro__]
    if "HFValidationError" in names:
        return wanted.problem("is neither a folder nor a name of the hub (user/name)")
    if "GatedRepoError" in names or " gated " in said:
        return wanted.problem(
            f"asks for a sign-in: {said}", fix="accept its terms, then run hf auth login or set HF_TOKEN"
        )
    if "DatasetNotFoundError" in names or "RepositoryNotFoundError" in names:
        return wanted.problem(f"is not on the hub, or private: {said}", fix="check the name, or run hf auth login")
    if isinstance(error, (ValueError, RuntimeError, KeyError, ImportError)) and not isinstance(error, OSError):
        return wanted.problem(f"cannot be loaded: {said}", fix="check split, dataset_config and revision")
    offline = " (HF_HUB_OFFLINE is set)" if "OfflineMode" in said or "OfflineModeIsEnabled" in names else ""
    return wanted.problem(f"cannot be reached on the hub{offline}: {said}", fix=LOCAL)


@dataclass(frozen=True)
class Columns:
    """The columns that are read, and what there is to say about the choice."""

    media: str
    caption: str | None
    remarks: tuple[str, ...]

    @property
    def names(self) -> list[str]:
        return list(dict.fromkeys(filter(None, (self.media, self.caption))))


def choose_columns(
    wanted: Wanted,
    features: Mapping[str, Any],
    *,
    video: str | None,
    image: str | None,
    caption: str | None,
    kind: str,
    needs_captions: bool,
) -> Columns:
    """The column of the files and that of the captions. Raises UserError when what is not named is not clear.

    `kind` is the dataset's type: that of an image dataset takes images where there are both.
    """
    remarks: list[str] = []
    key, named = ("image_column", image) if image and (kind == "image" or not video) else ("video_column", video)
    media = _named(wanted, features, key, named)
    if media is None:
        media = _only(wanted, _media(features, kind), features, "of videos or images", f"{kind}_column")
        remarks.append(f'the files are taken from the column "{media}" ({kind}_column names another)')
    found = _named(wanted, features, "caption_column", caption)
    if found is None and needs_captions:
        usual = [column for column in CAPTION_COLUMNS if column in features]
        texts = [name for name, feature in features.items() if _type(feature) in ("string", "large_string")]
        candidates = usual or [name for name in texts if name != media]
        found = _only(wanted, candidates, features, "of captions", "caption_column")
        remarks.append(f'the captions are taken from the column "{found}" (caption_column names another)')
    return Columns(media, found if needs_captions else None, tuple(remarks))


def _named(wanted: Wanted, features: Mapping[str, Any], key: str, named: str | None) -> str | None:
    if named is not None and named not in features:
        raise wanted.problem(f"is no column of {wanted}, which has {', '.join(features)}", key=key, value=named)
    return named


def _only(wanted: Wanted, candidates: Sequence[str], features: Mapping[str, Any], what: str, key: str) -> str:
    if len(candidates) == 1:
        return candidates[0]
    if not candidates:
        raise wanted.problem(f"has no column {what}: it has {', '.join(features)}", fix=f"name it with {key}")
    raise wanted.problem(f"has several columns {what}: {', '.join(candidates)}", fix=f"name one with {key}")


def _media(features: Mapping[str, Any], kind: str) -> Sequence[str]:
    """The columns that may hold the files: those of the fitting kind, of the other, of bytes, of paths."""
    videos = [name for name, feature in features.items() if type(feature).__name__ == "Video"]
    images = [name for name, feature in features.items() if type(feature).__name__ == "Image"]
    binary = [name for name, feature in features.items() if _type(feature) in ("binary", "large_binary", "file")]
    paths = [name for name in PATH_COLUMNS if name in features and _type(features[name]) in ("string", "large_string")]
    first, second = (images, videos) if kind == "image" else (videos, images)
    return first or second or binary or paths


def _type(feature: Any) -> str:
    """The kind of a column: the type of its values, or "file" for a pair of bytes and path."""
    if isinstance(feature, dict):
        return "file" if "bytes" in feature else "object"
    if type(feature).__name__ in ("Video", "Image"):
        return "file"
    return str(getattr(feature, "dtype", ""))
