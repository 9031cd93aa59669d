"""Settings that must stand before torch is imported: small kernels, and other programs on the machine."""

import os

from hypothesis import settings

from simplewan.reporting.quiet import settle_environment

settle_environment(os.environ)
# The same examples every time; HYPOTHESIS_PROFILE=explore looks further.
settings.register_profile("steady", derandomize=True, deadline=None)
settings.register_profile("explore", max_examples=2000, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "steady"))
