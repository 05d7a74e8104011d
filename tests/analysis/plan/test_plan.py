"""Shares for several engines on one card: sums, order, verdicts, and what is proposed instead."""

from __future__ import annotations

import json

import pytest

from analysis import gpus
from analysis.cli import main
from analysis.plan import commands, instead
from analysis.plan.card import plan
from analysis.plan.engine import Card, Engine
from analysis.predict.prediction import GIB

CARD = Card("96gb", None, None)
PAIR = ("deepseek-coder-33b:awq", "mistral-7b:awq")


def engines(*texts: str, concurrency: int = 8, length: int = 4096) -> list[Engine]:
    return [Engine.parse(text, concurrency, length) for text in texts]


@pytest.mark.parametrize("mode", ["utilization", "bytes"])
def test_the_guides_pair_fits_with_shares_that_leave_room_for_two_contexts(mode):
    done = plan(engines(*PAIR), CARD, mode=mode)
    assert done.verdict == "fits"
    whole = gpus.find("96gb").total_bytes
    assert done.peak.high <= whole
    assert sum(one.share for one in done.placed) < 1 - sum(o.prediction.context.value for o in done.placed) / whole
    for one in done.placed:
        assert one.free.low >= one.budget_bytes, "vLLM would refuse to start it"
        assert one.prediction.full_length_requests.low >= one.engine.concurrency
        assert one.need.kv_bytes <= one.prediction.kv_pool.value
        assert (one.pool_bytes is None) == (mode == "utilization")


def test_what_is_left_of_the_card_goes_to_the_pools_in_proportion_to_the_loads():
    done = plan(engines("qwen2.5-7b:awq,concurrency=32", "qwen2.5-7b:awq,concurrency=8"), CARD)
    large, small = (one.prediction.kv_pool.value for one in done.placed)
    assert large / small == pytest.approx(4, rel=0.1)


def test_each_engine_starts_beside_the_peaks_of_those_before_it():
    done = plan(engines("mistral-7b:awq", "deepseek-coder-33b:awq"), CARD)
    assert [one.engine.model for one in done.placed] == ["deepseek-coder-33b", "mistral-7b"], "largest first"
    first, second = done.placed
    taken = first.prediction.device_peak.value + second.prediction.context.value
    assert second.free.value == pytest.approx(done.total_bytes - taken)
    kept = plan(engines("mistral-7b:awq", "deepseek-coder-33b:awq"), CARD, keep_order=True)
    assert [one.engine.model for one in kept.placed] == ["mistral-7b", "deepseek-coder-33b"]


def test_spare_memory_is_left_to_others():
    spare = 20 * GIB
    done = plan(engines(*PAIR), CARD, spare_bytes=spare)
    assert done.verdict == "fits"
    assert done.headroom.low >= spare


def test_more_load_never_turns_a_refusal_into_a_fit():
    rank = {"fits": 0, "tight": 1, "does_not_fit": 2}
    verdicts = [rank[plan(engines(*PAIR, concurrency=n), CARD).verdict] for n in (1, 8, 32, 40, 48, 64, 256)]
    assert verdicts == sorted(verdicts)
    assert verdicts[0] == 0 and verdicts[-1] == 2


def test_a_plan_that_does_not_fit_says_how_much_is_missing_and_what_would_fit():
    asked = engines("deepseek-coder-33b:bf16", "qwen2.5-14b:bf16")
    done = plan(asked, CARD)
    assert done.verdict == "does_not_fit"
    # The weights alone (62 + 27 GiB) leave less than the load needs; the shortfall is no token figure.
    assert done.shortfall_bytes > 5 * GIB
    changes = instead.changes(asked, CARD)
    assert any("deepseek-coder-33b in awq" in change.sentence for change in changes)
    for change in changes:
        assert change.plan.verdict == "fits"


def test_the_largest_load_proposed_is_the_largest():
    asked = engines(*PAIR, concurrency=100)
    fewer = next(change for change in instead.changes(asked, CARD) if change.sentence.startswith("fewer"))
    held = {one.engine.concurrency for one in fewer.plan.placed}
    assert len(held) == 1 and 20 < held.copy().pop() < 100
    more = [Engine.parse(text, held.copy().pop() + 2, 4096) for text in PAIR]
    assert plan(more, CARD).verdict != "fits"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--gpu", "96gb"], "give --model once"),
        (["--gpu", "96gb", "--model", "mistral-7b:awq,lenght=3"], "did you mean length?"),
        (["--gpu", "96gb", "--model", ":awq"], "write NAME"),
        (["--gpu", "96gb", "--model", "mistral-7b:nope"], "nope"),
        (["--gpu", "96gb", "--model", "mistral-7b", "--length", "0"], "length"),
        (["--gpu", "96gb", "--model", "mistral-7b", "--concurrency", "many"], "--concurrency"),
        (["--gpu", "96gb", "--model", "mistral-7b", "--spare-gib", "-1"], "--spare-gib"),
        (["--gpu", "96gb", "--model", "mistral-7b", "--spare-gib", "96"], "--spare-gib"),
        (["--gpu", "96gb", "--model", "mistral-7b", "--length", "999999"], "999999"),
        (["--gpu", "96gb", "mistral-7b"], "--model"),
        (["--gpu", "96gb", "--model", "mistral-7b,max_num_seqs=4,concurrency=64"], "max_num_seqs=64 or concurrency=4"),
        (["--gpu", "96gb", "--model", "mistral-7b", "--out", "x"], "--scenarios"),
        (["--gpu", "96gb", "--model", "mistral-7b", "--pool", "bytes", "--vllm-version", "0.10.1"], "0.10.2"),
        (["--scenarios", "--gpu", "nosuch"], "gpu 'nosuch' is not in the table"),
        (["--scenarios", "nosuchset"], "there is no result set 'nosuchset'"),
        (["--scenarios", "--concurrency", "4"], "leave out --concurrency"),
        (["--scenarios", "--length", "4"], "leave out --length"),
        (["--scenarios", "--pool", "bytes", "--keep-order"], "leave out --pool, --keep-order"),
        (["--scenarios", "--format", "compose"], "--format compose"),
        (["--scenarios", "--format", "json", "--out", "x"], "--format json"),
        (["--scenarios", "--vllm-version", "new"], "vllm_version"),
    ],
)
def test_a_bad_request_is_one_sentence(words, said, capsys):
    assert main(["plan", *words]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and said in error


def test_json_holds_what_the_text_says(capsys):
    words = ["plan", "--gpu", "96gb", "--model", PAIR[0], "--model", PAIR[1]]
    assert main([*words, "--format", "json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert main(words) == 0
    text = capsys.readouterr().out
    assert "FITS" in text
    for engine in answer["engines"]:
        assert engine["command"] in text
        assert f"{engine['gpu_memory_utilization']:.3f}" in text


@pytest.mark.parametrize(("form", "stream"), [("text", "out"), ("script", "err"), ("compose", "err")])
def test_a_plan_that_does_not_fit_exits_with_1_and_gives_no_command(form, stream, capsys):
    words = ["--model", "deepseek-coder-33b:bf16", "--model", "qwen2.5-14b:bf16"]
    assert main(["plan", "--gpu", "96gb", *words, "--format", form]) == 1
    printed = capsys.readouterr()
    text = getattr(printed, stream)
    assert "DOES NOT FIT" in text and "GiB short" in text and "vllm serve" not in text
    other = printed.err if stream == "out" else printed.out
    assert other == "", "prose has no place in a file of commands"


def test_compose_starts_the_second_engine_when_the_first_is_healthy():
    import yaml

    done = plan(engines(*PAIR), CARD)
    services = yaml.safe_load(commands.compose(done))["services"]
    assert list(services) == ["engine-1", "engine-2"]
    assert services["engine-2"]["depends_on"] == {"engine-1": {"condition": "service_healthy"}}
    for one, service in zip(done.placed, services.values(), strict=True):
        assert f"{one.share:.3f}" in service["command"]


def test_a_script_waits_for_each_engine_before_the_next():
    lines = commands.script(plan(engines(*PAIR), CARD)).splitlines()
    serve = [place for place, line in enumerate(lines) if line.startswith("vllm serve")]
    health = [place for place, line in enumerate(lines) if "/health" in line]
    assert serve[0] < health[0] < serve[1] < health[1]


def test_a_small_engine_keeps_its_need_beside_a_large_one_on_a_large_card():
    pair = [Engine.parse("tiny-qwen3:bf16,max_num_batched_tokens=512", 1, 2048),
            Engine.parse("llama-3.3-70b:fp8-dynamic,kv_cache_dtype=fp8", 64, 1000)]  # fmt: skip
    assert plan(pair, Card("96gb", 284.91, None)).verdict == "fits", "rounding its share down would take its pool"


def test_the_scenarios_of_another_card_name_that_card(capsys):
    assert main(["plan", "--scenarios", "--gpu", "h100"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "79.19 GiB" in lines[2] and "H100" in lines[0]


def test_what_is_left_to_others_is_not_free_at_the_start():
    spare = 3 * GIB
    for one in plan(engines(*PAIR), CARD, spare_bytes=spare).placed[:1]:
        assert one.free.high <= gpus.find("96gb").total_bytes - spare


def test_changes_are_planned_in_the_mode_and_order_asked_for():
    pair = engines("deepseek-coder-33b", "deepseek-coder-33b:awq")
    found = instead.changes(pair, CARD, mode="bytes", keep_order=True)
    assert found and all(one.plan.mode == "bytes" for one in found)


def test_a_folder_is_mounted_into_its_container_and_a_script_stops_what_it_started():
    done = plan(engines(*PAIR), CARD)
    text = commands.compose(done)
    assert '"./mistral-7b-awq:/models/mistral-7b-awq:ro"' in text and '- "/models/mistral-7b-awq"' in text
    script = commands.script(done)
    assert script.index("trap") < script.index("vllm serve") and script.count('engines="$engines $!"') == 2


def test_a_pool_in_bytes_is_planned_where_vllm_has_the_option():
    old = Card("96gb", None, "0.10.2")
    assert plan(engines("mistral-7b:awq"), old, mode="bytes").placed[0].pool_bytes
    assert plan(engines("mistral-7b:awq"), Card("96gb", None, "0.6.3")).verdict == "fits"


def test_a_format_that_the_card_does_not_run_does_not_start_whatever_the_memory(capsys):
    asked = engines("deepseek-coder-33b:int8-w8a8", "mistral-7b:int8-w8a8")
    done = plan(asked, CARD)
    assert (done.verdict, done.memory) == ("does_not_start", "fits")
    assert done.reason.count("int8-w8a8 does not run on NVIDIA RTX PRO 6000 Blackwell") == 1
    assert plan(asked, Card("h200", None, None)).verdict == "fits"
    (change,) = instead.changes(asked, CARD)
    assert change.sentence == "deepseek-coder-33b in fp8, mistral-7b in fp8" and change.plan.verdict == "fits"
    assert main(["plan", "--gpu", "96gb", "--model", "mistral-7b:int8-w8a8"]) == 1
    text = capsys.readouterr().out
    assert "DOES NOT START" in text and "mistral-7b in fp8" in text and "vllm serve" not in text


def test_a_16_bit_model_is_served_in_half_where_the_card_has_no_bfloat16(capsys):
    assert main(["plan", "--gpu", "t4", "--model", "qwen2.5-1.5b:bf16"]) == 0
    text = capsys.readouterr().out
    assert "--dtype half" in text and "bfloat16" in text and "--dtype bfloat16" not in text
    done = plan(engines("qwen2.5-1.5b:bf16"), CARD)
    assert "bfloat16" in commands.serve_words(done.placed[0], 8000) and not commands.notes(done)


def test_the_colocated_recipe_has_the_shares_that_its_comment_says_plan_gives():
    """conf/colocate/guide-pair.yaml, against the command in its own head."""
    import re
    import shlex

    import yaml

    from analysis import catalogue

    text = (catalogue.CONF / "colocate" / "guide-pair.yaml").read_text(encoding="utf-8")
    command = re.search(r"^#\s+python -m analysis plan (.+)$", text, re.MULTILINE)
    assert command is not None
    words = shlex.split(command[1])
    given = {name: [value for key, value in zip(words, words[1:], strict=False) if key == name] for name in words}
    load = {key: int(given[f"--{key}"][0]) for key in ("concurrency", "length")}
    done = plan(engines(*given["--model"], **load), Card(given["--gpu"][0], None, None))
    recipe = yaml.safe_load(text)
    assert len(recipe["order"]) == len(done.placed) == 2
    for name, one in zip(recipe["order"], done.placed, strict=True):
        assert recipe["engines"][name]["engine"] == {
            "gpu_memory_utilization": one.share, "max_num_seqs": one.engine.max_num_seqs,
            "max_model_len": one.engine.length,
        }  # fmt: skip
        node = {key: value for entry in recipe["defaults"] if isinstance(entry, dict) for key, value in entry.items()}
        assert node[f"/model@engines.{name}.model"] == one.engine.model
        assert node[f"/quantization@engines.{name}.quantization"] == one.engine.quantization
