"""Reading a `vllm serve` command line the way vLLM's own parser does, without vLLM.

Options may be spelt with dashes or underscores, shortened as far as they stay unique, and carry their value after a
space or `=`. Those that size memory become fields of a Request; the rest is accepted, and listed. An option that vLLM
does not know is refused with the nearest one that it does.
"""

from __future__ import annotations

import difflib
import json
import re
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from analysis.predict.options import (
    ELSEWHERE,
    ENVIRONMENT,
    ENVIRONMENT_NOTES,
    NOT_MODELLED,
    SAME_NAME,
    SWITCHES,
    Flag,
    flags,
)
from analysis.predict.request import Request, RequestError, human_integer, request_of_command

_BOUNDARY = re.compile(r"^(&|&&|\|\|?|;|\d?>>?.*|<.*|2>&1)$")
_ASSIGNMENT = re.compile(r"[A-Za-z_][A-Za-z0-9_]*=.*", re.DOTALL)


@dataclass(slots=True)
class _Reading:
    """What has been read so far."""

    values: dict[str, Any]
    notes: list[str]
    ignored: list[str]


def parse_command(command: str | Sequence[str], defaults: dict[str, Any] | None = None) -> Request:
    """The request that a command line makes.

    Args:
        command: one string as typed in a shell, or its words. `vllm serve MODEL ...`, the `api_server` module, a
            `docker run ... vllm/vllm-openai:TAG ...`, each with variables before it; or the arguments alone.
        defaults: fields that the command line does not have, such as `gpu` and `vllm_version`.

    Raises:
        RequestError: an option that vLLM does not know, a missing or malformed value, no model.
    """
    words = _words(command)
    reading = _Reading({}, [], [])
    words = _program(words, reading)
    _options(words, reading)
    return request_of_command({**reading.values, **_given(defaults, reading)}, reading.notes, reading.ignored)


def _given(defaults: dict[str, Any] | None, reading: _Reading) -> dict[str, Any]:
    given = {name: value for name, value in (defaults or {}).items() if value is not None}
    if "vllm_version" in given and "vllm_version" in reading.values:
        reading.notes.append(f"vllm_version {given['vllm_version']} replaces the image's")
    return given


def _words(command: str | Sequence[str]) -> list[str]:
    if not isinstance(command, str):
        words = list(command)
    else:
        try:
            words = shlex.split(command.replace("\\\r\n", " ").replace("\\\n", " "), comments=True)
        except ValueError as broken:
            raise RequestError(f"the command line cannot be read: {broken}") from None
    for place, word in enumerate(words):
        if _BOUNDARY.match(word):
            return words[:place]
    if words and words[-1].endswith(("&", ";")):
        words[-1] = words[-1].rstrip("&;")
    return [word for word in words if word]


def _program(words: list[str], reading: _Reading) -> list[str]:
    """Takes variables and the program off the front; what is left are the server's own arguments."""
    while words and (_ASSIGNMENT.fullmatch(words[0]) or words[0] in ("env", "nohup", "exec", "sudo", "time", "export")):
        if "=" in words[0]:
            _variable(words[0], reading)
        words = words[1:]
    for place, word in enumerate(words):
        if word == "-e" or word == "--env":
            if place + 1 < len(words) and "=" in words[place + 1]:
                _variable(words[place + 1], reading)
        elif found := re.search(r"(?:^|/)vllm-openai(?::v?(?P<tag>[^@]+))?", word):
            if found["tag"] and re.match(r"\d+\.\d+", found["tag"]):
                reading.values["vllm_version"] = found["tag"]
            return words[place + 1 :]
        elif word.endswith("vllm.entrypoints.openai.api_server") or word.endswith("openai/api_server.py"):
            return words[place + 1 :]
        elif Path(word).name == "vllm":
            if words[place + 1 : place + 2] == ["serve"]:
                return words[place + 2 :]
            if place == 0:  # further on it may be a folder of that name
                other = " ".join(words[:2])
                raise RequestError(f"`{other}` starts no server; the command must be `vllm serve MODEL ...`")
    if words and words[0] == "serve":
        return words[1:]
    if words and Path(words[0]).name.startswith("python"):
        raise RequestError(
            f"{' '.join(words[:3])!r} is not known to start vLLM's server; use `vllm serve MODEL ...` or "
            "`python -m vllm.entrypoints.openai.api_server --model MODEL ...`"
        )
    return words


def _variable(assignment: str, reading: _Reading) -> None:
    name, _, value = assignment.partition("=")
    if field := ENVIRONMENT.get(name):
        reading.values[field] = value.strip().lower() in ("1", "true")
    elif note := ENVIRONMENT_NOTES.get(name):
        if value == note[0]:
            reading.notes.append(f"{name}={value}: {note[1]}")
    else:
        reading.ignored.append(name)


def _options(words: list[str], reading: _Reading) -> None:
    words = _with_config_file(words)
    place = 0
    while place < len(words):
        word = words[place]
        place += 1
        if not word.startswith("-") or word == "-":
            if "model" in reading.values:
                raise RequestError(f"{word!r} is one word too many: the model is {reading.values['model']!r} already")
            reading.values["model"] = word
            continue
        name, equals, value = word.partition("=")
        if re.fullmatch(r"-O\d?", name) or name.startswith("-O."):
            level = name[2:] or value
            if name.startswith("-O."):
                _dotted("compilation_config", name[3:], value, reading)
            elif not level and place < len(words):
                level, place = words[place], place + 1
                reading.values["optimization_level"] = level
            else:
                reading.values["optimization_level"] = level
            continue
        base, dot, path = name.partition(".")
        spelling, flag = _flag(base)
        if dot:
            if not equals and place < len(words):
                value, place = words[place], place + 1
            _dotted(flag.destination, path, value, reading)
            continue
        taken: list[str] = [value] if equals else []
        if flag.values == "0":
            if equals:
                raise RequestError(f"{spelling} takes no value, but has {value!r}")
        elif not equals:
            most = {"1": 1, "?": 1, "+": len(words)}[flag.values]
            while place < len(words) and len(taken) < most and not _looks_like_option(words[place]):
                taken.append(words[place])
                place += 1
            # A list before the model would swallow it, as it does in vLLM.
            if not taken and flag.values != "?":
                raise RequestError(f"{spelling} has no value")
        _take(spelling, flag, taken, reading)


def _looks_like_option(word: str) -> bool:
    return word.startswith("-") and not re.fullmatch(r"-\d+(\.\d+)?[kKmMgGtT]?|-", word)


def _flag(spelled: str) -> tuple[str, Flag]:
    """The option that a spelling means: itself, with dashes, or the only one that begins so."""
    known = flags()
    name = spelled.replace("_", "-") if spelled.startswith("--") else spelled
    if name in known:
        return name, known[name]
    if name.startswith("--"):
        longer = {option: flag for option, flag in known.items() if option.startswith(name)}
        if len({flag.destination for flag in longer.values()}) == 1:
            return min(longer, key=len), next(iter(longer.values()))
        if longer:
            raise RequestError(f"{spelled} could be {', '.join(sorted(longer)[:4])}; write it out")
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    meant = f"did you mean {near[0]}?" if near else "`vllm serve --help=all` lists those it has"
    raise RequestError(f"{spelled} is no option of vllm serve; {meant}")


def _take(spelling: str, flag: Flag, taken: list[str], reading: _Reading) -> None:
    """Files one option under the request's fields, the notes, or what is ignored."""
    destination, value = flag.destination, taken[0] if taken else None
    if destination in SWITCHES:
        reading.values[SWITCHES[destination]] = not spelling.startswith("--no-")
    elif destination == "disable_hybrid_kv_cache_manager":
        reading.values["hybrid_kv_cache_manager"] = spelling.startswith("--no-")
    elif destination in ("cudagraph_capture_sizes", "cuda_graph_sizes"):
        sizes = [human_integer(spelling, piece) for word in taken for piece in word.strip("[]").split(",") if piece]
        if destination == "cuda_graph_sizes" and len(sizes) == 1:
            reading.values["max_cudagraph_capture_size"] = sizes[0]
        else:
            reading.values["cudagraph_capture_sizes"] = sizes
    elif destination in SAME_NAME:
        none = isinstance(value, str) and value.lower() in ("none", "null")
        reading.values[destination] = None if none else value
    elif destination in ELSEWHERE:
        reading.values[ELSEWHERE[destination]] = value
    elif destination == "optimization_level":
        reading.values["optimization_level"] = str(value).removeprefix("O")
    elif destination == "compilation_config":
        _compilation(spelling, value or "", reading)
    elif destination == "hf_overrides":
        _merge(reading, "hf_overrides", _json(spelling, value or ""))
    elif destination == "help":
        raise RequestError(f"{spelling} asks vLLM for help; a command that starts a server is needed")
    elif destination in NOT_MODELLED and not spelling.startswith("--no-"):
        if not (destination.endswith("_size") and value == "1"):
            reading.notes.append(f"{spelling}: {NOT_MODELLED[destination]}")
    else:
        reading.ignored.append(spelling)


def _compilation(spelling: str, value: str, reading: _Reading) -> None:
    if re.fullmatch(r"O?\d", value):  # the level, as older releases take it
        reading.values["optimization_level"] = value.removeprefix("O")
        return
    for key, one in _json(spelling, value).items():
        _compiled(key, one, reading)


def _compiled(key: str, value: Any, reading: _Reading) -> None:
    if key in ("cudagraph_mode", "cudagraph_capture_sizes", "max_cudagraph_capture_size"):
        reading.values[key] = value
    elif key in ("level", "mode") and str(value).upper() in ("0", "NONE"):
        reading.values.setdefault("cudagraph_mode", "NONE")
    elif key == "use_cudagraph" and value is False:
        reading.values["cudagraph_mode"] = "NONE"
    elif key == "full_cuda_graph" and value is True:
        reading.values["cudagraph_mode"] = "FULL"
    else:
        reading.ignored.append(f"--compilation-config {key}")


def _dotted(destination: str, path: str, value: str, reading: _Reading) -> None:
    """`--compilation-config.cudagraph_mode=NONE`: one key of a JSON option."""
    try:
        parsed = json.loads(value)
    except ValueError:
        parsed = value
    if destination == "compilation_config":
        _compiled(path.rstrip("+"), parsed, reading)
    elif destination == "hf_overrides":
        for key in reversed(path.split(".")):
            parsed = {key: parsed}
        _merge(reading, "hf_overrides", parsed)
    elif destination in NOT_MODELLED:
        reading.notes.append(f"--{destination.replace('_', '-')}.{path}: {NOT_MODELLED[destination]}")
    else:
        reading.ignored.append(f"--{destination.replace('_', '-')}.{path}")


def _merge(reading: _Reading, field: str, more: dict[str, Any]) -> None:
    reading.values[field] = merged(reading.values.get(field) or {}, more)


def merged(base: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    """`base` with `more` laid over it, object by object."""
    result = dict(base)
    for key, value in more.items():
        both = isinstance(value, dict) and isinstance(result.get(key), dict)
        result[key] = merged(result[key], value) if both else value
    return result


def _json(spelling: str, value: str) -> dict[str, Any]:
    try:
        found = json.loads(value)
    except ValueError as broken:
        raise RequestError(f"{spelling} is {value!r}, which is not JSON: {broken}") from None
    if not isinstance(found, dict):
        raise RequestError(f"{spelling} is {value!r}, not a JSON object")
    return found


def _with_config_file(words: list[str]) -> list[str]:
    """`--config FILE` holds options as YAML; those on the command line come after it and win."""
    place = next((n for n, word in enumerate(words) if word.partition("=")[0] == "--config"), None)
    if place is None:
        return words
    word = words[place]
    if "=" in word:
        name, rest = word.partition("=")[2], words[place + 1 :]
    elif place + 1 < len(words):
        name, rest = words[place + 1], words[place + 2 :]
    else:
        raise RequestError("--config has no value")
    import yaml  # type: ignore[import-untyped]

    try:
        content = yaml.safe_load(Path(name).read_text(encoding="utf-8"))
    except OSError as unreadable:
        raise RequestError(f"--config {name} cannot be read: {unreadable.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as broken:
        raise RequestError(f"--config {name} is not YAML: {str(broken).splitlines()[0]}") from None
    if not isinstance(content, dict):
        raise RequestError(f"--config {name} holds no options")
    given = words[:place] + rest
    positional = bool(given) and not given[0].startswith("-")
    from_file = list(_file_words(content, skip_model=positional))
    return [*given[: 1 if positional else 0], *from_file, *given[1 if positional else 0 :]]


def _file_words(content: dict[str, Any], skip_model: bool) -> Iterable[str]:
    for key, value in content.items():
        spelled = f"--{str(key).replace('_', '-')}"
        if key == "model" and skip_model:
            continue
        if value is True:
            yield spelled
        elif value is False or value is None:
            negative = f"--no-{spelled[2:]}"
            if value is False and negative in flags():
                yield negative
        elif isinstance(value, list):
            yield from (spelled, *map(str, value))
        elif isinstance(value, dict):
            yield from (spelled, json.dumps(value))
        else:
            yield f"{spelled}={value}"
