"""One section of the report: what a part of the project hands over, and the page puts together."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Fragment:
    """A section of a self-contained page.

    `html` is the inside of the section, below its heading. `style` may use the page's colours (`var(--text)`,
    `--muted`, `--bg`, `--surface`, `--line`, `--accent`, `--good`, `--warn`, `--bad`, `--c1` to `--c8`) and must
    name only things inside `#<anchor>`. `script` runs once, after the page is there, as the body of a function with
    two arguments: `root`, the section's element, and `data`, which is `data` below, sent as JSON. Nothing may ask the
    network for anything. Whatever comes from a log, a configuration or a result set must be escaped in `html`
    and be set as text, never as markup, in `script`.
    """

    anchor: str
    title: str
    html: str
    style: str = ""
    script: str = ""
    data: dict[str, Any] = field(default_factory=dict)
