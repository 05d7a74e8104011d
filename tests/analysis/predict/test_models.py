"""What a model may be called."""

from __future__ import annotations

import http.server
import json
import threading

import pytest

from analysis import catalogue
from analysis.predict import hub, models
from analysis.predict.models import resolve
from analysis.predict.request import Request, RequestError


@pytest.fixture(autouse=True)
def no_network(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(hub, "_down", [])
    models._named.cache_clear()


def of(**fields):
    return resolve(Request(**fields))


def method(model):
    return (model.config.get("quantization_config") or {}).get("quant_method")


def test_catalogue_entry_and_hub_id_are_one_shape():
    assert of(model="qwen2.5-7b") == of(model="Qwen/Qwen2.5-7B-Instruct") == of(model="qwen/qwen2.5-7b-instruct")
    assert of(model="qwen2.5-7b").notes == ()


@pytest.mark.parametrize(
    ("name", "entry", "quantization"),
    [
        ("Qwen/Qwen2.5-7B-Instruct-AWQ", "qwen2.5-7b", "awq"),
        ("TheBloke/deepseek-coder-33B-instruct-AWQ", "deepseek-coder-33b", "awq"),
        ("TheBloke/deepseek-coder-33B-instruct-GPTQ", "deepseek-coder-33b", "gptq"),
        ("Qwen/Qwen2.5-7B-Instruct-GPTQ-Int4", "qwen2.5-7b", "gptq"),
        ("Qwen/Qwen2.5-7B-Instruct-GPTQ-Int8", "qwen2.5-7b", "gptq-int8"),
        ("RedHatAI/Meta-Llama-3.1-8B-Instruct-FP8-dynamic", "llama-3.1-8b", "fp8-dynamic"),
        ("RedHatAI/Meta-Llama-3.1-8B-Instruct-quantized.w8a8", "llama-3.1-8b", "int8-w8a8"),
        ("RedHatAI/Meta-Llama-3.1-8B-Instruct-quantized.w4a16", "llama-3.1-8b", "w4a16"),
        ("neuralmagic/Meta-Llama-3.1-8B-Instruct-FP8", "llama-3.1-8b", "fp8"),
        ("Qwen/Qwen3-8B-FP8", "qwen3-8b", "fp8-block"),
    ],
)
def test_quantized_checkpoints_by_their_name_with_a_warning(name, entry, quantization):
    found = of(model=name)
    expected = catalogue.compose(catalogue.load_model(entry), catalogue.load_quantization(quantization))
    assert dict(found.config) == expected
    assert len(found.notes) == 1 and "by its name" in found.notes[0]


def test_a_sibling_of_the_same_shape_is_taken_with_a_warning():
    found = of(model="Qwen/Qwen2.5-7B")
    assert found == of(model="qwen2.5-7b") and "is taken to have the shape" in found.notes[0]


@pytest.mark.parametrize("asked", ["awq", "awq_marlin", "AWQ"])
def test_a_quantization_asked_for(asked):
    assert method(of(model="llama-3.1-8b", quantization=asked)) == "awq"


def test_a_quantized_config_keeps_its_own_block():
    block = {"quant_method": "awq", "bits": 4, "group_size": 64, "zero_point": True}
    config = {**catalogue.load_model("llama-3.1-8b").config, "quantization_config": block}
    assert of(config=config, quantization="awq_marlin").config["quantization_config"] == block
    with pytest.raises(RequestError, match="says 'awq'; vLLM refuses that"):
        of(config=config, quantization="fp8")
    plain = of(config=config, quantization="none")
    assert method(plain) is None and plain.notes


def test_online_quantization_keeps_the_dtype_of_the_config():
    config = {**catalogue.load_model("llama-3.1-8b").config, "torch_dtype": "float16"}
    found = of(config=config, quantization="fp8")
    assert (method(found), found.config["torch_dtype"]) == ("fp8", "float16")


def test_a_model_published_in_one_format_only():
    assert method(of(model="openai/gpt-oss-20b")) == "mxfp4"
    assert method(of(model="gpt-oss-20b", quantization="none")) is None


def test_a_folder_and_a_file(tmp_path):
    config = {"architectures": ["LlamaForCausalLM"], "hidden_size": 64}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert dict(of(model=str(tmp_path)).config) == config
    assert dict(of(model=str(tmp_path / "config.json")).config) == config


def test_the_hubs_cache_is_looked_at_first(tmp_path):
    snapshot = tmp_path / "hub" / "models--someone--thing" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    refs = snapshot.parents[1] / "refs"
    refs.mkdir()
    (refs / "main").write_text("abc")
    assert of(model="someone/thing").source == "hub cache someone/thing"
    assert of(model="someone/thing", revision="abc").config["architectures"] == ["LlamaForCausalLM"]


def test_overrides_are_laid_over_the_config():
    found = of(model="qwen2.5-7b", hf_overrides={"num_hidden_layers": 2})
    assert found.config["num_hidden_layers"] == 2 and found != of(model="qwen2.5-7b")


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"model": "lama-3.1-8b"}, "close: llama-3.1-8b"),
        ({"model": "nobody/some-model-7b"}, "HF_HUB_OFFLINE forbids asking a hub; give a local path or the config"),
        ({"model": "/nowhere/at/all"}, "there is no /nowhere/at/all"),
        ({"model": "./nowhere/config.json"}, "there is no ./nowhere/config.json"),
        ({"model": "llama-3.1-8b", "quantization": "bitsandbytes"}, "quantization 'bitsandbytes' is not known"),
    ],
)
def test_what_cannot_be_found_is_one_sentence(fields, said):
    with pytest.raises(RequestError) as refused:
        of(**fields)
    assert said in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize("content", ["{", "[1]", ""])
def test_a_broken_config_file_is_one_sentence(tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(RequestError, match="config.json"):
        of(model=str(tmp_path))


def test_a_hub_that_answers(monkeypatch):
    """A real server on this machine, by HF_ENDPOINT."""
    pages = {"/a/good/resolve/main/config.json": b'{"hidden_size": 8}', "/a/odd/resolve/main/config.json": b"<html>"}
    seen = []

    class Hub(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            seen.append(self.headers["authorization"])
            page = pages.get(self.path)
            self.send_response(200 if page else 401 if "gated" in self.path else 404)
            self.end_headers()
            self.wfile.write(page or b"")

        def log_message(self, *_):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Hub) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        monkeypatch.delenv("HF_HUB_OFFLINE")
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}/")
        monkeypatch.setenv("HF_TOKEN", "secret")
        monkeypatch.setenv("no_proxy", "*")
        try:
            found = of(model="a/good")
            assert (dict(found.config), found.source, seen) == ({"hidden_size": 8}, "hub a/good", ["Bearer secret"])
            for name, said in (("a/odd", "not JSON"), ("a/gated", "HF_TOKEN"), ("a/missing", "no such model")):
                with pytest.raises(RequestError, match=said):
                    of(model=name)
        finally:
            server.shutdown()
            thread.join()


def test_an_unreachable_hub_is_asked_once(monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE")
    asked = []

    def unreachable(name, revision):
        asked.append(name)
        raise OSError("no route to host")

    monkeypatch.setattr(hub, "_download", unreachable)
    for name in ("a/one-7b", "b/two-7b"):
        with pytest.raises(RequestError, match="no hub can be reached"):
            of(model=name)
    assert asked == ["a/one-7b"]
