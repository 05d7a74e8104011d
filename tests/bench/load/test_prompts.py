"""Prompts: unique from their first token, reproducible to the byte, within the vocabulary."""

from __future__ import annotations

import hashlib
import json

import pytest

from bench.errors import BadRequest
from bench.load.plan import JobQueue, make_plans
from bench.load.prompts import derive_seed, prefix_token_ids, prompt_token_ids, request_token_ids, safe_token_ids
from bench.load.spec import LoadSpec
from bench.load.wire import Target, completion_body


def test_first_tokens_differ_between_all_requests():
    firsts = [prompt_token_ids(3, index, 32, 2048)[0] for index in range(len(safe_token_ids(2048)))]
    assert len(set(firsts)) == len(firsts)


def test_past_the_vocabulary_the_first_two_tokens_differ():
    span = len(safe_token_ids(64))
    heads = [tuple(prompt_token_ids(0, index, 4, 64)[:2]) for index in range(span * span)]
    assert len(set(heads)) == span * span
    with pytest.raises(BadRequest, match="^num_requests="):
        prompt_token_ids(0, span * span, 4, 64)


def test_single_token_prompts_end_with_the_vocabulary():
    span = len(safe_token_ids(64))
    assert len({prompt_token_ids(0, index, 1, 64)[0] for index in range(span)}) == span
    with pytest.raises(BadRequest, match=f"only {span} prompts can begin differently"):
        prompt_token_ids(0, span, 1, 64)


@pytest.mark.parametrize("vocab_size", [16, 100, 2048, 32000, 128256, 262144])
def test_ids_stay_inside_the_safe_range(vocab_size):
    allowed = safe_token_ids(vocab_size)
    assert allowed.start > 0 and allowed.stop <= vocab_size and len(allowed) > vocab_size * 0.8
    for index in (0, 1, 99):
        ids = prompt_token_ids(1, index, 500, vocab_size)
        assert len(ids) == 500 and all(i in allowed for i in ids)
    # The whole range is used, not a corner of it.
    spread = prompt_token_ids(1, 0, 4000, vocab_size)
    assert max(spread) - min(spread) > 0.95 * len(allowed) - 2


def test_control_tokens_are_left_out():
    assert safe_token_ids(128256).start == 1000  # e.g. the first 1000 ids of Mistral's Tekken
    assert safe_token_ids(128256).stop <= 128000  # Llama 3's special tokens
    assert safe_token_ids(152064).stop <= 151643  # Qwen2.5's


@pytest.mark.parametrize("vocab_size", [0, 15, -1, 2048.0, True, None])
def test_a_wrong_vocabulary_is_refused(vocab_size):
    with pytest.raises(BadRequest, match="vocab_size"):
        prompt_token_ids(0, 0, 8, vocab_size)


def test_every_argument_changes_the_prompt_beyond_its_head():
    base = prompt_token_ids(0, 0, 64, 2048)[2:]
    others = [
        prompt_token_ids(1, 0, 64, 2048),
        prompt_token_ids(0, 1, 64, 2048),
        prompt_token_ids(0, 0, 65, 2048),
    ]
    for other in others:
        same = sum(a == b for a, b in zip(base, other[2:], strict=False))
        assert same < 5


def test_prompts_of_a_seed_never_change():
    """Prompts are part of a result's meaning: a change of these hashes needs a new ``_FORMAT``."""
    assert prompt_token_ids(0, 0, 4, 2048) == prompt_token_ids(0, 0, 4, 2048)
    spec = LoadSpec(concurrency=2, num_requests=7, input_tokens=40, output_tokens=7, seed=11)
    wires = b"".join(wires_of(spec))
    assert (
        hashlib.sha256(wires).hexdigest()
        == "afa9d7b2c4d4459f3e142b77d972cf23fd836dafb94e589b63c5e0acad2be56b"
    )


def test_bytes_of_a_varied_load_never_change():
    spec = LoadSpec(
        pattern="poisson", rate_per_s=5, num_requests=30, seed=11, shared_prefix_ratio=0.5, prefix_groups=3,
        input_tokens={"kind": "lognormal", "mean": 100, "std": 90, "max": 900}, output_tokens=7,
    )  # fmt: skip
    found = hashlib.sha256(b"".join(wires_of(spec))).hexdigest()
    assert found == "eb6b5103ee1631156f4be39509bf98493fe3d6bb847de3d641e2ec3c2ea2e13a"


def wires_of(spec, workers=1):
    """Every request of a load, in the order of its prompts."""
    found = {}
    for plan in make_plans("http://h:1", "m", spec, 32000, workers):
        jobs = JobQueue(plan)
        while (job := jobs.take()) is not None:
            found[job.request.index] = job.wire
    return [found[index] for index in sorted(found)]


def test_more_requests_do_not_change_the_first_ones():
    few, many = (LoadSpec(concurrency=2, num_requests=n, input_tokens=16) for n in (5, 9))
    assert wires_of(few) == wires_of(many)[:5]


def test_workers_send_the_same_requests_between_them():
    spec = LoadSpec(concurrency=4, num_requests=11, input_tokens={"kind": "uniform", "min": 4, "max": 40})
    assert wires_of(spec) == wires_of(spec, 3)


def test_the_shared_part_is_not_one_short_for_a_rounding():
    one, two = (request_token_ids(3, index, 100, 2048, 0.29) for index in range(2))
    assert one[:29] == two[:29] and one[29] != two[29]


def test_a_shared_prefix_is_the_groups_and_the_rest_is_not():
    ids = [request_token_ids(5, index, 100, 2048, 0.25, 2) for index in range(6)]
    assert all(len(prompt) == 100 for prompt in ids)
    assert ids[0][:25] == ids[2][:25] == prefix_token_ids(5, 0, 25, 2048) and ids[1][:25] == ids[3][:25]
    assert ids[0][:25] != ids[1][:25] and len({prompt[25] for prompt in ids}) == 6
    # A shorter prompt's prefix begins a longer one's, or requests of unlike lengths would share nothing.
    assert request_token_ids(5, 2, 40, 2048, 0.25, 2)[:10] == ids[0][:10]
    assert request_token_ids(5, 0, 64, 2048, 1.0) == request_token_ids(5, 9, 64, 2048, 1.0)
    assert request_token_ids(5, 3, 64, 2048) == prompt_token_ids(5, 3, 64, 2048)
    assert len(request_token_ids(5, 9999, 64, 2048, 0.99)) == 64  # own part of one token, more requests than ids


def test_derived_seeds_tell_runs_apart_and_stay():
    seeds = {derive_seed(7, "chat", repeat) for repeat in range(100)} | {
        derive_seed(7, "code", 0),
        derive_seed(8, "chat", 0),
    }
    assert len(seeds) == 102 and all(0 <= seed < 2**63 for seed in seeds)
    assert derive_seed(7, "chat", 1) == derive_seed(7, "chat", 1)
    assert derive_seed(1, "23") != derive_seed(12, "3")


def test_body_pins_lengths_and_asks_for_running_counts():
    body = json.loads(completion_body("org/model", [5, 6, 7], 9, temperature=0.5, top_p=0.9))
    assert body == {
        "model": "org/model",
        "prompt": [5, 6, 7],
        "max_tokens": 9,
        "ignore_eos": True,
        "temperature": 0.5,
        "top_p": 0.9,
        "stream": True,
        "stream_options": {"include_usage": True, "continuous_usage_stats": True},
    }


@pytest.mark.parametrize(
    ("url", "target"),
    [
        ("http://127.0.0.1:8000", Target("127.0.0.1", 8000)),
        ("http://host", Target("host", 80)),
        ("http://host:1/", Target("host", 1)),
        ("http://host:1/v1", Target("host", 1)),
        ("http://host:1/a/v1/", Target("host", 1, "/a")),
        ("http://[::1]:9", Target("::1", 9)),
    ],
)
def test_base_urls(url, target):
    assert Target.parse(url) == target


@pytest.mark.parametrize(
    "url",
    [
        "",
        "host:1",
        "https://h:1",
        "http://",
        "http://h:x",
        "http://h:99999",
        "http://u:p@h",
        "http://h/?a=1",
        "http://h\r\nX:1/",
    ],
)
def test_wrong_base_urls_are_refused(url):
    with pytest.raises(BadRequest, match="base_url"):
        Target.parse(url)


def test_host_header_brackets_ipv6():
    assert b"Host: [::1]:9\r\n" in Target("::1", 9).get("/metrics")
