"""Calibration files of throughput: what is shipped, which one is chosen, how broken ones are refused."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest

from analysis import gpus
from analysis.calibration import CalibrationError
from analysis.throughput.calibration import (
    FOLDER,
    distance,
    from_document,
    load,
    select,
    shipped,
    units,
    weight_format,
)

PUBLIC = FOLDER / "public-qwen3-32b-vllm-0.12-h100.json"


def test_everything_shipped_reads_and_names_its_source():
    assert shipped()
    for one in shipped():
        assert one.source and one.models and len(one.coefficients) == 7
        if one.kind == "public":
            assert "own" not in one.source and one.document["notes"]


def test_the_public_figures_are_never_exact_elsewhere():
    one = load(PUBLIC)
    assert distance(one, "0.12.0", "v1", "h100-80gb", "16bit", 4) == 0
    assert select("0.12.0", "v1", "h100-80gb", "16bit", 2, [one]).notes == (
        f"{one.name} holds figures published by others, none measured by this project: {one.source}",
    )
    for asked in (("0.12.0", "v1", "l4", "16bit", 2), ("0.12.0", "v2", "h100-80gb", "16bit", 2),
                  ("0.12.0", "v1", "h100-80gb", "4bit", 2), ("0.12.0", "v1", "h100-80gb", "16bit", 1)):  # fmt: skip
        choice = select(*asked, [one])
        assert choice.distance == 0.5 and "intervals are widened" in choice.notes[0]
    assert select("0.32.0", "v1", "h100-80gb", "16bit", 2, [one]).distance == pytest.approx(0.6)
    widths = [one.half_width("tpot", *how) for how in ((0.0, {}), (0.5, {}), (0.5, {"batch": 3.0}))]
    assert widths == sorted(set(widths))


def test_the_nearest_is_chosen_and_own_before_public_at_one_distance():
    public = load(PUBLIC)
    own = replace(public, name="own", kind="own")
    far = replace(own, name="far", device="l4")
    assert select("0.12.0", "v1", "h100-80gb", "16bit", 2, [public, far, own]).rates is own
    assert select("0.12.0", "v1", "h100-80gb", "16bit", 2, [public, far]).rates is public
    assert select("0.12.0", "v1", "l4", "16bit", 2, [public, far]).rates is far
    assert select("0.12.0", "v1", "cpu", "16bit", 1, [public, far, own]) is None


def test_units_and_what_lies_beyond_the_ranges():
    sheet = gpus.find("h100").sheet
    assert units("sheet", sheet)[1] * 3.35e12 == pytest.approx(1.0) == units("sheet", sheet)[3] * 989e12
    assert units("absolute", None) == (1.0, 1e-9, 1e-9, 1e-12, 1e-12, 1.0, 1.0)
    with pytest.raises(CalibrationError, match="peak bandwidth"):
        units("sheet", None)
    one = replace(load(PUBLIC), ranges={"batch": (2.0, 8.0)})
    assert one.outside({"batch": 4.0}) == {} == one.outside({"input_tokens": 9.0})
    assert one.outside({"batch": 16.0}) == {"batch": 2.0} == one.outside({"batch": 1.0})
    widened = one.half_width("tpot", 0.0, {"batch": math.e})
    assert widened == pytest.approx(one.half_widths["tpot"] + 0.2)


@pytest.mark.parametrize(("config", "dtype_bytes", "name"), [
    ({}, 4, "fp32"), ({}, 2, "16bit"), ({"quantization_config": {"quant_method": "fp8"}}, 2, "8bit"),
    ({"quantization_config": {"quant_method": "awq", "bits": 4}}, 2, "4bit"),
])  # fmt: skip
def test_the_class_of_a_weight_format(config, dtype_bytes, name):
    assert weight_format(config, dtype_bytes) == name


@pytest.mark.parametrize(("change", "sentence"), [
    ({"format": 2}, "has format 2 and this program reads 1"), ({"kind": "rumour"}, "kind is 'rumour'"),
    ({"weight_format": "2bit"}, "weight_format is '2bit'"), ({"coefficients": {}}, "is missing or not known"),
    ({"intervals": {}}, "malformed"),
])  # fmt: skip
def test_a_broken_file_is_refused_in_a_sentence(change, sentence, tmp_path):
    document = json.loads(PUBLIC.read_text()) | change
    with pytest.raises(CalibrationError, match=sentence):
        from_document(document)
    document = json.loads(PUBLIC.read_text())
    document["coefficients"]["step"]["value"] = -1
    with pytest.raises(CalibrationError, match="negative"):
        from_document(document)
    broken = tmp_path / "broken.json"
    broken.write_text("{")
    with pytest.raises(CalibrationError, match=r"broken\.json is not JSON"):
        load(broken)
    with pytest.raises(CalibrationError, match="cannot be read"):
        load(tmp_path / "none.json")
