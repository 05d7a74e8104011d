"""What an installed vLLM's files say: found by name, read as text, never imported."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path


@dataclass(frozen=True)
class Source:
    """The folder of a vllm package, and its version."""

    folder: Path
    version: str

    def module(self, name: str) -> Path | None:
        """File of a module such as `vllm.entrypoints.api_server`; None where there is none."""
        stem = self.folder.parent.joinpath(*name.split("."))
        for path in (stem.with_suffix(".py"), stem / "__init__.py"):
            if path.is_file():
                return path
        return None

    @cached_property
    def routes(self) -> frozenset[str]:
        """Paths that the HTTP server's modules name as a string literal, such as `/metrics`."""
        pattern = re.compile(r"""["'](/[a-z][a-z0-9_/{}-]*)["']""")
        return frozenset(found for text in self._texts("entrypoints") for found in pattern.findall(text))

    def says(self, words: str) -> bool:
        """Whether any module contains these words, in any case."""
        return any(words.lower() in text.lower() for text in self._texts("."))

    def cache_default(self, field: str) -> float | None:
        """Default of a field of vLLM's CacheConfig; None where it cannot be read."""
        path = self.folder / "config" / "cache.py"
        if not path.is_file():
            return None
        try:
            tree = ast.parse(path.read_text(encoding="utf-8", errors="replace"))
        except SyntaxError:
            return None
        for node in ast.walk(tree):
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.target.id == field:
                value = node.value
                if isinstance(value, ast.Call):
                    named = [one.value for one in value.keywords if one.arg == "default"]
                    value = named[0] if named else next(iter(value.args), None)
                if isinstance(value, ast.Constant) and isinstance(value.value, int | float):
                    return float(value.value)
        return None

    def _texts(self, folder: str) -> Iterator[str]:
        for path in sorted((self.folder / folder).rglob("*.py")):
            try:
                yield path.read_text(encoding="utf-8", errors="replace")
            except OSError:
                continue


def find() -> Source | None:
    """The vLLM of this Python, without importing it; None where there is none."""
    import importlib.metadata
    import importlib.util

    try:
        spec = importlib.util.find_spec("vllm")
        version = importlib.metadata.version("vllm")
    except (ImportError, ValueError):
        return None
    places = list(spec.submodule_search_locations or []) if spec else []
    return Source(Path(places[0]), version) if places else None


def at(folder: Path) -> Source:
    """The vLLM in a folder, such as an unpacked wheel or a checkout. Raises ValueError."""
    package = folder if folder.name == "vllm" else folder / "vllm"
    if not (package / "entrypoints").is_dir():
        raise ValueError(f"{folder} holds no vLLM: there is no folder {package / 'entrypoints'}")
    infos = sorted(package.parent.glob("vllm-*.dist-info"))
    version = infos[0].name.removeprefix("vllm-").removesuffix(".dist-info") if infos else "unknown"
    return Source(package, version)
