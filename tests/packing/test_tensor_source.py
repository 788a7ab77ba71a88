"""Tensors of safetensors directories, read one at a time without torch."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from yocobit.config import ConfigError
from yocobit.packing.tensor_source import SafetensorsDirectory


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float16, torch.bfloat16, torch.uint8, torch.int8, torch.int64]
)
@pytest.mark.parametrize("shape", [(3, 5), (7,), (1,), (0, 4), ()])
def test_read_equals_torch_with_bfloat16_as_float32(tmp_path, dtype, shape):
    torch.manual_seed(0)
    tensor = (torch.randn(shape) * 100).abs().to(dtype)
    save_file({"a": torch.ones(3), "x": tensor}, tmp_path / "model.safetensors")

    read = SafetensorsDirectory(tmp_path).read("x")

    expected = tensor.float() if dtype == torch.bfloat16 else tensor
    assert read.dtype == expected.numpy().dtype
    np.testing.assert_array_equal(read, expected.numpy())


def test_shards_are_read_by_their_index(tmp_path):
    for i in range(2):
        save_file({f"x{i}": torch.full((2,), float(i))}, tmp_path / f"part{i}.safetensors")
    index = {"weight_map": {f"x{i}": f"part{i}.safetensors" for i in range(2)}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    (tmp_path / "config.json").write_text('{"model_type": "bitnet"}')

    source = SafetensorsDirectory(tmp_path)

    assert set(source.names()) == {"x0", "x1"}
    assert [source.read(name).tolist() for name in ("x0", "x1")] == [[0, 0], [1, 1]]
    assert source.metadata == {"model_type": "bitnet"}


@pytest.mark.parametrize("index", [{}, {"weight_map": ["part0"]}, {"weight_map": {"x": 3}}])
def test_invalid_index_of_shards_is_rejected_by_name(tmp_path, index):
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))

    with pytest.raises(ConfigError, match=r"index\.json: weight_map must map tensors to files"):
        SafetensorsDirectory(tmp_path)


def test_error_names_a_missing_tensor_and_a_damaged_file(tmp_path):
    save_file({"x": torch.ones(3)}, tmp_path / "model.safetensors")

    with pytest.raises(ConfigError, match="tensor 'y' is missing"):
        SafetensorsDirectory(tmp_path).read("y")
    (tmp_path / "model.safetensors").write_bytes(b"12345678")
    with pytest.raises(ConfigError, match=r"model\.safetensors: header must have at most"):
        SafetensorsDirectory(tmp_path)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.uint32])
def test_rows_of_a_tensor_are_those_of_the_whole(tmp_path, dtype):
    tensor = torch.arange(24).reshape(6, 2, 2).to(dtype)
    save_file({"a": torch.zeros(5), "b": tensor}, tmp_path / "model.safetensors")
    source = SafetensorsDirectory(tmp_path)

    whole = source.read("b")

    assert source.shape("b") == (6, 2, 2)
    for start, stop in ((0, 6), (2, 5), (4, 9), (5, 5), (0, None)):
        np.testing.assert_array_equal(source.read_rows("b", start, stop), whole[start:stop])
