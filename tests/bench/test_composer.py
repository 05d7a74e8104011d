"""Points composed with the groups of others must be the points that Hydra composes."""

from __future__ import annotations

from pathlib import Path

import pytest
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import OmegaConf

from bench.cli import _register
from bench.composer import Composer

CONF = Path(__file__).parents[2] / "conf"


@pytest.fixture(scope="module")
def sweep():
    """A composer, and what Hydra makes of the same words."""
    _register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        master = loader.load_configuration("config", ["sweep=gpu", "device=cpu"], run_mode=RunMode.MULTIRUN)
        composer = Composer(loader, master)
        yield composer, lambda words: loader.load_sweep_config(master, words)


def plain(config) -> dict:
    """Everything but Hydra's own node, as it resolves."""
    return {key: OmegaConf.to_container(config[key], resolve=True) if OmegaConf.is_config(config[key]) else config[key]
            for key in config if key != "hydra"}  # fmt: skip


@pytest.mark.parametrize(
    "words",
    [
        ["sweep=gpu", "device=cpu", "model=qwen2.5-7b", "quantization=awq", "engine=fixed-pool",
         "engine.max_num_batched_tokens=8192", "engine.max_num_seqs=64"],
        ["engine.max_num_seqs=64", "engine=fixed-pool", "engine.max_num_seqs=32"],  # a group after its value; twice
        ["set=mine", "repeats=3", "engine.kv_cache_dtype=null", "model.name='a name, with a comma'"],
        ["engine.extra_args=[--a,'--b=1']", "workload=gpu-mixed", "workload.seed=1e3"],
        ["engine.env={A: b}"], ["+engine.env.A=b"], ["++engine.max_num_seqs=5", "engine.max_num_seqs=6"],
        ["~engine.kv_cache_memory_bytes"], ["sweep.name=${set}", "set=other"],
    ],
    ids=lambda words: words[0],
)  # fmt: skip
def test_a_point_is_what_hydra_composes(sweep, words):
    composer, by_hydra = sweep
    try:
        expected = plain(by_hydra(words))
    except Exception as error:
        with pytest.raises(type(error)) as raised:
            plain(composer.compose(words))
        assert str(raised.value) == str(error)
    else:
        assert plain(composer.compose(words)) == expected


@pytest.mark.parametrize(
    "word",
    ["engine.max_num_sequences=4", "model=nothing", "engine.max_num_seqs=many", "engine.x.y=1", "engine.env={'A': 'b'}",
     "set=a (b)"],
)  # fmt: skip
def test_a_mistake_is_put_in_hydras_words(sweep, word):
    composer, by_hydra = sweep
    with pytest.raises(HydraException) as expected:
        by_hydra(["model=qwen2.5-7b", word])
    with pytest.raises(type(expected.value)) as raised:
        composer.compose(["model=qwen2.5-7b", word])
    assert str(raised.value) == str(expected.value)


def test_a_point_leaves_the_next_alone(sweep):
    composer, _ = sweep
    first = composer.compose(["model=qwen2.5-7b", "engine.max_num_seqs=4", "engine.extra_args=[--a]"])
    first.engine.extra_args.append("--b")
    second = composer.compose(["model=qwen2.5-7b"])
    assert second.engine.max_num_seqs != 4 and list(second.engine.extra_args) == []


def test_groups_are_composed_once_and_values_need_no_files(sweep, monkeypatch):
    composer, _ = sweep
    asked = []
    real = composer._loader.load_sweep_config
    monkeypatch.setattr(composer._loader, "load_sweep_config", lambda *args: asked.append(args) or real(*args))
    for tokens in range(1024, 1064):
        for model in ("tiny-qwen2", "tiny-llama"):
            composer.compose([f"model={model}", f"engine.max_num_batched_tokens={tokens}", "set=x"])
    assert len(asked) == 2
