"""The records that scanning makes: samples, what was dropped and why, and what there is to say.

Imports `buckets` and the places of files. A Sample holds everything that decides its pixels, so that caches can name
what they hold.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from simplewan.data.backends import Source
from simplewan.data.buckets import Clip
from simplewan.data.mediainfo import MediaInfo


@dataclass(frozen=True)
class Sample:
    """One clip of a dataset. `content` names the file's bytes (their SHA-256, or what the place knows them by).

    `crops` are further cuts of the clip, for the epochs after the first, in turn. `described` is what a table says is
    in the file, where the file itself was not looked at.
    """

    id: str
    dataset: str
    source: Source
    content: str
    captions: tuple[str, ...]
    clip: Clip
    crops: tuple[Clip, ...] = ()
    described: MediaInfo | None = None

    @property
    def path(self) -> str:
        """Where its file lies, for people."""
        return str(self.source)

    @property
    def name(self) -> str:
        """The path inside the dataset, and which clip of the file it is where there may be several."""
        return self.id.removeprefix(f"{self.dataset}/")

    def crop_name(self, epoch: int) -> str:
        """What the cut of an epoch (from 0) is called: the first one's name is the sample's."""
        number = epoch % (1 + len(self.crops))
        return f"{self.id}, crop {number + 1}" if number else self.id

    def cut(self, epoch: int) -> Sample:
        """The sample as it is cut in an epoch, under the name of the cut."""
        clips = (self.clip, *self.crops)
        return replace(self, id=self.crop_name(epoch), clip=clips[epoch % len(clips)], crops=())

    @property
    def bucket(self) -> str:
        """Samples of one bucket have the same shape: "832x480@73"."""
        return self.clip.bucket


@dataclass(frozen=True)
class Dropped:
    """A file that is not trained on. `kind` groups reasons; `frames` is how many a clip of the wrong length has."""

    name: str
    reason: str
    kind: str = "not usable"
    frames: int | None = None

    def __str__(self) -> str:
        return f"{self.name} ({self.reason})"


@dataclass(frozen=True)
class Scan:
    """What a dataset holds: samples sorted by id, dropped files sorted by name, announcements, and, by path inside the
    dataset, what is in the files that are used."""

    samples: tuple[Sample, ...]
    dropped: tuple[Dropped, ...]
    notices: tuple[str, ...]
    dataset: str = ""
    folder: str = ""
    sources: Mapping[str, MediaInfo] = field(default_factory=dict)

    @property
    def buckets(self) -> dict[str, int]:
        """How many samples each bucket holds, the fullest first."""
        return dict(Counter(sample.bucket for sample in self.samples).most_common())
