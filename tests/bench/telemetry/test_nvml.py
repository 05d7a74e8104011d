"""The real pynvml binding against the fake library, each case in a new process."""

from __future__ import annotations

import pytest

GIB = 2**30
OPEN = "from bench.telemetry.nvml import open_nvml\nnvml = open_nvml()\n"
DEVICE = OPEN + "d = nvml.devices[0]\n"


def test_every_reading_of_a_gpu_has_its_unit(gpus, in_new_process):
    gpus.set(driver="550.54.15", cuda=12040)
    gpus.gpu(
        0, total=80 * GIB, reserved=GIB, used=10 * GIB, power_mw=250_500, limit_mw=700_000, energy_mj=12_345,
        sm_mhz=1755, mem_mhz=2619, gpu_util=97, mem_util=41, temp=63, throttle=0x4, cc_major=9, cc_minor=0,
    )  # fmt: skip
    result = in_new_process(
        DEVICE
        + "m = d.memory()\n"
        + "result = [nvml.driver_version, nvml.cuda_driver_version, d.index, d.uuid, d.name,"
        "d.memory_total_bytes, m.used_bytes, m.free_bytes, m.reserved_bytes, m.source,"
        "d.power_w(), d.power_limit_w(), d.total_energy_j(),"
        "d.sm_clock_mhz(), d.mem_clock_mhz(), d.gpu_utilization_pct(), d.memory_utilization_pct(),"
        "d.temperature_c(), d.throttle_reasons(), d.compute_capability(), d.mig_enabled(), d.unavailable]"
    )
    assert result == [
        "550.54.15", "12.4", 0, "GPU-00000000-0000-4000-8000-000000000000", "NVIDIA H100 80GB HBM3", 80 * GIB,
        10 * GIB, 69 * GIB, GIB, "v2", 250.5, 700.0, 12.345, 1755, 2619, 97, 41, 63, 4, [9, 0], False, {},
    ]  # fmt: skip


def test_an_old_driver_counts_its_reservation_as_used_and_says_so(gpus, in_new_process):
    gpus.gpu(0, total=80 * GIB, reserved=GIB, used=10 * GIB, err={"memory_v2": 13})
    result = in_new_process(DEVICE + "m = d.memory(); result = [m.used_bytes, m.reserved_bytes, m.source]")
    assert result == [11 * GIB, None, "v1"]


@pytest.mark.parametrize("code", [3, 4, 13])
def test_an_unsupported_reading_is_none_with_a_reason_and_is_asked_for_once(
    gpus, in_new_process, tmp_path, monkeypatch, code
):
    monkeypatch.setenv("FAKE_NVML_CALLS", str(tmp_path / "calls"))
    gpus.gpu(0, err={"power_mw": code, "energy_mj": code})
    result = in_new_process(
        DEVICE + "result = [[d.power_w(), d.total_energy_j()] for _ in range(5)], sorted(d.unavailable)"
    )
    assert result == [[[None, None]] * 5, ["power_w", "total_energy_j"]]
    calls = (tmp_path / "calls").read_text().split()
    assert (calls.count("power_mw"), calls.count("energy_mj")) == (1, 1)


def test_a_passing_failure_is_none_and_is_asked_for_again(gpus, in_new_process, tmp_path):
    gpus.gpu(0, err={"power_mw": 10})
    result = in_new_process(
        DEVICE + "import os\nresult = [d.power_w()]\n"
        "path = os.environ['FAKE_NVML_STATE']\n"
        "text = open(path).read().replace('gpu.0.err.power_mw 10\\n', '')\n"
        "open(path, 'w').write(text)\n"
        "result += [d.power_w(), d.unavailable]"
    )
    assert result == [None, 120.0, {}]


@pytest.mark.parametrize("reading", ["memory", "power_w", "processes", "temperature_c", "throttle_reasons"])
def test_a_lost_gpu_raises_whatever_is_read(gpus, in_new_process, reading):
    gpus.gpu(0)
    result = in_new_process(
        DEVICE
        + "import os\nfrom bench.telemetry.nvml_errors import GpuLost\n"
        + "open(os.environ['FAKE_NVML_STATE'], 'a').write('gpu.0.lost 1\\n')\n"
        + f"try:\n    d.{reading}(); result = None\nexcept GpuLost as error: result = str(error)"
    )
    assert "off the bus" in result and "15" in result


def test_older_names_of_calls_are_used_where_the_newer_are_missing(gpus, in_new_process):
    gpus.gpu(0, temp=51, throttle=0x20)
    result = in_new_process(
        "import pynvml\nfrom bench.telemetry.nvml_errors import FunctionNotFound\n"
        "def missing(*_): raise pynvml.NVMLError(13)\n"
        "pynvml.nvmlDeviceGetTemperatureV = pynvml.nvmlDeviceGetCurrentClocksEventReasons = missing\n"
        + DEVICE
        + "result = [d.temperature_c(), d.throttle_reasons(), d.unavailable]"
    )
    assert result == [51, 0x20, {}]


def test_processes_are_merged_over_both_lists(gpus, in_new_process):
    gpus.gpu(0, compute={11: 5 * GIB, 12: None}, graphics={11: 5 * GIB, 12: GIB, 13: 7})
    result = in_new_process(DEVICE + "result = [[p.pid, p.used_bytes] for p in d.processes()]")
    assert result == [[11, 5 * GIB], [12, GIB], [13, 7]]


def test_two_gpus_keep_their_own_readings(gpus, in_new_process):
    gpus.gpu(0, used=1 * GIB).gpu(1, used=2 * GIB)
    result = in_new_process(OPEN + "result = [[d.index, d.memory().used_bytes] for d in nvml.devices]")
    assert result == [[0, GIB], [1, 2 * GIB]]


def test_one_unreadable_gpu_does_not_hide_the_other(gpus, in_new_process):
    gpus.gpu(0, err={"handle": 15}).gpu(1)
    result = in_new_process(
        OPEN + "from bench.telemetry.nvml_errors import GpuLost\n"
        "try: nvml.device(0)\n"
        "except GpuLost: result = [[d.index for d in nvml.devices], list(nvml.unreadable)]"
    )
    assert result == [[1], [0]]


@pytest.mark.parametrize(
    ("code", "words"), [(18, "different versions"), (9, "not loaded"), (4, "may not"), (999, "999")]
)
def test_a_driver_that_cannot_be_opened_is_a_reason_not_an_exception(gpus, in_new_process, code, words):
    gpus.gpu(0)
    gpus.set(init_error=code)
    result = in_new_process(OPEN + "result = [nvml.available, len(nvml.devices), nvml.reason]")
    assert result[:2] == [False, 0] and words in result[2]


def test_a_driver_without_gpus_is_the_null_object(gpus, in_new_process):
    result = in_new_process(OPEN + "result = [nvml.available, nvml.reason]")
    assert result == [False, "the NVIDIA driver is loaded but shows no GPU to this process"]


def test_no_library_is_the_null_object(no_nvml, in_new_process):
    result = in_new_process(
        OPEN + "from bench.telemetry.nvml_errors import NvmlUnavailable\n"
        "try: nvml.device(0)\nexcept NvmlUnavailable as error: result = [str(error), nvml.reason]"
    )
    assert all("libnvidia-ml.so.1 was not found" in text for text in result)


@pytest.mark.parametrize("module", ["raise ImportError('none here')", "nvmlInit = len"])
def test_a_missing_or_foreign_binding_is_the_null_object(in_new_process, tmp_path, module):
    (tmp_path / "pynvml.py").write_text(module)
    result = in_new_process(f"sys.path.insert(0, {str(tmp_path)!r})\n{OPEN}result = nvml.reason")
    assert "nvidia-ml-py" in result


def test_a_mig_instance_gives_its_own_memory_and_nothing_of_the_card(gpus, in_new_process):
    gpus.gpu(0, used=50 * GIB)
    gpus.mig(0, parent=0, uuid="MIG-aaaa", used=3 * GIB, compute={7: 2 * GIB})
    result = in_new_process(
        OPEN + "d = nvml.device('MIG-aaaa')\n"
        "result = [d.is_mig, d.index, d.memory().used_bytes, d.memory_total_bytes,"
        "d.processes()[0].used_bytes,"
        "d.power_w(), d.sm_clock_mhz(), d.temperature_c(), d.gpu_utilization_pct(), d.mig_enabled(),"
        "d.unavailable['power_w']]"
    )
    assert result[:10] == [True, 0, 3 * GIB, 10 * GIB, 2 * GIB, None, None, None, None, True]
    assert "whole card" in result[10]


@pytest.mark.parametrize(
    ("name", "words"), [("7", "index 7"), ("'GPU-none'", "GPU-none"), ("'MIG-none'", "MIG-none")]
)
def test_a_device_that_does_not_exist_is_a_bad_request(gpus, in_new_process, name, words):
    gpus.gpu(0)
    result = in_new_process(
        OPEN + "from bench.errors import BadRequest\n"
        f"try: nvml.device({name})\nexcept BadRequest as error: result = str(error)"
    )
    assert words in result
