"""A group on the command line: what it is made of, what it is refused for; no member passes for a solo start."""

from __future__ import annotations

import pytest

from bench.colocate.request import destinations, members, router_config
from bench.config import BenchConfig, ColocateConfig, MemberConfig, ModelConfig, RouterNode, StreamConfig, WorkloadPoint
from bench.errors import BadRequest
from bench.request import one_engine

SHAPE = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64, "intermediate_size": 128,
    "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 4, "vocab_size": 512,
    "max_position_embeddings": 2048,
}  # fmt: skip
RULES = [{"kind": "task", "engines": {"code": "coder"}}]


def _member(**engine) -> MemberConfig:
    one = MemberConfig(model=ModelConfig(name="tiny", config=SHAPE))
    for name, value in engine.items():
        setattr(one.engine, name, value)
    return one


def _cfg(**changes) -> BenchConfig:
    options = {
        "name": "pair", "engines": {"coder": _member(), "general": _member()},
        "streams": {
            "code": StreamConfig(task="code", load=WorkloadPoint()), "chat": StreamConfig(load=WorkloadPoint()),
        },
        "router": RouterNode(rules=RULES, default="general"),
    } | changes  # fmt: skip
    return BenchConfig(colocate=ColocateConfig(**options))


def _group(cfg: BenchConfig):
    from bench.colocate.request import group_request

    return group_request(cfg, "cpu")


def test_a_member_is_never_a_restart_of_the_engine_alone():
    request = _group(_cfg())
    alone = one_engine(BenchConfig(model=ModelConfig(name="tiny", config=SHAPE)), "cpu")
    ids = {one.point_id for one in members(request)}
    assert len(ids) == 2, "equal engines, other places"
    assert alone.point_id not in ids and request.point_id not in ids


def test_what_runs_beside_it_is_part_of_a_members_identity():
    before = members(_group(_cfg()))[0].point_id
    other = _cfg(engines={"coder": _member(), "general": _member(max_num_seqs=4)})
    assert members(_group(other))[0].point_id != before
    assert members(_group(_cfg(order=["general", "coder"])))[1].point_id != before
    load = WorkloadPoint(output_tokens=7)
    assert members(_group(_cfg(streams={"code": StreamConfig(task="code", load=load)})))[0].point_id != before
    assert members(_group(_cfg()))[0].point_id == before


def test_each_engine_gets_its_place_and_the_streams_that_go_to_it():
    coder, general = members(_group(_cfg(order=["general", "coder"])))[::-1]
    assert (coder.colocation.member, coder.colocation.position, coder.colocation.members) == ("coder", 1, 2)
    assert [point.name for point in coder.cfg.workload.points] == ["code"]
    assert [point.name for point in general.cfg.workload.points] == ["chat"]


def test_rules_decide_where_a_stream_goes():
    keyword = {"kind": "keyword", "keywords": {"coder": ["python"]}}
    cfg = _cfg(router=RouterNode(rules=[keyword, {"kind": "weighted", "weights": {"general": 3, "coder": 1}}])).colocate
    config = router_config(cfg, dict.fromkeys(cfg.engines, "http://127.0.0.1:1"))
    assert destinations(config, StreamConfig(words="a Python question")) == ["coder"]
    assert destinations(config, StreamConfig(words="weather")) == ["general", "coder"], "most first"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"engines": {"coder": _member()}}, "colocate.engines=coder: name two or more"),
        ({"order": ["coder"]}, "colocate.order"),
        ({"order": ["coder", "writer"]}, "colocate.order=writer: choose one of coder, general"),
        ({"router": RouterNode(rules=RULES)}, "colocate.streams.chat=task=None, model=None: no rule"),
        ({"router": RouterNode(rules=[{"kind": "task", "engines": {"a": "x"}}])}, "engines are coder, general"),
        ({"router": RouterNode(rules=[{"kind": "dice"}])}, "choose one of task"),
        ({"engines": {"coder": _member(port=9000), "general": _member(port=9000)}}, "its own port"),
        ({"streams": {"code": StreamConfig(task="code", load=WorkloadPoint(input_tokens=4000))}},
         "colocate.engines.coder: workload.points[code]"),
        ({"repeats": 0}, "colocate.repeats=0"),
        ({"streams": {"a b": StreamConfig(load=WorkloadPoint())}}, "letters"),
    ],
)  # fmt: skip
def test_a_group_that_cannot_be_is_refused_before_anything_starts(changes, said):
    with pytest.raises(BadRequest) as refused:
        _group(_cfg(**changes))
    assert said in str(refused.value)


def test_a_walk_down_the_ladder_is_not_for_groups():
    cfg = _cfg()
    cfg.on_oom = "mitigate"
    with pytest.raises(BadRequest, match="on_oom=mitigate"):
        _group(cfg)


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        ("{kind: keyword, keywords: {coder: code}}", "colocate.router.rules[keyword].keywords[coder]='code': write a"),
        ("{kind: task, engines: {1: coder}}", "colocate.router.rules[task].engines={1: 'coder'}: the key 1 is not"),
        ("{kind: weighted, weights: [coder]}", "colocate.router.rules[weighted].weights=['coder']: write keys"),
    ],
)  # fmt: skip
def test_a_bad_rule_is_refused_on_the_command_line_in_one_sentence(bench, rule, said, tmp_path):
    done = bench("colocate=cpu-pair", f"colocate.router.rules=[{rule}]", "dry_run=true", f"paths.results={tmp_path}")
    assert done.returncode == 2, done.stdout + done.stderr
    assert done.stderr.startswith(f"error: {said}") and done.stderr.count("\n") == 1


def test_two_points_of_a_grid_are_told_apart(bench, tmp_path):
    words = ["colocate=cpu-pair", "colocate.engines.coder.engine.max_num_seqs=4,8", "dry_run=true"]
    done = bench(*words, f"paths.results={tmp_path}")
    assert done.returncode == 0, done.stderr
    first, second = (line.split("  ", 1)[1] for line in done.stdout.splitlines())
    assert first.endswith("coder.max_num_seqs=4") and second.endswith("coder.max_num_seqs=8")
