"""Memory of an import: the largest tensor in float32, its codes, and a constant."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from published import publish, quantised_model, stored

from yocobit.importers import import_model
from yocobit.packing import layout, tensor_source, writer

OFFLINE = {"linear_class": "bitlinear", "quantization_mode": "offline"}


@pytest.mark.parametrize("head", ["int8", "f16", "f32"])
def test_peak_memory_is_below_two_copies_of_the_largest_tensor(tmp_path, head, monkeypatch):
    model = quantised_model("llama", OFFLINE, vocab_size=16384).bfloat16()
    source = publish(model, tmp_path / "hf")
    import_model(source, tmp_path / "first", head)  # loads modules
    for module, name in ((writer, "_PIECE_BYTES"), (tensor_source, "_PIECE_BYTES")):
        monkeypatch.setattr(module, name, 1 << 14)
    monkeypatch.setattr(layout, "_PIECE_WEIGHTS", 64 * 64)

    tracemalloc.start()
    packed = import_model(source, tmp_path / "model", head)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    assert peak < 2 * 4 * 16384 * 64
    name = "embedding.weight"
    for part in (name, f"{name}_scale") if head == "int8" else (name,):
        first = import_model(source, tmp_path / part, head)
        np.testing.assert_array_equal(stored(packed, part), stored(first, part))
