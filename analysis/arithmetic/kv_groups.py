"""How a pool of KV blocks serves layers that remember differently (vLLM v1/core/kv_cache_utils.py).

Layers that remember alike share one group and one table of blocks. Where full and sliding layers mix, vLLM makes
groups of equally many layers, and a block of the pool serves one group at a time: it is as large as one group's pages,
not as all layers' together, and a request draws blocks for each group.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from analysis.arithmetic.errors import MalformedConfig
from analysis.arithmetic.layout import CacheKind


@dataclass(frozen=True, slots=True)
class KVLayer:
    """The cache of one layer on one rank; `window` is how many tokens a sliding layer looks back."""

    kind: CacheKind
    window: int | None
    bytes_per_token: int


@dataclass(frozen=True, slots=True)
class KVGroup:
    """Layers (by their place) that share a table of blocks. `page_bytes` is what a block takes in one layer."""

    kind: CacheKind
    window: int | None
    block_tokens: int
    page_bytes: tuple[int, ...]
    layers: tuple[int, ...]

    def blocks_per_request(self, max_model_len: int, max_in_flight_tokens: int | None) -> int:
        """Blocks that one request of `max_model_len` tokens may hold at once in this group.

        A sliding group frees what fell out of the window, but only of settled steps, and its window need not begin at
        a block's start: cdiv(min(window - 1 + in flight, max_model_len), block) + 1 (`SlidingWindowSpec`). Without
        `max_in_flight_tokens` it counts as if it freed nothing.
        """
        if self.window is None or max_in_flight_tokens is None:
            return -(-max_model_len // self.block_tokens)
        return -(-min(self.window - 1 + max_in_flight_tokens, max_model_len) // self.block_tokens) + 1


@dataclass(frozen=True, slots=True)
class KVPlan:
    """A pool's blocks: `bytes_per_block` on this rank, and the groups that draw them."""

    block_tokens: int
    bytes_per_block: int
    groups: tuple[KVGroup, ...]

    @classmethod
    def of(
        cls,
        layers: Sequence[KVLayer],
        block_tokens: int,
        *,
        held: Sequence[int] | None = None,
        hybrid_manager: bool = True,
    ) -> KVPlan:
        """Plan the whole model's `layers`; `held` are the places of those on this pipeline rank, all when None.

        `hybrid_manager` False is vLLM's --disable-hybrid-kv-cache-manager: beside full layers, sliding ones keep
        every token.
        """
        if block_tokens < 1:
            raise MalformedConfig("block_size", f"is {block_tokens}; it must be 1 or more")
        groups = _grouped(layers, block_tokens, hybrid_manager)
        here = set(range(len(layers)) if held is None else held)
        size = max(
            (
                sum(page for page, layer in zip(group.page_bytes, group.layers, strict=True) if layer in here)
                for group in groups
            ),
            default=0,
        )
        return cls(block_tokens, size, groups)

    def blocks(self, pool_bytes: int) -> int:
        """Whole blocks in a pool, the null block that serves no request included."""
        if pool_bytes < 0:
            raise MalformedConfig("pool_bytes", f"is {pool_bytes}; it must be 0 or more")
        return pool_bytes // self.bytes_per_block if self.bytes_per_block else 0

    def blocks_per_request(self, max_model_len: int, max_in_flight_tokens: int | None = None) -> int:
        """Blocks that one request of `max_model_len` tokens may hold at once, over all groups."""
        if max_model_len < 1:
            raise MalformedConfig("max_model_len", f"is {max_model_len}; it must be 1 or more")
        return sum(group.blocks_per_request(max_model_len, max_in_flight_tokens) for group in self.groups)

    def full_length_requests(
        self, pool_bytes: int, max_model_len: int, max_in_flight_tokens: int | None = None
    ) -> float:
        """How many requests of `max_model_len` fit at once (vLLM's "Maximum concurrency")."""
        per_request = self.blocks_per_request(max_model_len, max_in_flight_tokens)
        return self.blocks(pool_bytes) / per_request if per_request else 0.0


def _grouped(layers: Sequence[KVLayer], block_tokens: int, hybrid_manager: bool) -> tuple[KVGroup, ...]:
    if not layers:
        return ()
    windows = {layer.window for layer in layers}
    if len(windows) == 1 or (None in windows and not hybrid_manager):
        return (_one_group(layers, range(len(layers)), block_tokens),)
    buckets = _buckets(layers, block_tokens)
    if buckets is None:
        return (_one_group(layers, range(len(layers)), block_tokens),)
    counts = [len(places) for places in buckets.values()]
    # As many layers as the rarest kind has, unless the kinds are nearly as many: then padding the rarer one is cheaper.
    size = max(counts) if max(counts) < min(counts) * 1.5 else min(counts)
    groups = []
    for (kind, window, _, tokens, page), places in buckets.items():
        split = -(-len(places) // size)
        for place in range(split):
            mine = tuple(places[place::split])
            groups.append(KVGroup(kind, window, tokens, (page,) * len(mine), mine))
    return tuple(groups)


def _one_group(layers: Sequence[KVLayer], places: Sequence[int], block_tokens: int) -> KVGroup:
    windows = {layers[place].window for place in places}
    return KVGroup(
        layers[places[0]].kind if len(windows) == 1 else "full",
        windows.pop() if len(windows) == 1 else None,
        block_tokens,
        tuple(layers[place].bytes_per_token * block_tokens for place in places),
        tuple(places),
    )


Bucket = tuple[CacheKind, int | None, int, int, int]


def _buckets(layers: Sequence[KVLayer], block_tokens: int) -> dict[Bucket, list[int]] | None:
    """Places of the layers that remember alike, with blocks stretched or padded until all pages have one size
    (`unify_kv_cache_spec_page_size`); None where vLLM gives every layer all tokens instead."""
    largest = max(layer.bytes_per_token for layer in layers) * block_tokens
    buckets: dict[Bucket, list[int]] = {}
    for place, layer in enumerate(layers):
        page = layer.bytes_per_token * block_tokens
        tokens = block_tokens
        if largest % page == 0:
            tokens *= largest // page
        elif layer.kind == "mla":
            return None
        buckets.setdefault((layer.kind, layer.window, layer.bytes_per_token, tokens, largest), []).append(place)
    return buckets
