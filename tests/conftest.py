"""Settings that must stand before torch is imported: small kernels, and other programs on the machine."""

import os
from collections.abc import Iterator

import pytest
from hypothesis import settings

from simplewan.reporting.quiet import settle_environment

settle_environment(os.environ)
# The same examples every time; HYPOTHESIS_PROFILE=explore looks further.
settings.register_profile("steady", derandomize=True, deadline=None)
settings.register_profile("explore", max_examples=2000, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "steady"))


@pytest.fixture
def fresh_accelerator() -> Iterator[None]:
    """An accelerator of the test's own: accelerate keeps the first one of a process."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
