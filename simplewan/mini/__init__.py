"""The miniature: drawn clips and a tiny Wan, made locally and offline from a seed.

What lives here: `draw` (scenes, their pixels and captions), `clips` (the data set on disk), `measure` and `score`
(what is seen in a clip, and how much of it was asked for), `model` (the tiny model folder), `example` (data set and
model under one folder, once). May import the rooms to its left; numpy, torch, diffusers and transformers. The
trade-off: everything is generated, so that the package stays small and nothing is downloaded; the price is a few
seconds at the first start.
"""
