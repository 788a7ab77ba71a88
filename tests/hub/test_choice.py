"""Which files of a repository are imported: the most exact ones."""

from __future__ import annotations

import pytest

from yocobit.errors import ConfigError
from yocobit.hub.choice import choose

HF = ("config.json", "tokenizer.json", "model.safetensors")
PACKED = {"quantization_config": {"quant_method": "bitnet", "quantization_mode": "offline"}}
BONSAI = ("T-Q2_0.gguf", "T-Q2_0_g64.gguf", "T-PQ2_0.gguf", "T-F16.gguf")
MASTERS = {"quantization_config": {"quant_method": "bitnet", "quantization_mode": "online"}}


@pytest.mark.parametrize(
    ("names", "config", "first", "reason"),
    [
        (HF, PACKED, "config.json", "model.safetensors (published codes)"),
        ((*HF, "ggml-model-i2_s.gguf"), PACKED, "ggml-model-i2_s.gguf", "float32 scales"),
        (("m-TQ1_0.gguf", "m-TQ2_0.gguf"), None, "m-TQ1_0.gguf", "float16 scales; of 2 kinds"),
        (BONSAI, None, "T-PQ2_0.gguf", "float16 scales; of 3 kinds"),
        ((*BONSAI, "T-PTQ1_0.gguf"), None, "T-PTQ1_0.gguf", "float16 scales; of 4 kinds"),
        (("B-Q1_0.gguf", "mmproj-F16.gguf", *HF), {}, "B-Q1_0.gguf", "float16 scales; of 2 kinds"),
        (("T-Q2_0.gguf", "T-Q2_0_g64.gguf"), None, "T-Q2_0.gguf", "codes with float16 scales)"),
        (("Hy-STQ1_0.gguf", "Hy-Q2_0C.gguf"), None, "Hy-STQ1_0.gguf", "codes with float16"),
        ((*HF, "maple-TQ2_0.gguf"), {}, "maple-TQ2_0.gguf", "codes with float16"),
        (HF, {"quantization": {"bits": 2}}, "config.json", "model.safetensors (published codes)"),
        ((*HF, "m-F16.gguf"), {"quantization": {"bits": 4}}, "m-F16.gguf", "f16 values"),
        # Rounded without training.
        (("m-Q2_0.gguf", "m-Q1_0.gguf", "m-Q4_K_M.gguf"), None, "m-Q4_K_M.gguf", "q4_k values"),
        (("m-Q2_0.gguf", "m-Q8_0.gguf", *HF), {}, "config.json", "published precision"),
        ((*HF, "m-f16.gguf"), MASTERS, "m-f16.gguf", "f16 values"),
        (HF, MASTERS, "config.json", "master weights"),
        ((*HF, "m-Q8_0.gguf"), {}, "config.json", "published precision"),
        (("m-Q4_K_M.gguf", "m-Q8_0.gguf"), None, "m-Q8_0.gguf", "q8_0 values"),
        (("m-BF16.gguf", "m-Q8_0.gguf"), None, "m-BF16.gguf", "bf16 values"),
    ],
)
def test_most_exact_files_are_chosen(names, config, first, reason):
    choice = choose(names, config, None, "a/b")

    assert choice.files[0] == first
    assert reason in choice.reason


def test_shards_come_with_their_index():
    shards = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
    names = ("config.json", "model.safetensors.index.json", *shards, "README.md", "x.bin")

    assert choose(names, PACKED, None, "a/b").files == (names[0], names[1], *shards)


@pytest.mark.parametrize("file", ["1_Pooling/config.json", "tokenizer.model"])
def test_files_that_the_importers_read_come_with_the_weights(file):
    files = choose((*HF, file, "2_Dense/config.json"), None, None, "a/b").files

    assert sorted(files) == sorted((*HF, file))


@pytest.mark.parametrize(
    ("names", "file", "message"),
    [
        ((), None, "neither safetensors nor GGUF"),
        (("pytorch_model.bin",), None, "pickled weights only, such as pytorch_model.bin"),
        (("m-q8_0-00001-of-00002.gguf",), None, "in several parts"),
        (("m.gguf",), None, "unknown types, such as m.gguf; name one as ORG/NAME:FILE"),
        (("m.gguf",), "n.gguf", "has no file 'n.gguf'; it has m.gguf"),
        (("m.txt",), "m.txt", "FILE must be a GGUF file or model.safetensors"),
    ],
)
def test_nothing_to_import_is_one_line(names, file, message):
    with pytest.raises(ConfigError, match=message):
        choose(names, None, file, "a/b")


def test_named_file_is_chosen():
    choice = choose(("m-i2_s.gguf", "m-tl1.gguf"), None, "m-tl1.gguf", "a/b")

    assert choice.files == ("m-tl1.gguf",)
    assert "as named" in choice.reason
