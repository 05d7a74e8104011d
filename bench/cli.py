"""The command line: `python -m bench`. Hydra composes, `GridSweeper` plans, `Runner` measures."""

from __future__ import annotations

import dataclasses
import difflib
import os
import re
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench.errors import BadRequest, BenchError, first_line

ROOT = Path(__file__).resolve().parent.parent


def _register() -> None:
    """Make the schema and the sweeper known to Hydra before it composes anything."""
    sys.path.insert(0, str(ROOT / "bench" / "plugins"))
    from hydra.core.config_store import ConfigStore
    from omegaconf import OmegaConf

    from bench.config import BenchConfig
    from bench.environment import cpu_fp8

    ConfigStore.instance().store(name="schema", node=BenchConfig, provider="vllm-calibrate")
    OmegaConf.register_new_resolver("cpu_fp8", cpu_fp8, replace=True)


def main(argv: list[str] | None = None) -> int:
    """Run a request; returns the exit code: 0 measured, 1 a run failed, 2 a bad request."""
    words = list(sys.argv[1:] if argv is None else argv)
    # With Hydra's own short report, errors would leave as exit code 1 and a stack trace hint.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    _register()

    import hydra
    from hydra.core.hydra_config import HydraConfig
    from hydra.errors import HydraException
    from hydra.types import RunMode
    from omegaconf import DictConfig
    from omegaconf.errors import OmegaConfBaseException

    from bench.request import load_request
    from bench.runner import Runner

    @hydra.main(version_base="1.3", config_path=str(ROOT / "conf"), config_name="config")
    def measure(composed: DictConfig) -> str:
        if HydraConfig.get().mode == RunMode.RUN:  # it would pass by the plan: dry_run, resume and the checks
            raise BadRequest("hydra.mode=RUN: leave it out; one point is a grid of one")
        return Runner.current().run(load_request(composed))

    if said := _says_nothing_to_a_group(words):
        return _refuse(said, BadRequest.exit_code)
    sys.argv = [sys.argv[0], *_for_this_machine(words)]
    # A batch system's SIGTERM and a closed terminal end a sweep as Ctrl-C does: in order.
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_DFL:  # not under nohup
            signal.signal(number, _interrupt)
    with Runner() as runner:
        try:
            measure()
            return runner.finish()
        except BenchError as error:
            return _refuse(str(error), error.exit_code)
        except (HydraException, OmegaConfBaseException) as error:
            return _refuse(_sentence(error), BadRequest.exit_code)
        except KeyboardInterrupt:
            runner.interrupted()
            return 130
        except BrokenPipeError:  # `... | head`: the reader has had enough; what was measured is in its files
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 128 + signal.SIGPIPE
        except SystemExit as error:  # --help and its like
            return error.code if isinstance(error.code, int) else 0


def _interrupt(number: int, _frame: object) -> None:
    signal.signal(number, signal.SIG_IGN)  # once is enough: a second one must not cut the clean-up short
    raise KeyboardInterrupt


def _says_nothing_to_a_group(words: list[str]) -> str:
    """A sentence where a setting of one engine is given for a group, whose engines have their own; else empty."""
    if not any(word.startswith("colocate=") and word != "colocate=none" for word in words):
        return ""
    lost = [word for word in words if re.match(r"(model|quantization|workload)[=.]|engine\.", word)]
    if not lost:
        return ""
    return (f"{lost[0]}: says nothing to a group of engines; set colocate.engines.NAME.engine.* or "
            "colocate.streams.NAME.load.*, or choose model@colocate.engines.NAME.model=...")  # fmt: skip


def _for_this_machine(words: list[str]) -> list[str]:
    """Fill in the choices that depend on the machine; Hydra's config groups take no computed ones.

    `sweep=auto` becomes the sweep this machine can run. Where neither sweep nor engine is chosen and the engine is the
    CPU's, `engine=cpu` is: vLLM's own default pool is nearly all of the host's memory.
    """
    from bench.config import DeviceConfig
    from bench.environment import device_kind

    try:
        kind = device_kind(DeviceConfig())
    except BadRequest:
        return words  # without vLLM, --help and --cfg still answer; a run will say what is missing
    words = [("sweep=cpu" if kind == "cpu" else "sweep=gpu") if word == "sweep=auto" else word for word in words]
    if kind == "cpu" and not any(word.startswith(("engine=", "sweep=")) for word in words):
        words.append("engine=cpu")
    return words


def _sentence(error: BaseException) -> str:
    """Hydra's and OmegaConf's refusals in the form of our own: field, value, fix."""
    from hydra.errors import MissingConfigException, OverrideParseException
    from omegaconf.errors import OmegaConfBaseException

    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, option = str(error.missing_cfg_file).rpartition("/")
        return f"{group}={option}: no such option; choose one of {', '.join(error.options or ())}"
    if isinstance(error, OverrideParseException):
        return f"{error.override}: cannot be read ({str(error).splitlines()[0]}); write key=value or key=value1,value2"
    first = first_line(error)
    if unknown := re.search(r"Could not override '([^']+)'|Key '([^']+)' is not in struct", first):
        return _unknown_inside(unknown[1] or unknown[2], error.__cause__) or _unknown_key(unknown[1] or unknown[2])
    cause = error if isinstance(error, OmegaConfBaseException) else error.__cause__
    if isinstance(cause, OmegaConfBaseException) and cause.full_key:
        return f"{cause.full_key}: {first_line(cause)}"
    return first


def _unknown_inside(key: str, cause: BaseException | None) -> str:
    """The refusal of a key within a list that was given whole, as in `workload.points=[{name:a,knee:{sloo:1}}]`."""
    from omegaconf.errors import ConfigKeyError

    if not isinstance(cause, ConfigKeyError) or not cause.full_key or cause.full_key == key:
        return ""
    if not dataclasses.is_dataclass(cause.object_type):  # a mapping with names of its own, as engine.env
        return ""
    known = [field.name for field in dataclasses.fields(cause.object_type)]
    near = difflib.get_close_matches(str(cause.key), known, n=1)
    meant = f"did you mean {near[0]}?" if near else "see conf/ for examples"
    return f"{key}: no such setting {cause.full_key}; {meant}"


def _unknown_key(key: str) -> str:
    from omegaconf import OmegaConf

    from bench.config import BenchConfig

    def walk(node: Any, prefix: str) -> Iterator[str]:
        for name, value in node.items():
            yield prefix + name
            if isinstance(value, dict):
                yield from walk(value, f"{prefix}{name}.")

    known = list(walk(OmegaConf.to_container(OmegaConf.structured(BenchConfig)), ""))
    if key in known:
        return f"{key}: takes no whole mapping here; add its keys one by one, as in +{key}.NAME=value"
    if key.startswith("engine.env."):
        return f"{key}: not set so far; a new key takes a plus sign, as in +{key}=value"
    near = difflib.get_close_matches(key, known, n=1)
    meant = f"did you mean {near[0]}?" if near else "`python -m bench --help` lists them all"
    return f"{key}: no such setting; {meant}"


def _refuse(sentence: str, code: int) -> int:
    print(f"error: {sentence}", file=sys.stderr)
    return code
