from __future__ import annotations

import pytest

from analysis import gpus


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("h100", "h100-80gb"), ("NVIDIA H100 80GB HBM3", "h100-80gb"), ("H100_80GB", "h100-80gb"),
        ("NVIDIA GeForce RTX 4090", "rtx-4090"), ("4090", "rtx-4090"), ("NVIDIA A100-SXM4-40GB", "a100-40gb"),
        ("l40s", "l40s"), (" L4 ", "l4"), ("NVIDIA H200", "h200-141gb"), ("Tesla T4", "t4"),
    ],
)  # fmt: skip
def test_names_people_use(written, name):
    assert gpus.find(written).name == name


def test_true_capacities_not_those_on_the_box():
    assert gpus.find("h100-80gb").total_bytes == round(79.19 * 2**30)
    assert gpus.find("h100-80gb").nvml_bytes == 85520809984
    assert gpus.find("l4").total_bytes < 22.5 * 2**30


def test_no_name_stands_for_two():
    spelled = [key for gpu in gpus.GPUS for key in {gpu.name, gpus.normalised(gpu.title), *gpu.aliases}]
    assert len(spelled) == len(set(spelled))


def test_an_unknown_gpu_is_one_sentence_with_a_way_out():
    with pytest.raises(gpus.UnknownGpu) as refused:
        gpus.find("rtx-4080")
    assert "--gpu-total-gib" in str(refused.value) and "h100-80gb" in str(refused.value)
    assert "did you mean rtx-4090?" in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("device", "total_gib", "name"),
    [
        ("NVIDIA H100 80GB HBM3", 79.2, "h100-80gb"), ("NVIDIA A100-SXM4-80GB", 79.3, "a100-80gb"),
        ("NVIDIA A100", 39.4, "a100-40gb"), ("NVIDIA GB10", 119.0, "gb10"), (None, None, "unknown"),
    ],
)  # fmt: skip
def test_devices_as_logs_name_them(device, total_gib, name):
    assert gpus.of_device(device, None if total_gib is None else round(total_gib * 2**30)) == name
