"""The tables that Python and C++ both have: weight formats, mixers, FFN kinds, cache types."""

from __future__ import annotations

from typing import get_args

import pytest

from yocobit import _native
from yocobit.config import preset
from yocobit.engine.session import CacheType
from yocobit.mixers import FEED_FORWARDS, MIXERS
from yocobit.packing.formats import FORMATS, WeightFormat
from yocobit.packing.scales import PerGroup, PerRow, PerTensor


def by_name(records) -> dict[str, dict]:
    return {record["name"]: record for record in records}


def granularity(format: WeightFormat) -> str:
    kinds = {PerTensor: "tensor", PerRow: "row", PerGroup: "group", type(None): "none"}
    return kinds[type(format.scale)]


def test_weight_formats_are_equal():
    expected = {
        format.name: {
            "name": format.name,
            "dtype": format.dtype,
            "bits": format.bits,
            "values": list(format.values),
            "block_columns": format.block_columns,
            "unit_bytes": format.unit_bytes,
            "scale": granularity(format),
            "group_columns": format.scale.columns if isinstance(format.scale, PerGroup) else 0,
            "scale_dtype": format.scale.dtype if format.scale else "",
            "activations": format.activations.name,
        }
        for format in FORMATS.values()
    }

    assert by_name(_native.weight_formats()) == expected


def test_groups_of_scales_are_the_blocks_that_the_engine_reads():
    for format in FORMATS.values():
        if isinstance(format.scale, PerGroup):
            assert format.scale.columns * format.scale.per_block == format.block_columns


@pytest.mark.parametrize("sub_norm", [False, True])
def test_mixers_are_equal(sub_norm):
    config = preset("nano").replace(sub_norm=sub_norm)
    expected = {}
    for name, mixer in MIXERS.items():
        parameters = mixer.parameters(config)
        expected[name] = {
            "name": name,
            "decoder": mixer.decoder,
            "parameters": {n for n, parameter in parameters.items() if parameter.role != "norm"},
            "sub_norm": "sub_norm" in parameters,
            "kv_cache": mixer.kv_cache,
            "has_state": mixer.state_shape is not None,
            "reads_memory": mixer.reads_memory,
        }

    found = by_name(_native.mixers())
    for record in found.values():
        record["parameters"] = set(record["parameters"])
        record["sub_norm"] = record.pop("has_sub_norm") and sub_norm
    assert found == expected


def test_feed_forwards_are_equal():
    expected = {
        name: {
            "name": name,
            "has_gate": ffn.has_gate,
            "has_sub_norm": ffn.has_sub_norm,
            "has_experts": ffn.has_experts,
            "max_batch_tokens": ffn.max_batch_tokens,
        }
        for name, ffn in FEED_FORWARDS.items()
    }

    assert by_name(_native.feed_forwards()) == expected


def test_cache_types_are_those_of_sessions_with_these_bits_and_scale_bytes():
    found = {
        name: (r["bits"], r["scale_bytes"]) for name, r in by_name(_native.cache_types()).items()
    }

    assert found == {"f32": (32, 0), "f16": (16, 0), "int8": (8, 4), "int4": (4, 4)}
    assert tuple(found) == get_args(CacheType)
