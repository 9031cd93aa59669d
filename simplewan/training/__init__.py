"""The training loop, its roles, optimisers, learning rates and signals. See loop.py."""
