from __future__ import annotations

import json

import pytest

CODE = """
from bench.telemetry.nvml import open_nvml
from bench.telemetry.nvml_errors import BadDevice
from bench.telemetry.visible import visible_devices
try:
    result = [d.uuid if d.is_mig else d.index for d in visible_devices(open_nvml(), json.loads({env!r}))]
except BadDevice as error:
    result = str(error)
"""


@pytest.fixture
def visible(in_new_process):
    return lambda **env: in_new_process(CODE.format(env=json.dumps(env)))


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("0,1,2", [0, 1, 2]),
        ("2,0", [2, 0]),
        (" 1 , 2 ", [1, 2]),
        ("", []),
        ("-1", []),
        ("2,-1,0", [2]),
        ("NoDevFiles", []),
        ("GPU-00000001-0000-4000-8000-000000000000", [1]),
        ("GPU-00000002,0", [2, 0]),
    ],
)
def test_cuda_order_and_selection(gpus, visible, value, expected):
    gpus.gpu(2)
    assert visible(CUDA_VISIBLE_DEVICES=value) == expected


def test_unset_means_all(gpus, visible):
    gpus.gpu(1)
    assert visible() == [0, 1]


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("3", "index 3"),
        ("0,0", "twice"),
        ("GPU-0000", "several GPUs match"),
        ("GPU-ffff", "no GPU matches"),
        ("cuda:0", "no index"),
    ],
)
def test_what_cuda_would_drop_silently_is_refused(gpus, visible, value, words):
    gpus.gpu(2)
    assert words in visible(CUDA_VISIBLE_DEVICES=value)


def test_mixed_models_need_a_defined_order(gpus, visible):
    gpus.gpu(0).gpu(1, name="NVIDIA L4")
    for env in ({}, {"CUDA_VISIBLE_DEVICES": "0"}):
        assert "CUDA_DEVICE_ORDER=PCI_BUS_ID" in visible(**env)
    assert visible(CUDA_VISIBLE_DEVICES="1", CUDA_DEVICE_ORDER="PCI_BUS_ID") == [1]
    assert visible(CUDA_VISIBLE_DEVICES="GPU-00000001") == [1]


def test_mig_instances_are_named_by_uuid_only(gpus, visible):
    gpus.gpu(1)
    gpus.mig(0, parent=0, uuid="MIG-aaaa")
    assert visible(CUDA_VISIBLE_DEVICES="MIG-aaaa") == ["MIG-aaaa"]
    assert "MIG mode" in visible(CUDA_VISIBLE_DEVICES="0")
    assert "MIG mode" in visible()
    assert visible(CUDA_VISIBLE_DEVICES="1") == [1]


def test_no_nvml_means_no_devices(no_nvml, visible):
    assert visible(CUDA_VISIBLE_DEVICES="0") == []
