"""Content-addressed stores of VAE latents and text embeddings: `Item`, `Store`, `fill`.

The room imports errors and events only (and torch, safetensors); what encodes is handed in.
"""

from simplewan.caches.fill import Filled, ItemError, fill
from simplewan.caches.keys import Item, group_key
from simplewan.caches.store import Store

__all__ = ["Filled", "Item", "ItemError", "Store", "fill", "group_key"]
