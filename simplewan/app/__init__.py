"""Where it is all put together: a function per command. Importing this room imports torch."""

from simplewan.app.train import train

__all__ = ["train"]
