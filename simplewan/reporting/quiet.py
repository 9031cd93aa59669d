"""Settles the libraries below before they are loaded: quiet, and bearable for others on the machine; silences streams.

Imports nothing until it is called. Their warnings about things that users cannot change, and their bars for loading a
few files, are switched off; errors and the hub's download bars stay.
"""

from __future__ import annotations

import logging
import os
from collections.abc import MutableMapping
from typing import TextIO

_ENVIRONMENT = {
    "TRANSFORMERS_VERBOSITY": "error",
    "DIFFUSERS_VERBOSITY": "error",
    "TOKENIZERS_PARALLELISM": "false",
}
_LOGGERS = ("bitsandbytes", "torch.distributed.elastic.multiprocessing.redirects")


# How long an idle thread of torch's CPU kernels spins before it sleeps. The library's own default spins so long that a
# second busy program on the machine slows small steps 80 times; this costs nothing on a quiet one (both measured).
_SPIN_COUNT = "10000"


def settle_environment(environ: MutableMapping[str, str]) -> None:
    """Before the libraries are imported: sets verbosity and thread behaviour, unless the user has set them."""
    environ.setdefault("GOMP_SPINCOUNT", _SPIN_COUNT)
    for name, value in _ENVIRONMENT.items():
        environ.setdefault(name, value)
    for name in _LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)


def quiet_loading_bars() -> None:
    """After torch is loaded: switches off the bars that diffusers and transformers show while they load files."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()


def silence(stream: TextIO) -> None:
    """Sends what is written to `stream` from now on nowhere, its buffer too: whoever read it (head, less) has gone."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)
