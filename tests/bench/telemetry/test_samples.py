from __future__ import annotations

from bench.telemetry.samples import Sample, encode, encode_sample, read_latest, read_log, read_samples


def test_every_field_survives_the_file(tmp_path):
    full = Sample(
        *[True if name == "at_mark" else (name if name in TEXT else 3) for name in Sample.__slots__]
    )
    bare = Sample(0.5, "idle")
    path = tmp_path / "samples.jsonl"
    path.write_bytes(encode_sample(full) + encode_sample(bare))
    assert read_samples(path) == [full, bare]


TEXT = {"phase", "process_memory_hidden_reason", "cgroup_scope"}


def test_a_torn_line_costs_only_itself(tmp_path):
    path = tmp_path / "samples.jsonl"
    lines = [encode_sample(Sample(float(n), "load", tree_rss_bytes=n)) for n in range(3)]
    path.write_bytes(lines[0] + b"\x00\xff not json\n" + lines[1] + b'{"kind":"sample"}\n' + lines[2][:-9])
    log = read_log(path)
    assert [sample.t_s for sample in log.samples] == [0.0, 1.0]
    assert (log.damaged_lines, log.complete) == (3, False)


def test_unknown_fields_and_kinds_of_a_newer_writer_are_ignored(tmp_path):
    path = tmp_path / "samples.jsonl"
    path.write_bytes(
        encode("sample", {"t_s": 1.0, "phase": "x", "new_field": 3}) + encode("novelty", {"a": 1})
    )
    log = read_log(path)
    assert log.samples == [Sample(1.0, "x")] and log.damaged_lines == 0


def test_latest_is_the_fullest_device_of_the_last_whole_tick(tmp_path):
    path = tmp_path / "samples.jsonl"
    assert read_latest(path) is None
    rows = [
        Sample(1.0, "load", device_index=0, device_memory_used_bytes=999),
        Sample(2.0, "load", device_index=0, device_memory_used_bytes=10),
        Sample(2.0, "load", device_index=1, device_memory_used_bytes=20),
    ]
    path.write_bytes(
        b"".join(map(encode_sample, rows)) + encode("stats", {"t_s": 2.0}) + b'{"kind":"sample","t_s":3'
    )
    assert read_latest(path) == rows[2]


def test_latest_at_a_mark_has_the_new_phase(tmp_path):
    path = tmp_path / "samples.jsonl"
    rows = [Sample(1.0, phase, at_mark=True, device_memory_used_bytes=5) for phase in ("old", "new")]
    path.write_bytes(b"".join(map(encode_sample, rows)))
    assert read_latest(path).phase == "new"


def test_latest_reads_only_the_end_of_a_long_file(tmp_path):
    path = tmp_path / "samples.jsonl"
    path.write_bytes(b"".join(encode_sample(Sample(float(n), "load")) for n in range(5000)))
    assert read_latest(path, tail_bytes=300).t_s == 4999.0
