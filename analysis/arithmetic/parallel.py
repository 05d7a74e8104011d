"""Which part of a model one rank holds."""

from __future__ import annotations

from dataclasses import dataclass

from analysis.arithmetic.errors import UnsupportedPartition


@dataclass(frozen=True, slots=True)
class Shard:
    """One rank of a tensor (TP) x pipeline (PP) parallel group; TP ranks hold equal shapes, PP ranks do
    not."""

    tensor_parallel_size: int = 1
    pipeline_parallel_size: int = 1
    pipeline_rank: int = 0

    def __post_init__(self) -> None:
        for field in ("tensor_parallel_size", "pipeline_parallel_size"):
            if getattr(self, field) < 1:
                raise UnsupportedPartition(f"{field} is {getattr(self, field)}; it must be 1 or more")
        if not 0 <= self.pipeline_rank < self.pipeline_parallel_size:
            last = self.pipeline_parallel_size - 1
            raise UnsupportedPartition(
                f"pipeline_rank is {self.pipeline_rank}; "
                f"pipeline_parallel_size={last + 1} has ranks 0 to {last}"
            )

    @property
    def first(self) -> bool:
        return self.pipeline_rank == 0

    @property
    def last(self) -> bool:
        return self.pipeline_rank == self.pipeline_parallel_size - 1

    def split(self, size: int, what: str) -> int:
        """`size` divided over the TP ranks. Raises UnsupportedPartition when it does not divide."""
        if size % self.tensor_parallel_size:
            raise UnsupportedPartition(
                f"{what} = {size} does not divide over tensor_parallel_size={self.tensor_parallel_size}"
            )
        return size // self.tensor_parallel_size

    def kv_heads(self, total: int) -> int:
        """KV heads per rank: split while there are enough of them, then replicated."""
        tp = self.tensor_parallel_size
        if total >= tp:
            return self.split(total, "num_key_value_heads")
        if tp % total:
            raise UnsupportedPartition(
                f"num_key_value_heads = {total} cannot be replicated over {tp} ranks evenly"
            )
        return 1

    def layers(self, total: int) -> range:
        """The decoder layers of this rank (vLLM distributed/utils.py: `get_pp_indices`).

        What does not divide goes to the ranks before the last one, which already carries the final norm and
        head.
        """
        pp = self.pipeline_parallel_size
        if total < pp:
            raise UnsupportedPartition(
                f"num_hidden_layers = {total} is fewer than pipeline_parallel_size={pp}"
            )
        counts = [total // pp] * pp
        for place in range(2, total % pp + 2):
            counts[-place] += 1
        start = sum(counts[: self.pipeline_rank])
        return range(start, start + counts[self.pipeline_rank])
