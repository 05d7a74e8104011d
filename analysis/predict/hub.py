"""config.json of a checkpoint that only a hub knows. Standard library only."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

TIMEOUT_S = 5
"""For one look at a hub; a laptop without network must not wait."""

_down: list[str] = []
"""Why the hub could not be reached, once that is known: a batch must not wait for it again and again."""


class HubRefusal(ValueError):
    """No config.json from a hub; reads on after "and ..."."""


def config_json(name: str, revision: str | None = None) -> tuple[str, dict[str, Any]]:
    """Where it was found, and its content: from the hub's cache on this machine, else from the hub itself.

    HF_HOME, HF_HUB_CACHE, HF_ENDPOINT, HF_TOKEN and HF_HUB_OFFLINE count, as in huggingface_hub. Raises HubRefusal.
    """
    if cached := _cached(name, revision):
        return "hub cache", _content(cached.read_bytes())
    if not _down and os.environ.get("HF_HUB_OFFLINE", "0").upper() in ("1", "TRUE", "YES", "ON"):
        _down.append("HF_HUB_OFFLINE forbids asking a hub")
    if not _down:
        try:
            return "hub", _content(_download(name, revision or "main"))
        except OSError as failed:
            _down.append(f"no hub can be reached ({getattr(failed, 'reason', failed)})")
    raise HubRefusal(f"{_down[0]}; give a local path or the config")


def _cached(name: str, revision: str | None) -> Path | None:
    home = Path(os.environ.get("HF_HOME") or "~/.cache/huggingface").expanduser()
    folder = Path(os.environ.get("HF_HUB_CACHE") or home / "hub") / f"models--{name.replace('/', '--')}"
    reference = folder / "refs" / (revision or "main")
    commit = reference.read_text(encoding="utf-8").strip() if reference.is_file() else revision
    file = folder / "snapshots" / commit / "config.json" if commit else None
    return file if file is not None and file.is_file() else None


def _download(name: str, revision: str) -> bytes:
    """Raises HubRefusal on the hub's own refusal, OSError where no hub answers."""
    import urllib.error
    import urllib.request

    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
    headers = {"user-agent": "vllm-calibrate"}
    if token := os.environ.get("HF_TOKEN"):
        headers["authorization"] = f"Bearer {token}"
    asked = urllib.request.Request(f"{endpoint}/{name}/resolve/{revision}/config.json", headers=headers)
    try:
        with urllib.request.urlopen(asked, timeout=TIMEOUT_S) as answer:
            return bytes(answer.read())
    except urllib.error.HTTPError as refused:
        if refused.code in (401, 403):
            why = "the hub says it is gated, private or not there; set HF_TOKEN to an account that may read it"
        elif refused.code == 404:
            why = "the hub has no such model, or no config.json in it"
        else:
            why = f"the hub answers HTTP {refused.code}"
        raise HubRefusal(why) from None


def _content(text: bytes) -> dict[str, Any]:
    try:
        content = json.loads(text)
    except ValueError as broken:
        raise HubRefusal(f"its config.json on the hub is not JSON: {broken}") from None
    if not isinstance(content, dict):
        raise HubRefusal(f"its config.json on the hub is {type(content).__name__}, not an object")
    return content
