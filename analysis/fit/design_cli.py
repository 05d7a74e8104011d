"""`python -m analysis design`: what a grid can and cannot identify, before a sweep and after it."""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from analysis import catalogue
from analysis.fit.design import Finding, Point, check

DESCRIPTION = "say which factors a grid can and cannot identify, and which points to add"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `design`."""
    parser.add_argument(
        "grids", nargs="+", metavar="SET|SWEEP", help="result sets (folders), or names of sweeps in conf/sweep"
    )
    parser.add_argument("--gpu", default="h100-80gb", help="before a sweep: the GPU whose defaults apply")
    parser.add_argument("--vllm-version", default="0.32.0", help="before a sweep: the version whose defaults apply")
    parser.add_argument("--json", action="store_true", help="one JSON object a finding")


def run(args: argparse.Namespace) -> int:
    """Exit code 0 if every factor can be identified, 1 if some cannot, 2 for a grid that cannot be read."""
    try:
        points = [point for grid in args.grids for point in points_of(grid, args.gpu, args.vllm_version)]
        findings = check(points)
    except (ValueError, OSError) as problem:
        print(f"design: {problem}", file=sys.stderr)
        return 2
    if args.json:
        for one in findings:
            print(json.dumps(vars(one)))
    else:
        print(text(findings, len(points)), end="")
    return 0 if all(one.identified for one in findings) else 1


def text(findings: Sequence[Finding], points: int) -> str:
    """The findings for people, then the points to add."""
    out = [f"{points} points"]
    for one in findings:
        out.append(f"  {'yes' if one.identified else 'NO '}  {one.term:20} {one.subject}: {one.sentence}")
    missing = list(dict.fromkeys(one.missing for one in findings if one.missing))
    if missing:
        out += ["to add:", *(f"  - {one}" for one in missing)]
    return "\n".join(out) + "\n"


def points_of(grid: str, gpu: str, vllm_version: str) -> list[Point]:
    """Points of a result set (a folder, or a name in results/) or of a named sweep."""
    for folder in (Path(grid), Path("results") / grid):
        if (folder / "engines").is_dir():
            return of_rows(folder)
    sweep = catalogue.CONF / "sweep" / f"{grid}.yaml"
    if sweep.is_file():
        return list(of_sweep(sweep, gpu, vllm_version))
    known = ", ".join(sorted(path.stem for path in sweep.parent.glob("*.yaml")))
    raise ValueError(f"{grid!r} is neither a result set nor a sweep; sweeps are {known}")


def of_rows(folder: Path) -> list[Point]:
    """Points of the engine starts of a result set that started; they know what they measured."""
    from analysis import rows
    from analysis.fit.starts import from_rows

    started = rows.alone(rows.started(rows.newest(rows.read_engines([folder]))))
    pools = {str(row["run_id"]): str(row.get("kv_pool_mode")) for row in started}
    return [
        Point(start.model, start.features, pools[start.row_id], start.kind, frozenset(start.measured), origin.on_cpu)
        for origin, starts in from_rows(started).items() for start in starts
    ]  # fmt: skip


def of_sweep(path: Path, gpu: str, vllm_version: str) -> Iterator[Point]:
    """Points of a sweep's own YAML: the product of its parameters, each with each of its points.

    An interpolation that asks the machine, as for the FP8 format of a processor, counts as FP8 with dynamic scales.
    """
    import yaml  # type: ignore[import-untyped]

    content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    sweeper = (content.get("hydra") or {}).get("sweeper") or {}
    params, listed = sweeper.get("params") or {}, sweeper.get("points") or [{}]
    if not params and listed == [{}]:
        raise ValueError(f"sweep {path.stem!r} names no hydra.sweeper.params; design it from a result set instead")
    nodes = {str(next(iter(one))).split()[-1].lstrip("/"): str(next(iter(one.values())))
             for one in content.get("defaults") or [] if isinstance(one, Mapping)}  # fmt: skip
    names = list(params)
    for values in itertools.product(*(_choices(params[name]) for name in names)):
        for more in listed:
            point = dict(zip(names, values, strict=True)) | {name: str(value) for name, value in more.items()}
            yield _point(point, nodes, content, gpu, vllm_version)


def _choices(value: Any) -> list[str]:
    """`a,b,c` as Hydra's basic sweeper splits it, brackets kept whole."""
    if isinstance(value, list):
        return [str(one) for one in value]
    text, depth, found, last = str(value), 0, [], 0
    for at, letter in enumerate(text):
        depth += (letter in "[{(") - (letter in "]})")
        if letter == "," and not depth:
            found.append(text[last:at])
            last = at + 1
    return [one.strip() for one in (*found, text[last:])]


def _point(
    point: Mapping[str, str], nodes: Mapping[str, str], content: Mapping[str, Any], gpu: str, vllm_version: str
) -> Point:
    import yaml

    from analysis import defaults, gpus
    from analysis.fit.starts import kind_of
    from analysis.predict.features import features_of

    engine_node = point.get("engine", nodes.get("engine", "default"))
    node = catalogue.CONF / "engine" / f"{engine_node}.yaml"
    engine: dict[str, Any] = (yaml.safe_load(node.read_text(encoding="utf-8")) or {}) if node.is_file() else {}
    engine |= content.get("engine") or {}
    own = {name.removeprefix("engine."): value for name, value in point.items() if name.startswith("engine.")}
    engine |= {name: yaml.safe_load(value) for name, value in own.items()}
    model = catalogue.load_model(point.get("model", nodes.get("model", "tiny-llama")))
    named = point.get("quantization", nodes.get("quantization", "bf16"))
    quantization = catalogue.load_quantization("fp8-dynamic" if named.startswith("${") else named)
    config = catalogue.compose(model, quantization)
    on_cpu = point.get("device", nodes.get("device", "")) == "cpu" or engine_node == "cpu"
    version, device = defaults.parsed(vllm_version), gpus.find(gpu)
    length = engine.get("max_model_len") or 2048
    batch = defaults.resolve_batch(
        version, defaults.batch_defaults(version, device.nvml_bytes, device.title), engine.get("max_num_seqs"),
        engine.get("max_num_batched_tokens"), length,
    )  # fmt: skip
    eager = bool(engine.get("enforce_eager"))
    features = features_of(config, {
        "max_num_seqs": batch.max_num_seqs, "max_num_batched_tokens": batch.max_num_batched_tokens,
        "max_model_len": length, "enforce_eager": eager,
        "cudagraph_capture_sizes": [] if eager or on_cpu else defaults.capture_sizes(version, batch),
        "tensor_parallel_size": engine.get("tensor_parallel_size") or 1,
        "pipeline_parallel_size": engine.get("pipeline_parallel_size") or 1, "dtype": quantization.dtype,
    })  # fmt: skip
    pool = "fixed" if engine.get("kv_cache_memory_bytes") else "auto"
    measured = {"context", "runtime", "non_torch"}
    if pool == "auto" and not on_cpu:
        measured |= {"activation", "cuda_graph_estimate"}
    if not eager and not on_cpu:
        measured.add("cuda_graph")
    return Point(model.name, features, pool, kind_of(config, features), frozenset(measured), on_cpu)


def main(argv: Sequence[str] | None = None) -> int:
    """The command by itself, without the dispatcher."""
    parser = argparse.ArgumentParser(prog="python -m analysis design", description=DESCRIPTION)
    add_arguments(parser)
    return run(parser.parse_args(argv))
