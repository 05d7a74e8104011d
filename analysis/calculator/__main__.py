"""`python -m analysis.calculator [FILE]`: the calculator as a page of its own, without a report around it."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from analysis.calculator import fragment, standalone


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m analysis.calculator", description=__doc__)
    parser.add_argument("file", nargs="?", type=Path, default=Path("calculator.html"), help="default: calculator.html")
    target: Path = parser.parse_args(words).file
    try:
        target.write_text(standalone(fragment()), encoding="utf-8")
    except OSError as refused:
        print(f"error: {target} cannot be written: {refused.strerror}", file=sys.stderr)
        return 1
    print(f"{target}: {target.stat().st_size / 1000:.0f} kB, opens from disk")
    return 0


if __name__ == "__main__":
    sys.exit(main())
