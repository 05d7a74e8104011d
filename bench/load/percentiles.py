"""Names of the statistics of a latency. The one place that spells them; imports nothing."""

PERCENTILES = (50, 90, 95, 99)
STATISTICS = ("mean", *(f"p{percent}" for percent in PERCENTILES), "max")
METRICS = ("ttft", "tpot", "itl", "e2e")


def column(metric: str, statistic: str) -> str:
    """Column of one statistic of a latency, e.g. ``ttft_p99_s``; seconds."""
    return f"{metric}_{statistic}_s"
