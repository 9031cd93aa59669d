"""simplewan: a config-driven trainer for the Wan 2.1 and 2.2 video models."""

__version__ = "0.1.0"
