"""The miniature: a small Wan that has really learned, the drawn world it learned, and what judges it.

What lives here: `draw` (scenes, their pixels and captions), `clips` (data sets on disk), `measure` and `score` (what is
seen in frames, and how much of it was asked for), `model` (the parts, untrained, and their folder), `weights/` (the
trained model that comes with the package), `example` (an example's files under one folder, once), and what made the
weights: `make`, `train_text`, `train_vae`, `initial` (what a VAE begins with), `recipes/`.
May import the rooms to its left; numpy, torch, diffusers and transformers. The trade-off: a few megabytes of weights in
the package, so that nothing has to be fetched to try a feature or to test it.
"""
