"""`python -m analysis`: predict, fit, tables and the rest. `python -m analysis --help` lists them."""

import sys

from analysis.cli import main

sys.exit(main())
