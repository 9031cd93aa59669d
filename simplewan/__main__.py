"""`python -m simplewan`: the same as the command `simpletuner`."""

import sys

from simplewan.cli import main

sys.exit(main())
