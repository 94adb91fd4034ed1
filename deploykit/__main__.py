"""`python -m deploykit`: the command line without its entry point."""

import sys

from deploykit.cli import main

sys.exit(main())
