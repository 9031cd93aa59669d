"""Where the files of a dataset, or the records of a cache, are: one small protocol, and a module for each place.

Imports errors, and options for their types alone; the library of a place is imported when it is opened. Paths are
relative to the root, with "/" between the parts, on every system. Source files are only ever read: writing and
deleting are for caches.
"""

from simplewan.data.backends.base import Backend, Captioned, Entry, Refused, Source, WritableBackend
from simplewan.data.backends.local import LocalBackend

__all__ = ["Backend", "Captioned", "Entry", "LocalBackend", "Refused", "Source", "WritableBackend"]
