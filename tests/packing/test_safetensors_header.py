"""Headers of safetensors files of others: each fault is one line."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from yocobit.config import ConfigError
from yocobit.packing import PackedModelError, is_packed, read_model
from yocobit.packing.tensor_source import SafetensorsDirectory


def write(path: Path, header: object, data: bytes = bytes(64)) -> None:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(raw).to_bytes(8, "little") + raw + data)


def entry(**changes) -> dict:
    return {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24], **changes}


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (b"[" * 100_000, "header is not valid JSON .*recursion"),
        (b'{"x": \xff}', "header is not valid JSON"),
        (b'{"x": {}, "x": {}}', "key 'x' occurs twice"),
        ([], "header must be an object but is list"),
        ({"x": 3}, "tensor 'x' must have a dtype, a shape and two data_offsets up to 64"),
        ({"x": {}}, "tensor 'x' must have a dtype"),
        ({"x": entry(dtype=3)}, "tensor 'x' must have a dtype"),
        ({"x": entry(shape="2")}, "tensor 'x' must have a dtype"),
        ({"x": entry(shape=[-2, -3])}, "tensor 'x' must have a dtype"),
        ({"x": entry(shape=[True, 6])}, "tensor 'x' must have a dtype"),
        ({"x": entry(shape=[1] * 100)}, "tensor 'x' must have a dtype"),
        ({"x": entry(data_offsets=[0])}, "tensor 'x' must have a dtype"),
        ({"x": entry(data_offsets=[24, 0])}, "tensor 'x' must have a dtype"),
        ({"x": entry(data_offsets=[48, 72])}, "two data_offsets up to 64 but"),
        ({"x": entry(shape=[2, 4])}, r"tensor 'x' must have 32 bytes, as F32 \[2, 4\], but has 24"),
        ({"x": entry(shape=[1 << 61, 1 << 61])}, "tensor 'x' must have .* bytes, as F32"),
        ({"x" * 5000: 3}, r"tensor 'x+ \.\.\. x+' must have a dtype"),
    ],
)
def test_an_invalid_header_is_one_line(tmp_path, header, message):
    write(tmp_path / "model.safetensors", header)

    with pytest.raises(ConfigError, match=message) as raised:
        SafetensorsDirectory(tmp_path)

    assert "\n" not in str(raised.value) and len(str(raised.value)) < 1000


@pytest.mark.parametrize("size", [0, 7, 8, 11])
def test_the_error_of_a_truncated_header_has_the_missing_size(tmp_path, size):
    save_file({"x": np.ones(3, np.float32)}, tmp_path / "whole")
    data = (tmp_path / "whole").read_bytes()[:size]
    (tmp_path / "model.safetensors").write_bytes(data)

    with pytest.raises(ConfigError, match="is truncated: header lacks"):
        SafetensorsDirectory(tmp_path)


def test_a_tensor_in_two_shards_is_rejected(tmp_path):
    for i in range(2):
        save_file({"x": np.ones(3, np.float32)}, tmp_path / f"part{i}.safetensors")
    index = {"weight_map": {"x": "part0.safetensors", "y": "part1.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))

    with pytest.raises(ConfigError, match="tensor 'x' must be in one file but is in two"):
        SafetensorsDirectory(tmp_path)


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/b", "", ".", "..", "\0"])
def test_shards_must_be_files_of_the_directory(tmp_path, name):
    index = {"weight_map": {"x": name}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))

    with pytest.raises(ConfigError, match=r"map tensors to files of the dir|cannot be read"):
        SafetensorsDirectory(tmp_path)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
@pytest.mark.parametrize("kind", ["fifo", "directory"])
def test_other_kinds_of_files_are_refused_without_waiting(tmp_path, name, kind):
    for each in ("model.safetensors", "config.json"):
        if each != name:
            write(tmp_path / each, {"__metadata__": {"format": "yocobit", "format_version": "1"}})
        elif kind == "fifo":
            os.mkfifo(tmp_path / each)
        else:
            (tmp_path / each).mkdir()

    with pytest.raises((PackedModelError, ConfigError)):
        read_model(tmp_path)
    assert is_packed(tmp_path) == (name == "config.json")


@pytest.mark.parametrize("header", [b"[" * 100_000, [], {"__metadata__": 3}, {}, b"{}" * 3])
def test_a_file_that_is_not_a_packed_model_is_not_mistaken_for_one(tmp_path, header):
    write(tmp_path / "model.safetensors", header)
    (tmp_path / "config.json").write_text("{}")

    assert not is_packed(tmp_path)
    with pytest.raises(PackedModelError, match=r"model\.safetensors: "):
        read_model(tmp_path)
