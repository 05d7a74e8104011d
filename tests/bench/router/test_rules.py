"""Which engine a request goes to, and which configurations are refused."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from bench.errors import BadRequest
from bench.router.config import RouterConfig
from bench.router.rules import Asked, Rules

BACKENDS = [
    {"name": "coder", "url": "http://127.0.0.1:8000", "model": "big"},
    {"name": "general", "url": "http://127.0.0.1:8001", "model": "small"},
    {"name": "replica", "url": "http://127.0.0.1:8002", "model": "small"},
]


def rules(*given, default=None, load=lambda name: 0):
    return Rules(RouterConfig.of({"backends": BACKENDS, "rules": list(given), "default": default}), load)


def ask(text="", model=None, task=None):
    return Asked(task, model, text)


def test_the_first_rule_that_answers_decides_and_the_default_takes_the_rest():
    found = rules(
        {"kind": "task", "engines": {"code": "coder"}}, {"kind": "keyword", "keywords": {"coder": ["python"]}},
        default="general",
    )  # fmt: skip
    assert found.candidates(ask("write prose", task="code")) == ("coder",)
    assert found.candidates(ask("a Python script", task="chat")) == ("coder",)
    assert found.candidates(ask("hello")) == ("general",)
    assert rules({"kind": "task", "engines": {"code": "coder"}}).candidates(ask("hello")) == ()


def test_keywords_are_whole_words():
    found = rules({"kind": "keyword", "keywords": {"coder": ["code", "c++"]}}, default="general")
    assert found.candidates(ask("decode this radio signal")) == ("general",)
    assert found.candidates(ask("Code, please")) == ("coder",)
    assert found.candidates(ask("in c++ then")) == ("coder",)


def test_a_model_is_found_by_engine_name_or_served_model_and_replicas_by_load():
    loads = {"general": 5, "replica": 2, "coder": 0}
    found = rules({"kind": "model"}, load=loads.__getitem__)
    assert list(found.candidates(ask(model="coder"))) == ["coder"]
    assert list(found.candidates(ask(model="small"))) == ["replica", "general"]
    assert list(found.candidates(ask(model="unknown"))) == []


def test_weights_are_exact_over_every_whole_round():
    found = rules({"kind": "weighted", "weights": {"coder": 7, "general": 2, "replica": 1}})
    for _ in range(3):
        dealt = Counter(found.candidates(ask())[0] for _ in range(10))
        assert dealt == {"coder": 7, "general": 2, "replica": 1}


def test_the_last_message_of_the_user_is_what_counts():
    chat = {"messages": [
        {"role": "user", "content": "some python"}, {"role": "assistant", "content": "done"},
        {"role": "user", "content": [{"type": "text", "text": "and a poem"}]},
    ]}  # fmt: skip
    assert Asked.of(chat, None).text == "and a poem"
    assert Asked.of({"prompt": [1, 2, 3]}, None).text == ""
    assert Asked.of({"prompt": ["a", "b"]}, None).text == "a\nb"
    assert Asked.of({"messages": "odd", "model": 3}, None).model is None


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"backends": []}, "router.backends"),
        ({"backends": [*BACKENDS, BACKENDS[0]]}, "coder"),
        ({"backends": [{"name": "a", "url": "ftp://x"}]}, "ftp://x"),
        ({"backends": [{"name": "a"}]}, "url"),
        ({"backends": [{"name": "a", "url": "http://x:1", "max_in_flight": 0}]}, "max_in_flight"),
        ({"backends": ["a"]}, "write keys and values"),
        ({"rules": [{"kind": "magic"}]}, "magic"),
        ({"rules": [{"kind": "task"}]}, "needs engines"),
        ({"rules": [{"kind": "model", "among": ["coder"]}]}, "has no among"),
        ({"rules": [{"kind": "task", "engines": {"code": "nobody"}}]}, "nobody"),
        ({"rules": [{"kind": "weighted", "weights": {"coder": -1}}]}, "must be 0 or more"),
        ({"rules": [{"kind": "weighted", "weights": {"coder": 0}}]}, "above 0"),
        ({"default": "nobody"}, "nobody"),
        ({"defualt": "coder"}, "defualt"),
        ({"queue_timeout_s": 0}, "queue_timeout_s"),
    ],
)
def test_a_bad_configuration_is_one_sentence(change, said):
    with pytest.raises(BadRequest, match=said) as refused:
        RouterConfig.of({"backends": BACKENDS, **change})
    assert "\n" not in str(refused.value)


def test_the_example_is_a_configuration():
    config = RouterConfig.read(Path(__file__).resolve().parents[3] / "conf/router/pair.yaml")
    assert {one.name for one in config.backends} == {"coder", "general"}
    found = Rules(config, lambda name: 0)
    assert found.candidates(ask("explain this SQL")) == ("coder",)


@pytest.mark.parametrize("content", ["backends: [", "- a list", "\xff"])
def test_a_file_that_is_no_configuration_is_one_sentence(content, tmp_path):
    file = tmp_path / "router.yaml"
    file.write_bytes(content.encode("latin-1"))
    with pytest.raises(BadRequest, match=r"router=.*router\.yaml"):
        RouterConfig.read(file)
    with pytest.raises(BadRequest, match="cannot be read"):
        RouterConfig.read(tmp_path / "missing.yaml")


def test_messages_of_the_responses_api_are_read_as_those_of_a_chat():
    said = [{"role": "user", "content": "first"}, {"role": "system", "content": ""}, {"role": "user", "content": "y"}]
    assert Asked.of({"input": said}, None).text == "y"
    assert Asked.of({"input": ["a", "b"]}, None).text == "a\nb"


URL = "http://127.0.0.1:8000"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"rules": [{"kind": "keyword", "keywords": {"coder": "code"}}]},
         "router.rules[keyword].keywords[coder]='code': write a list, as in [python, SQL]"),
        ({"rules": [{"kind": "keyword", "keywords": {"coder": []}}]},
         "router.rules[keyword].keywords[coder]=[]: give it a word"),
        ({"rules": [{"kind": "keyword", "keywords": {"coder": None}}]},
         "router.rules[keyword].keywords[coder]=None: write a list"),
        ({"rules": [{"kind": "keyword", "keywords": {"coder": [" "]}}]},
         "router.rules[keyword].keywords[coder]=' ': write text"),
        ({"rules": [{"kind": "keyword", "keywords": {"coder": [True]}}]},
         "router.rules[keyword].keywords[coder]=True: write text, in quotes"),
        ({"rules": [{"kind": "keyword", "keywords": ["code"]}]},
         "router.rules[keyword].keywords=['code']: write keys and values, as in {coder: [python, SQL]}"),
        ({"rules": [{"kind": "task", "engines": {1: "coder"}}]},
         "router.rules[task].engines={1: 'coder'}: the key 1 is not text; write it in quotes"),
        ({"rules": [{"kind": "task", "engines": ["coder"]}]}, "router.rules[task].engines=['coder']: write keys"),
        ({"rules": [{"kind": "task", "engines": {"x": 3}}]}, "router.rules[task].engines[x]=3: write text"),
        ({"rules": [{"kind": "weighted", "weights": ["coder", "general"]}]},
         "router.rules[weighted].weights=['coder', 'general']: write keys and values"),
        ({"rules": [{"kind": "weighted", "weights": {"coder": "x"}}]},
         "router.rules[weighted].weights[coder]='x': write a number"),
        ({"rules": [{"kind": "weighted", "weights": {"coder": float("inf")}}]},
         "router.rules[weighted].weights[coder]=inf: write a number"),
        ({"rules": [{"kind": "least_loaded", "among": "general"}]},
         "router.rules[least_loaded].among='general': write a list"),
        ({"rules": [{"kind": "least_loaded", "among": [["general"]]}]}, "router.rules[least_loaded].among="),
        ({"rules": {"kind": "model"}}, "router.rules={'kind': 'model'}: write a list"),
        ({"rules": ["model"]}, "router.rules='model': write keys and values"),
        ({"backends": 3}, "router.backends=3: write a list"),
        ({"backends": [{"name": "a", "url": 8000}]}, "router.backends[a].url=8000: give it as http://HOST:PORT"),
        ({"backends": [{"name": "a", "url": "localhost:8000"}]},
         "router.backends[a].url='localhost:8000': give it as http://HOST:PORT"),
        ({"backends": [{"name": 1, "url": URL}]}, "router.backends.name=1: write text, in quotes"),
        ({"backends": [{"name": "a", "url": URL, "model": 7}]}, "router.backends[a].model=7: write text"),
        ({"backends": [{"name": "a", "url": URL, "max_in_flight": "64"}]},
         "router.backends[a].max_in_flight='64': write a whole number, without quotes"),
        ({"backends": [{"name": "a", "url": URL, "max_queued": True}]},
         "router.backends[a].max_queued=True: write a whole number"),
        ({"queue_timeout_s": "soon"}, "router.queue_timeout_s='soon': write a number"),
        ({"retry_down_s": None}, "router.retry_down_s=None: write a number"),
        ({"silence_timeout_s": "10s"}, "router.silence_timeout_s='10s': write a number"),
    ],
)
def test_a_value_of_the_wrong_kind_is_refused_with_its_field_and_what_to_write(change, said):
    with pytest.raises(BadRequest) as refused:
        RouterConfig.of({"backends": BACKENDS, **change})
    assert said in str(refused.value) and "\n" not in str(refused.value)


def test_a_word_of_digits_is_a_word():
    found = rules({"kind": "keyword", "keywords": {"coder": [404]}}, default="general")
    assert found.candidates(ask("what is a 404 page")) == ("coder",)


@pytest.mark.parametrize("port", ["99999", "65536", "-1"])
def test_a_port_that_cannot_be_is_refused(port, tmp_path):
    import subprocess
    import sys

    root = Path(__file__).resolve().parents[3]
    words = [sys.executable, "-m", "bench.router", "conf/router/pair.yaml", "--port", port]
    done = subprocess.run(words, cwd=root, text=True, capture_output=True, timeout=30)
    assert done.returncode == 2
    assert done.stderr == f"error: --port={port}: choose one of 1 to 65535, or 0 for a free one\n"
