"""Every option, declared once, and the loading of a run's configuration. Imports pydantic, never torch."""

from simplewan.options.catalogue import Options
from simplewan.options.datasets import DatasetOptions, VideoOptions
from simplewan.options.load import Loaded, load
from simplewan.options.written import changed_keys

__all__ = ["DatasetOptions", "Loaded", "Options", "VideoOptions", "changed_keys", "load"]
