"""Sampling parameters of GGUF files, under llama.cpp's keys."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from yocobit.config import ConfigError
from yocobit.importers.gguf.text import SAMPLING_KEYS, read_text

FILE = Path("model.gguf")


def sampling_of(**values) -> dict:
    metadata = {f"general.sampling.{key}": value for key, value in values.items()}
    files, _ = read_text(metadata, FILE, 10)
    return files.generation


def float32(value: float) -> float:
    """Return a number as a file has it."""
    return float(np.float32(value))


def test_parameters_are_the_decimals_that_were_written():
    found = sampling_of(
        temp=float32(0.8), top_k=40, top_p=float32(0.95), min_p=0.0, penalty_repeat=1
    )

    assert found == {
        "temperature": 0.8,
        "top_k": 40,
        "top_p": 0.95,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
    }
    assert set(found) == set(SAMPLING_KEYS)


def test_other_parameters_of_llama_cpp_are_not_read():
    assert sampling_of(mirostat=0, sequence="temp") == {}


@pytest.mark.parametrize(("given", "expected"), [(-1, 0), (0, 0), (7, 7)])
def test_top_k_without_a_limit_is_zero(given, expected):
    assert sampling_of(top_k=given) == {"top_k": expected}


def test_number_of_64_bits_is_unchanged():
    assert sampling_of(temp=0.1 + 1e-12) == {"temperature": 0.1 + 1e-12}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"temp": "hot"}, "general.sampling.temp must be a finite number but is 'hot'"),
        ({"top_p": True}, "general.sampling.top_p must be a finite number but is True"),
        ({"min_p": float("nan")}, "general.sampling.min_p must be a finite number but is nan"),
        ({"top_k": np.array([1])}, "general.sampling.top_k must be a finite number"),
        ({"temp": 1e300}, "temperature must be"),
        ({"top_p": 1.5}, "top_p must be"),
    ],
)
def test_invalid_parameter_is_one_clear_line(values, message):
    with pytest.raises(ConfigError, match=message) as error:
        sampling_of(**values)
    assert str(error.value).startswith("model.gguf: ") and "\n" not in str(error.value)
