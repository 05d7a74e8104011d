from bench.telemetry import throttle


def test_bits_have_names_lowest_first():
    assert throttle.names(0x1 | 0x4 | 0x40) == ["gpu_idle", "sw_power_cap", "hw_thermal_slowdown"]


def test_no_bits_and_unknown_bits():
    assert throttle.names(None) == throttle.names(0) == []
    assert throttle.names(0x1000) == ["bit_0x1000"]


def test_names_agree_with_the_binding():
    import pynvml

    for constant, name in [
        ("SwPowerCap", "sw_power_cap"), ("HwSlowdown", "hw_slowdown"), ("SyncBoost", "sync_boost"),
        ("SwThermalSlowdown", "sw_thermal_slowdown"), ("HwThermalSlowdown", "hw_thermal_slowdown"),
        ("HwPowerBrakeSlowdown", "hw_power_brake_slowdown"), ("DisplayClockSetting", "display_clock_setting"),
        ("GpuIdle", "gpu_idle"), ("ApplicationsClocksSetting", "applications_clocks_setting"),
    ]:  # fmt: skip
        assert throttle.names(getattr(pynvml, f"nvmlClocksEventReason{constant}")) == [name]
