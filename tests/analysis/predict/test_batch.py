"""One object a line in, one out, in order, whatever a line holds."""

from __future__ import annotations

import json

import pytest

from analysis.predict.batch import answers
from analysis.predict.request import BATCH_FIELDS, Request, RequestError


def ask(*lines, **options):
    written = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    return [json.loads(line) for line in answers(written, **options)]


def test_every_field_may_be_null():
    nulls = dict.fromkeys(BATCH_FIELDS)
    (plain,) = ask({**nulls, "id": 7, "model": "llama-3.1-8b"})
    assert plain["id"] == 7 and "error" not in plain
    (again,) = ask({"id": 7, "model": "llama-3.1-8b"})
    assert again == plain


def test_the_others_are_still_answered():
    found = ask(
        {"id": "a", "model": "qwen2.5-7b", "gpu": "l4"},
        "{broken",
        "",
        "[1, 2]",
        {"id": "b", "model": "qwen2.5-7b", "gpu": "potato"},
        {"id": None, "model": "qwen2.5-7b", "max_num_seqs": -1},
        '{"id": "n", "model": "qwen2.5-7b", "gpu_memory_utilization": NaN}',
        {"id": "c", "config": {"architectures": ["Nobody"]}},
        {"id": {"any": ["thing"]}, "model": "mistral-7b"},
    )
    assert [one["id"] for one in found] == ["a", None, None, "b", None, None, "c", {"any": ["thing"]}]
    assert ["error" in one for one in found] == [False, True, True, True, True, True, True, False]
    refused = [one for one in found if "error" in one]
    assert all(set(one) == {"id", "error"} and "\n" not in one["error"] for one in refused)
    assert "line 2 is not JSON" in refused[0]["error"] and "line 4 is list" in refused[1]["error"]
    assert "max_num_seqs is -1; it must be 1 or more" in refused[3]["error"]
    assert "NaN" in refused[4]["error"]


def test_details_come_on_request():
    (brief,) = ask({"id": 1, "model": "qwen2.5-72b", "gpu": "l4"})
    (full,) = ask({"id": 1, "model": "qwen2.5-72b", "gpu": "l4"}, details=True)
    assert "phase" not in brief and full["phase"] == "load" and full["shortfall_gib"] > 100
    assert {name: full[name] for name in brief} == brief


def test_options_are_defaults_for_lines_that_say_nothing():
    one, other = ask({"id": 1, "model": "qwen2.5-7b", "gpu": None}, {"id": 2, "model": "qwen2.5-7b", "gpu": "h200"},
                     defaults={"gpu": "l4"}, details=True)  # fmt: skip
    assert (one["settings"]["gpu"], other["settings"]["gpu"]) == ("l4", "h200-141gb")


def test_a_defect_costs_one_line(monkeypatch):
    def boom(request, facts):
        raise ZeroDivisionError("oops")

    monkeypatch.setattr("analysis.predict.batch.predict", boom)
    (found,) = ask({"id": 3, "model": "qwen2.5-7b"})
    assert found == {"id": 3, "error": "internal error, ZeroDivisionError: oops"}


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({}, "there is no model"),
        ({"model": ""}, "model is ''"),
        ({"model": 3}, "model is 3, not a name"),
        ({"model": "m", "max_num_seq": 3}, "field 'max_num_seq' is not known; did you mean 'max_num_seqs'?"),
        ({"model": "m", "max_num_seqs": 0}, "max_num_seqs is 0"),
        ({"model": "m", "max_num_seqs": 2.5}, "max_num_seqs is 2.5, not a whole number"),
        ({"model": "m", "max_num_seqs": True}, "max_num_seqs is True"),
        ({"model": "m", "max_num_seqs": [3]}, "max_num_seqs is [3]"),
        ({"model": "m", "max_model_len": -5}, "max_model_len is -5"),
        ({"model": "m", "gpu_total_gib": -1}, "gpu_total_gib is -1"),
        ({"model": "m", "gpu_total_gib": "x"}, "gpu_total_gib is 'x', not a number"),
        ({"model": "m", "gpu_memory_utilization": 92}, "gpu_memory_utilization is 92; it must be at most 1"),
        ({"model": "m", "kv_cache_memory_bytes": -1}, "kv_cache_memory_bytes is -1"),
        ({"model": "m", "enforce_eager": "maybe"}, "enforce_eager is 'maybe'"),
        ({"model": "m", "vllm_version": "latest"}, "vllm_version is 'latest'"),
        ({"model": "m", "vllm_version": 0.32}, "vllm_version is 0.32, not a name"),
        ({"model": "m", "tensor_parallel_size": 5000}, "tensor_parallel_size is 5000"),
        ({"config": "m"}, "config is str, not an object"),
    ],
)
def test_malformed_fields_are_named(fields, said):
    with pytest.raises(RequestError) as refused:
        Request.of(fields)
    assert said in str(refused.value)


def test_strange_fields_are_ignored_and_said():
    request = Request.of({"id": 1, "model": "m", "comment": "x"})
    assert request.notes == ("field comment not known and ignored",)
    assert Request.of({"model": "m", "vllm_version": "v0.19.0", "max_num_seqs": "1k"}).max_num_seqs == 1000
