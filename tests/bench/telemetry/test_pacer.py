from bench.telemetry.pacer import Pacer


def due_times(pacer, cpu_s, until_s, step_s=0.05):
    times = []
    for tick in range(round(until_s / step_s)):
        now = tick * step_s
        if pacer.due(now):
            times.append(now)
            pacer.took(now, cpu_s)
    return times


def test_a_cheap_reading_keeps_its_rate():
    assert len(due_times(Pacer(hz=4, share=0.01), cpu_s=0.0001, until_s=10)) == 40


def test_a_costly_reading_keeps_within_its_share():
    pacer = Pacer(hz=4, share=0.01)
    times = due_times(pacer, cpu_s=0.05, until_s=100)
    assert len(times) == 20  # 50 ms of 1 % of a core: every 5 s
    assert pacer.cpu_s / 100 <= 0.01 + 1e-9


def test_zero_rate_is_never_due():
    pacer = Pacer(hz=0, share=0.01)
    pacer.soon()
    assert not pacer.due(1e9)


def test_soon_brings_the_next_reading_forward():
    pacer = Pacer(hz=1, share=0.01)
    pacer.took(0.0, 10.0)
    assert not pacer.due(500.0)
    pacer.soon()
    assert pacer.due(0.1)
