"""Settings that must stand before torch is imported: small kernels, and other programs on the machine."""

import os

from simplewan.reporting.quiet import settle_environment

settle_environment(os.environ)
