"""The sampler that takes no samples: for runs that ask what sampling costs."""

from __future__ import annotations

from pathlib import Path

from bench.telemetry.samples import FILE_NAME, Sample, SampleLog
from bench.telemetry.summary import TelemetrySummary, summarize


class NoSampler:
    """What `Sampler` offers, doing nothing. Its summary is complete and has no figures."""

    def __init__(self, out_dir: Path) -> None:
        self.path = out_dir / FILE_NAME

    def __enter__(self) -> NoSampler:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing to end."""

    def watch(self, root_pid: int, session_id: int | None = None, cgroup_path: str | Path | None = None) -> None:
        """Nothing is followed."""

    def mark(self, phase: str) -> None:
        """Nothing is labelled."""

    def latest(self) -> Sample | None:
        """There is none."""
        return None

    def stop(self) -> TelemetrySummary:
        """A summary in which nothing was read and nothing lost."""
        return summarize(SampleLog(complete=True))
