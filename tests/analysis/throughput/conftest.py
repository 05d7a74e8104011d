"""The made-up rows, importable by the tests beside this file."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

_SPEC = importlib.util.spec_from_file_location("made_up_speed", Path(__file__).with_name("made_up.py"))
assert _SPEC is not None and _SPEC.loader is not None
_MODULE = importlib.util.module_from_spec(_SPEC)
sys.modules["made_up_speed"] = _MODULE
_SPEC.loader.exec_module(_MODULE)
