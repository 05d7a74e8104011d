"""`python -m analysis`: predict, fit, tables and the rest. `python -m analysis --help` lists them."""

import sys

from analysis.cli import main


class _WithoutPandas:
    """Wherever there is pandas, pyarrow imports it to ask whether a sequence is one of its own: half a second of every
    command that reads a set, and none of them needs it. To pyarrow it is not installed here."""

    @staticmethod
    def find_spec(name: str, path: object = None, target: object = None) -> None:
        if name == "pandas":
            raise ModuleNotFoundError("not used by python -m analysis", name=name)


if __name__ == "__main__":
    sys.meta_path.insert(0, _WithoutPandas)
    sys.exit(main())
