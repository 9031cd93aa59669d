"""Where it is all put together: a function per command. Importing this room imports torch."""

from simplewan.app.cache import cache
from simplewan.app.sample import Outcome, Request, sample
from simplewan.app.train import train

__all__ = ["Outcome", "Request", "cache", "sample", "train"]
