"""Advice: grades that follow from predictions, an order that can be explained, honesty about quality."""

from __future__ import annotations

import itertools
import json

import pytest

from analysis.advise.ask import Ask, Slo
from analysis.advise.candidates import candidates
from analysis.advise.instead import changes
from analysis.advise.rank import ranked, steps
from analysis.advise.together import pairs
from analysis.cli import main


def ask(*models, **fields):
    given = {
        "models": models or ("qwen2.5-14b",), "gpu": "h100", "gpu_total_gib": None, "vllm_version": None,
        "concurrency": 32, "rate_per_s": None, "input_tokens": 1024, "output_tokens": 256,
    }  # fmt: skip
    return Ask(**{**given, **fields})


def order(question):
    return ranked(candidates(question), question)


def test_each_format_appears_once_and_the_grades_never_rise_down_the_list():
    rank = ["meets", "likely", "misses", "waits", "tight", "does_not_start", "unknown"]
    found = order(ask("qwen2.5-14b", "deepseek-coder-33b"))
    assert len({(one.model, one.quantization) for one in found}) == len(found) == 10
    places = [rank.index(one.grade) for one in found]
    assert places == sorted(places)
    assert found[-1].model == "deepseek-coder-33b" and found[-1].quantization == "bf16", "62 GiB and a cache: last"


def test_what_cannot_start_is_out_with_the_reason():
    question = ask("deepseek-coder-33b", gpu="l4")
    found = {one.quantization: one for one in order(question)}
    assert found["bf16"].grade == "does_not_start"
    told = steps(list(found.values()), question)
    assert any("deepseek-coder-33b:bf16 is out" in step and "GiB" in step for step in told)


def test_a_target_that_no_card_meets_is_missed_and_said():
    question = ask(slo=Slo(tpot_s=1e-6))
    found = order(question)
    assert {one.grade for one in found} == {"misses"}
    assert "TPOT" in found[0].why
    assert any("nothing is predicted" in step for step in steps(found, question))


def test_a_generous_target_is_met():
    assert order(ask(slo=Slo(ttft_s=3600, tpot_s=3600)))[0].grade == "meets"


def test_too_many_requests_for_the_cache_wait():
    found = order(ask(concurrency=4096, input_tokens=8192, output_tokens=1024))
    assert {one.grade for one in found} <= {"waits", "does_not_start", "tight"}


def test_a_rate_beyond_saturation_waits():
    grades = {rate: order(ask(concurrency=None, rate_per_s=rate))[0].grade for rate in (0.1, 1e5)}
    assert grades[0.1] in ("meets", "likely")
    assert grades[1e5] == "waits"


def test_scores_decide_where_every_candidate_has_one_and_are_not_guessed():
    scores = {("qwen2.5-14b", name): score
              for name, score in (("bf16", 0.80), ("fp8", 0.79), ("int8-w8a8", 0.785), ("awq", 0.77), ("gptq", 0.76))}
    first = order(ask(quality=scores))[0]
    assert first.quantization == "bf16"
    partly = dict(list(scores.items())[:2])
    assert order(ask(quality=partly))[0].quantization == order(ask())[0].quantization
    high = order(ask(quality=scores, least_quality=0.79))
    assert {one.quantization for one in high} == {"bf16", "fp8"}


def test_the_kv_type_is_only_changed_where_it_helps():
    assert {one.kv_cache_dtype for one in order(ask(concurrency=4))} == {"auto"}


def test_together_plans_every_combination_and_orders_by_throughput_where_nothing_is_scored():
    found = pairs(ask("deepseek-coder-33b", "mistral-7b", gpu="96gb", concurrency=8))
    assert len(found) == 25
    fitting = [one for one in found if one.plan.verdict == "fits"]
    assert found[: len(fitting)] == fitting
    speeds = [float(f"{one.tokens_per_s:.2g}") for one in fitting]
    assert fitting and speeds[0] > 0 and speeds == sorted(speeds, reverse=True)
    assert fitting[0].weights_bytes < max(one.weights_bytes for one in fitting), "the heaviest is not the fastest"
    for before, after in itertools.pairwise(fitting):
        if float(f"{before.tokens_per_s:.2g}") == float(f"{after.tokens_per_s:.2g}"):
            assert float(f"{before.requests:.2g}") >= float(f"{after.requests:.2g}")


def test_together_puts_what_the_card_does_not_run_last_and_says_so(capsys):
    found = pairs(ask("deepseek-coder-33b", "mistral-7b", gpu="96gb", concurrency=8))
    out = [one for one in found if one.plan.verdict == "does_not_start"]
    assert len(out) == 9 and found[-9:] == out
    assert all("int8-w8a8" in one.plan.reason for one in out)
    words = ["--gpu", "96gb", "--together", "--model", "deepseek-coder-33b", "--model", "mistral-7b"]
    assert main(["advise", *words, "--concurrency", "8"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert text.count("int8-w8a8 does not run on") == 1 and "highest predicted throughput comes first" in text


def test_together_holds_targets_against_each_engine_alone(capsys):
    pair = ("deepseek-coder-33b", "mistral-7b")
    plain = pairs(ask(*pair, gpu="96gb", concurrency=8))
    slowest = max(speed.tpot.value for one in plain for speed in one.alone if speed)
    fastest = min(max(speed.tpot.value for speed in one.alone) for one in plain if one.alone)
    assert fastest < slowest
    between = pairs(ask(*pair, gpu="96gb", concurrency=8, slo=Slo(tpot_s=(fastest + slowest) / 2)))
    fitting = [bool(one.misses) for one in between if one.plan.verdict == "fits"]
    assert fitting == sorted(fitting) and set(fitting) == {False, True}
    words = ["advise", "--gpu", "96gb", "--together", "--model", pair[0], "--model", pair[1], "--concurrency", "8"]
    assert main([*words, "--tpot", "1ms"]) == 1
    assert "missed even by an engine alone" in capsys.readouterr().out
    assert main([*words, "--tpot", "100s"]) == 0
    assert "an optimistic bound" in " ".join(capsys.readouterr().out.split())


def test_a_format_that_the_card_lacks_is_out_and_has_no_command(capsys):
    found = {one.quantization: one for one in order(ask("qwen2.5-7b", gpu="v100-32gb", concurrency=8))}
    assert {name for name, one in found.items() if one.grade == "does_not_start"} == {"awq", "fp8", "int8-w8a8"}
    words = ["advise", "--gpu", "v100-32gb", "--model", "qwen2.5-7b", "--concurrency", "8"]
    assert main(words) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "vllm serve Qwen/Qwen2.5-7B-Instruct-GPTQ" in text and "qwen2.5-7b:awq is out: awq does not run on" in text
    assert main([*words, "--json"]) == 0
    rows = {one["quantization"]: one for one in json.loads(capsys.readouterr().out)["candidates"]}
    assert rows["awq"]["command"] is None and "AWQ" not in rows["gptq"]["command"]
    blackwell = {one.quantization: one.grade for one in order(ask("qwen2.5-7b", gpu="96gb", concurrency=8))}
    assert blackwell["int8-w8a8"] == "does_not_start" and blackwell["fp8"] == "meets"


def test_a_16_bit_model_is_advised_in_half_where_the_card_has_no_bfloat16(capsys):
    words = ["--gpu", "t4", "--model", "qwen2.5-1.5b", "--concurrency", "4", "--formats", "bf16"]
    assert main(["advise", *words]) == 0
    text = capsys.readouterr().out
    assert "--dtype half" in text and "--dtype bfloat16" not in text and "has no bfloat16" in " ".join(text.split())


def test_requests_longer_than_the_model_allows_are_one_sentence(capsys):
    assert main(["advise", *WORDS, "--concurrency", "8", "--input-tokens", "100000"]) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("\n") == 1
    assert "--input-tokens 100000" in printed.err and "32,768 of qwen2.5-14b" in printed.err


def test_where_nothing_serves_the_row_that_holds_most_comes_first_and_the_next_steps_serve(capsys):
    question = ask("qwen2.5-coder-32b", gpu="l4", concurrency=8)
    everything = [one for one in candidates(question) if one.grade == "waits"]
    first = order(question)[0]
    assert first.grade == "waits" and first.kv_cache_dtype == "fp8"
    assert first.held >= 0.95 * max(one.held for one in everything)
    told = changes(question)
    assert [sentence.partition(":")[0].partition(",")[0] for sentence in told] == [
        "fewer requests at once", "shorter prompts", "two such cards with --tensor-parallel-size 2", "a larger card",
    ]  # fmt: skip
    fewer = int(told[0].split(": ")[1].split()[0])
    grades = {many: order(ask("qwen2.5-coder-32b", gpu="l4", concurrency=many))[0].grade for many in (fewer, fewer + 1)}
    assert grades[fewer] in ("meets", "likely") and grades[fewer + 1] == "waits"
    assert main(["advise", "--gpu", "l4", "--model", "qwen2.5-coder-32b", "--concurrency", "8"]) == 1
    text = " ".join(capsys.readouterr().out.split())
    assert all(sentence in text for sentence in told) and "vllm serve" not in text


def test_next_steps_name_another_format_where_the_user_left_it_out():
    told = changes(ask("deepseek-coder-33b", gpu="l40s", concurrency=2, formats=("bf16",)))
    assert any(sentence.startswith("another weight format, with deepseek-coder-33b:") for sentence in told)


def test_one_reason_for_several_formats_is_told_once():
    question = ask("qwen2.5-14b", "llama-3.1-8b", input_tokens=40_000, concurrency=2)
    said = [step for step in steps(order(question), question) if "max_model_len is 40256" in step]
    assert len(said) == 1 and "qwen2.5-14b:bf16" in said[0] and "are out" in said[0]


WORDS = ["--gpu", "h100", "--model", "qwen2.5-14b"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--gpu", "h100", "--concurrency", "8"], "--model"),
        (WORDS, "state the load once"),
        ([*WORDS, "--concurrency", "8", "--rate", "2"], "state the load once"),
        ([*WORDS, "--concurrency", "0"], "--concurrency"),
        ([*WORDS, "--rate", "-1"], "--rate"),
        ([*WORDS, "--concurrency", "8", "--tpot", "fast"], "--tpot"),
        ([*WORDS, "--concurrency", "8", "--formats", "bf16,q9"], "q9"),
        ([*WORDS, "--concurrency", "8", "--min-quality", "0.9"], "--quality"),
        ([*WORDS, "--concurrency", "8", "--quality", "missing.csv"], "missing.csv"),
        (["--gpu", "nope", "--model", "qwen2.5-14b", "--concurrency", "8"], "nope"),
        (["--gpu", "h100", "--model", "nope", "--concurrency", "8"], "nope"),
        ([*WORDS, "--rate", "1", "--together"], "--concurrency"),
    ],
)
def test_a_bad_question_is_one_sentence(words, said, capsys):
    assert main(["advise", *words]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and said in error


HEADER = "model,quantization,quality\n"


@pytest.mark.parametrize("text", ["model,quantization\na,b\n", "[1]", "{", f"{HEADER}a,b,good\n", ""])
def test_scores_that_are_none_are_refused_with_the_place(text, tmp_path, capsys):
    file = tmp_path / "scores"
    file.write_text(text)
    assert main(["advise", *WORDS, "--concurrency", "8", "--quality", str(file)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "--quality" in error


def test_text_and_json_name_the_same_first_choice(capsys, tmp_path):
    scores = tmp_path / "scores.csv"
    scores.write_text("model,quantization,quality\n" + "".join(
        f"qwen2.5-14b,{name},{score}\n" for name, score in (("bf16", 3), ("fp8", 2), ("awq", 1))
    ))  # fmt: skip
    words = ["advise", *WORDS, "--concurrency", "8", "--formats", "bf16,fp8,awq", "--quality", str(scores)]
    assert main([*words, "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert main(words) == 0
    text = capsys.readouterr().out
    assert answer["candidates"][0]["quantization"] == "bf16"
    assert answer["candidates"][0]["command"] in text
    for step in answer["steps"]:
        assert step[:30] in text


def test_what_ties_in_throughput_is_not_called_fastest():
    question = ask("qwen2.5-7b", gpu="l40s", concurrency=None, rate_per_s=4.0)
    said = " ".join(steps(order(question), question))
    assert "has the same predicted throughput as" in said and "highest predicted throughput" not in said


def test_a_score_that_decided_nothing_is_not_given_as_the_reason():
    plain = order(ask())
    first = plain[0]
    question = ask(quality={(first.model, first.quantization): 0.9})
    said = " ".join(steps(order(question), question))
    assert "highest score" not in said and "no score was given for" in said
