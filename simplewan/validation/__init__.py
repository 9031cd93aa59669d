"""Rendering clips from prompts while training: the sampling loop, the prompts, the files.

May import rooms to the left of it, never `checkpoints` or `reporting`: they hear of it through events.
"""
