"""What the tests of caches share."""

from __future__ import annotations

from functools import partial

from simplewan.caches.fill import fill
from simplewan.events import silent

# `fill` for those who do not look at what it says; any of these may be given anew.
fill_quietly = partial(fill, batch_size=1, label="L", key="k", emit=silent, check=lambda: None)


def origin(name: str, **components: object) -> dict:
    """What a record says of the item that it was made of."""
    return {"names": [name], "components": {"content": name, **components}}
