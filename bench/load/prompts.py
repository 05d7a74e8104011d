"""Prompts as token ids: seeded, of an exact length, and with no shared beginning.

An engine that caches prefixes skips the prefill of any leading block it has seen, so two prompts with a
common beginning would measure the cache. Here the first token (and past the vocabulary's size the first two)
numbers the request, so that no two requests of a run share even their first block; everything after it is
drawn from a hash of the seed. Where a load asks for a shared prefix, that part of the prompt is the group's and the
rest is made like this.

The ids come from SHAKE-256, not from a random generator, because its output is the same in every version of
Python and NumPy and on every machine.
"""

from __future__ import annotations

import hashlib
import sys
from array import array
from math import gcd

from bench.errors import BadRequest

_FORMAT = "prompt-v1"  # part of every hash: change it when the ids of a given seed change


def derive_seed(seed: int, *parts: int | str) -> int:
    """A seed for one run out of many on the same engine, from a base seed and what tells the run apart.

    The same arguments always give the same non-negative 63-bit integer, e.g. ``derive_seed(7, "chat",
    repeat)``.
    """
    text = "\x1f".join([_FORMAT, "seed", str(seed), *map(str, parts)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def safe_token_ids(vocab_size: int) -> range:
    """Ids that stand for ordinary text in common vocabularies.

    Control tokens sit at the bottom (up to 1000 ids in some) or at the very top, where the padding of the
    embedding table is too; so at most the lowest 1000 ids (a tenth of a small vocabulary) and the topmost
    1/64 are left out. An id at or above ``vocab_size`` is never given: without a tokenizer an engine may not
    check it, and crashes.

    Raises :class:`BadRequest` if ``vocab_size`` is not a whole number of at least 16.
    """
    if not isinstance(vocab_size, int) or isinstance(vocab_size, bool) or vocab_size < 16:
        raise BadRequest(
            f"vocab_size is {vocab_size!r}; give the model's vocabulary size, a whole number of at least 16."
        )
    return range(min(1000, vocab_size // 10), vocab_size - vocab_size // 64)


def prompt_token_ids(seed: int, index: int, input_tokens: int, vocab_size: int) -> list[int]:
    """The ``input_tokens`` ids of request ``index``; a pure function of its four arguments.

    For one seed, length and vocabulary, any two indices give prompts that differ in their first or second
    token; the first tokens alone differ for as many indices as there are safe ids.

    Raises :class:`BadRequest` if so many prompts cannot all begin differently.
    """
    ids = safe_token_ids(vocab_size)
    span = len(ids)
    if input_tokens < 1 or index < 0:
        raise BadRequest(
            f"input_tokens is {input_tokens} and the request index {index}; give at least 1 and at least 0."
        )
    lap, position = divmod(index, span)
    if lap >= (1 if input_tokens == 1 else span):
        most = span if input_tokens == 1 else span * span
        raise BadRequest(
            f"num_requests={index + 1}: of input_tokens={input_tokens} only {most} prompts can begin differently; "
            "send fewer or longer ones"
        )
    run_key = f"{_FORMAT}\x1f{seed}\x1f{input_tokens}\x1f{vocab_size}"
    offset = int.from_bytes(hashlib.sha256(run_key.encode()).digest()[:8], "little")
    head = [ids[(offset + position * _coprime_step(span)) % span]]
    if input_tokens > 1:
        head.append(ids[(offset // span + lap) % span])
    rest = input_tokens - len(head)
    # 32 bits per token: the bias of the remainder is below 2**-13 for any vocabulary under half a million.
    noise = array("I")
    noise.frombytes(hashlib.shake_256(f"{run_key}\x1f{index}".encode()).digest(4 * rest))
    if sys.byteorder == "big":
        noise.byteswap()
    return head + [ids.start + word % span for word in noise]


def request_token_ids(
    seed: int, index: int, input_tokens: int, vocab_size: int, shared_prefix_ratio: float = 0.0, prefix_groups: int = 1
) -> list[int]:
    """The prompt of request ``index``: its group's prefix, ``shared_prefix_ratio`` of it, and then its own ids.

    Request ``index`` belongs to group ``index % prefix_groups``. A shorter prompt's prefix is the beginning of a longer
    one's. Without a shared part this is :func:`prompt_token_ids`.
    """
    shared = int(input_tokens * shared_prefix_ratio + 1e-9)  # 100 * 0.29 is a little below 29
    if not shared:
        return prompt_token_ids(seed, index, input_tokens, vocab_size)
    prefix = prefix_token_ids(seed, index % prefix_groups, shared, vocab_size)
    own, span = input_tokens - shared, len(safe_token_ids(vocab_size))
    if not own:
        return prefix
    # Prompts that share a beginning need no beginnings of their own for as many requests as it takes.
    return prefix + prompt_token_ids(seed, index % (span if own == 1 else span * span), own, vocab_size)


def prefix_token_ids(seed: int, group: int, tokens: int, vocab_size: int) -> list[int]:
    """The first ``tokens`` ids that the prompts of a group have in common."""
    ids = safe_token_ids(vocab_size)
    key = f"{_FORMAT}\x1fprefix\x1f{seed}\x1f{group}\x1f{vocab_size}"
    noise = array("I")
    noise.frombytes(hashlib.shake_256(key.encode()).digest(4 * tokens))
    if sys.byteorder == "big":
        noise.byteswap()
    return [ids.start + word % len(ids) for word in noise]


def _coprime_step(span: int) -> int:
    """A step that visits every one of ``span`` positions once before repeating, far from its neighbours."""
    step = int(span * 0.618) or 1
    while gcd(step, span) != 1:
        step += 1
    return step
