"""`python -m bench`: measure one point or a grid of them. `python -m bench --help` teaches the rest."""

import sys

from bench.cli import main

sys.exit(main())
