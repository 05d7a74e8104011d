"""What torch's CUDA caching allocator counts for a set of tensors (c10/cuda/CUDACachingAllocator.cpp).

A request is rounded up to 512 bytes. Below 1 MiB it is cut from a 2 MiB segment, below 10 MiB from a 20 MiB
one, and a larger one gets a segment of its own, rounded to 2 MiB. A block of a large segment is cut only if
more than 1 MiB would be left; otherwise the tensor is charged with the remainder.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable

MIB = 1024 * 1024
ROUND_BYTES = 512
SMALL_BYTES = MIB
LARGE_SEGMENT_BYTES = 20 * MIB
OWN_SEGMENT_BYTES = 10 * MIB
SEGMENT_ROUND_BYTES = 2 * MIB


def allocated_bytes(sizes: Iterable[int]) -> int:
    """Bytes in use after allocating `sizes` in this order, none freed (`torch.cuda.memory_allocated`)."""
    total = 0
    free: list[
        int
    ] = []  # remainders of large segments, ascending: the allocator takes the smallest that fits
    for size in sizes:
        if size == 0:
            continue
        wanted = -(-size // ROUND_BYTES) * ROUND_BYTES
        if wanted <= SMALL_BYTES:
            total += wanted
            continue
        place = bisect_left(free, wanted)
        if place < len(free):
            block = free.pop(place)
        elif wanted < OWN_SEGMENT_BYTES:
            block = LARGE_SEGMENT_BYTES
        else:
            block = -(-wanted // SEGMENT_ROUND_BYTES) * SEGMENT_ROUND_BYTES
        if block - wanted > SMALL_BYTES:
            insort(free, block - wanted)
            block = wanted
        total += block
    return total
