"""Length distributions: what they promise, reproducibly."""

from __future__ import annotations

import json
import math
from statistics import mean, pstdev

import pytest

from bench.errors import BadRequest
from bench.load.lengths import parse_lengths
from bench.load.spec import LoadSpec
from bench.load.tokenfile import read_rows


def draw(value, number=4000, seed=3, what="input"):
    lengths = parse_lengths("input_tokens", value)
    found = [lengths.of(seed, what, index) for index in range(number)]
    assert all(isinstance(length, int) and lengths.min <= length <= lengths.max for length in found)
    return lengths, found


def test_a_number_is_a_fixed_length():
    assert draw(77)[1] == draw({"kind": "fixed", "tokens": 77})[1] == [77] * 4000


def test_uniform_reaches_both_ends_evenly():
    lengths, found = draw({"kind": "uniform", "min": 3, "max": 12})
    counts = [found.count(length) for length in range(3, 13)]
    assert min(counts) > 330 and max(counts) < 470 and lengths.mean == 7.5


def test_lognormal_has_the_mean_and_deviation_of_the_lengths_themselves():
    """Not of their logarithms; the limits are far out here, so that nothing is cut off."""
    _, found = draw({"kind": "lognormal", "mean": 200, "std": 100, "max": 100000}, 20000)
    assert mean(found) == pytest.approx(200, rel=0.02) and pstdev(found) == pytest.approx(100, rel=0.05)
    logs = [math.log(length) for length in found]
    assert mean(logs) == pytest.approx(math.log(200) - math.log(1.25) / 2, abs=0.01)


def test_what_lies_beyond_the_limits_does_not_pile_up_at_them():
    lengths, found = draw({"kind": "lognormal", "mean": 220, "std": 300, "min": 50, "max": 400}, 8000)
    assert found.count(400) < 40 and found.count(50) < 120 and max(found) > 395
    assert lengths.mean == pytest.approx(mean(found), rel=0.02)


def test_limits_far_from_the_mean_of_a_narrow_distribution_are_kept():
    _, found = draw({"kind": "lognormal", "mean": 100, "std": 0.001, "min": 1, "max": 1000}, 50)
    assert found == [100] * 50


def test_lengths_of_a_seed_never_change():
    spread = {"kind": "lognormal", "mean": 220, "std": 180, "min": 4, "max": 2048}
    assert draw(spread, 8, seed=11)[1] == [83, 384, 194, 323, 189, 319, 93, 33]
    assert draw({"kind": "uniform", "min": 1, "max": 1000}, 5, seed=11)[1] == [157, 872, 573, 815, 559]
    assert draw(spread, 8, seed=11, what="output")[1] != draw(spread, 8, seed=11)[1] != draw(spread, 8, seed=12)[1]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", "input_length,output_length\n10,1\n20,2\n30,3\n"),
        ("a.csv", "ContextTokens,GeneratedTokens\n10,1\n20,2\n30,3\n"),
        ("a.csv", "Timestamp,Model,Request tokens,Response tokens\n5,x,10,1\n6,x,20,2\n7,x,30,3\n"),
        ("a.jsonl", "\n".join(json.dumps({"prompt_tokens": 10 * n, "completion_tokens": n}) for n in (1, 2, 3))),
    ],
)
def test_lengths_of_a_file_keep_their_pairs(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    source = {"kind": "file", "path": str(tmp_path / name)}
    spec = LoadSpec(concurrency=1, num_requests=9, input_tokens=source, output_tokens=source)
    pairs = [(spec.input_lengths.of(4, "input", i), spec.output_lengths.of(4, "output", i)) for i in range(90)]
    assert set(pairs) == {(10, 1), (20, 2), (30, 3)} and spec.input_tokens_mean == 20
    assert spec.longest_request_tokens == 33


def test_plain_numbers_are_a_column(tmp_path):
    (tmp_path / "n.txt").write_text("5\n\n7\n9\n")
    lengths, found = draw({"kind": "file", "path": str(tmp_path / "n.txt")}, 60)
    assert set(found) == {5, 7, 9} and lengths.mean == 7


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        ({"kind": "normal"}, "input_tokens.kind=normal: choose one of fixed, uniform, lognormal, file"),
        ({}, "input_tokens.kind=None: choose one of"),
        ({"kind": ["fixed"]}, "input_tokens.kind=['fixed']: choose one of"),
        ({"kind": "uniform", "min": 3}, "input_tokens.max=None: uniform lengths need min, max"),
        ({"kind": "uniform", "min": 0, "max": 3}, "input_tokens.min=0: must be a whole number"),
        ({"kind": "uniform", "min": 1, "max": 3, "mean": 2}, "input_tokens.mean=2: uniform lengths take min, max"),
        ({"kind": "lognormal", "mean": 9, "std": -1, "max": 30}, "input_tokens.std=-1: must be a number"),
        ({"kind": "lognormal", "mean": 90, "std": 1, "max": 30}, "input_tokens.mean=90: must lie between min=1 and"),
        ({"kind": "file", "path": "nowhere.csv"}, "input_tokens.path=nowhere.csv: there is no such file"),
        (None, "input_tokens=None: must be a whole number"),
    ],
)
def test_wrong_distributions_are_refused_by_name(value, sentence):
    with pytest.raises(BadRequest) as refusal:
        parse_lengths("input_tokens", value)
    assert str(refusal.value).startswith(sentence)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("", "it has no rows"), ("a,b\n", "it has no rows"), ("a,b\n1,2\n", "no column input_length or"),
        ("input_length\n5\n0\n", "row 2 has input_length '0'"), ("input_length\n5.5\n", "row 1 has input_length"),
        ("input_length\nx\n", "row 1 has"), ("input_length\ninf\n", "row 1 has"), ('{"input_length": 3}\n{', "line 2"),
        ('{"input_length": null}', "row 1 has input_length None"), ("{}\n[1]", "line 2 is not an object"),
        ("\x00\x01", "it has no rows"), ('[{"input_length": 3}]', "a JSON array; write one object a line"),
    ],
)  # fmt: skip
def test_wrong_files_are_refused_with_the_row(tmp_path, text, part):
    file = tmp_path / "f"
    file.write_text(text)
    with pytest.raises(BadRequest) as refusal:
        parse_lengths("input_tokens", {"kind": "file", "path": str(file)})
    assert str(refusal.value).startswith(f"input_tokens.path={file}: ") and part in str(refusal.value)


def test_a_changed_file_is_read_again(tmp_path):
    file = tmp_path / "f.csv"
    file.write_text("a\n1\n")
    assert len(read_rows("x", str(file))) == 1
    file.write_text("a\n1\n2\n")
    assert len(read_rows("x", str(file))) == 2


def test_binary_files_and_folders_are_refused(tmp_path):
    (tmp_path / "b").write_bytes(b"\xff\xfe\x00" * 9)
    for path in (tmp_path / "b", tmp_path):
        with pytest.raises(BadRequest, match="^x="):
            read_rows("x", str(path))
