"""Wan 2.1 and 2.2 over diffusers' modules: loading, forward, VAE, text."""
