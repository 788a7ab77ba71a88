"""The container of GGUF files: values, locations, and files that are malformed."""

import struct
import tracemalloc

import gguf
import numpy as np
import pytest
from gguf_files import key_value, raw_file, string, tensor_info, write

from yocobit.config import ConfigError
from yocobit.importers.gguf.container import GGUFFile

F32_32 = np.arange(32, dtype=np.float32).tobytes()


def opened(tmp_path, data):
    path = tmp_path / "model.gguf"
    path.write_bytes(data)
    return GGUFFile(path)


def test_all_metadata_types_equal_what_was_written(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "a.gguf", "llama")
    expected = {
        "u8": 255, "i8": -128, "u16": 65535, "i16": -32768, "u32": 2**32 - 1, "i32": -(2**31),
        "u64": 2**64 - 1, "i64": -(2**63), "f32": 0.5, "f64": 0.1, "bool": True, "text": "naïve ☕",
    }  # fmt: skip
    kinds = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64", "float32")
    kinds += ("float64", "bool", "string")
    for (key, value), kind in zip(expected.items(), kinds, strict=True):
        getattr(writer, f"add_{kind}")(key, value)
    writer.add_array("words", ["a", "", "☕"])
    writer.add_array("floats", [1.5, -2.5])
    writer.add_array("flags", [True, False])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()

    metadata = GGUFFile(tmp_path / "a.gguf").metadata

    assert {key: metadata[key] for key in expected} == expected
    assert [type(metadata[key]) for key in ("u64", "f64", "bool")] == [int, float, bool]
    assert metadata["words"] == ["a", "", "☕"]
    assert metadata["floats"].tolist() == [1.5, -2.5]
    assert metadata["flags"].tolist() == [True, False]


def test_nested_arrays_are_read(tmp_path):
    inner = struct.pack("<IQ", 4, 2) + struct.pack("<II", 7, 8)
    payload = struct.pack("<IQ", 9, 2) + inner + struct.pack("<IQ", 8, 1) + string("x")

    file = opened(tmp_path, raw_file([key_value("nested", 9, payload)]))

    numbers, words = file.metadata["nested"]
    assert numbers.tolist() == [7, 8]
    assert words == ["x"]


@pytest.mark.parametrize("version", [2, 3])
def test_tensors_have_shape_and_bytes_of_both_versions(tmp_path, version):
    infos = [tensor_info("b", (2, 16), 0, 128), tensor_info("a", (32,), 0, 0)]

    file = opened(tmp_path, raw_file((), infos, F32_32 + F32_32[::-1], version))

    assert list(file.tensors) == ["b", "a"]
    assert file.tensors["b"].shape == (2, 16)
    assert file.read(file.tensors["a"]).tobytes() == F32_32
    assert file.read(file.tensors["b"]).tobytes() == F32_32[::-1]


def test_alignment_of_the_file_locates_the_tensors(tmp_path):
    keys = [key_value("general.alignment", 4, struct.pack("<I", 256))]

    file = opened(tmp_path, raw_file(keys, [tensor_info("a")], F32_32, alignment=256))

    assert file.tensors["a"].offset == 256
    assert file.read(file.tensors["a"]).tobytes() == F32_32


def test_tensors_of_the_writer_equal_its_arrays(tmp_path):
    arrays = {"a": np.ones((3, 7), np.float32), "b": np.arange(10, dtype=np.float16)}

    file = GGUFFile(write(tmp_path / "a.gguf", "llama", {}, arrays))

    for name, array in arrays.items():
        assert file.tensors[name].shape == array.shape
        assert file.read(file.tensors[name]).tobytes()[: array.nbytes] == array.tobytes()


def test_file_that_shrinks_after_its_header_was_read_is_refused(tmp_path):
    file = opened(tmp_path, raw_file((), [tensor_info("a")], F32_32))
    file.path.write_bytes(file.path.read_bytes()[:-1])

    with pytest.raises(ConfigError, match="was truncated while it was read; copy it again"):
        file.read(file.tensors["a"])


DEEP = struct.pack("<IQ", 9, 1) * 5 + struct.pack("<IQ", 0, 0)
MALFORMED = {
    "empty": (b"", "must be a GGUF file"),
    "other magic": (b"ggjt" + b"\0" * 40, "must be a GGUF file.*ggjt"),
    "magic only": (b"GGUF", "was truncated: it ends after 4 bytes"),
    "version 1": (raw_file(version=1), "GGUF version must be 2 or 3 but is 1"),
    "version 4": (raw_file(version=4), "GGUF version must be 2 or 3 but is 4"),
    "big-endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "is a big-endian GGUF file"),
    "no counts": (raw_file()[:20], "ends within the header; it is incomplete"),
    "many keys": (raw_file(n_keys=2**63), "9223372036854775808 metadata keys, which cannot fit"),
    "many tensors": (raw_file(n_tensors=2**40), "1099511627776 tensors, which cannot fit"),
    "a missing key": (raw_file(n_keys=1)[:24] + b"\0" * 5, "ends within metadata key 0"),
    "a long key": (raw_file([struct.pack("<Q", 2**62)]), "ends within metadata key 0"),
    "a key twice": (raw_file([key_value("k", 7, b"\1")] * 2), "key 'k' must occur once"),
    "a bad key": (raw_file([key_value(b"\xff", 7, b"\1")]), "metadata key 0 is not UTF-8"),
    "a bad string": (raw_file([key_value("k", 8, string(b"\xff"))]), "key 'k' is not UTF-8"),
    "a bad bool": (raw_file([key_value("k", 7, b"\2")]), "key 'k' must be 0 or 1 but is 2"),
    "a bad type": (raw_file([key_value("k", 13, b"")]), "key 'k' has the unknown value type 13"),
    "a deep array": (raw_file([key_value("k", 9, DEEP)]), "nests arrays more than 4 deep"),
    "a long array": (
        raw_file([key_value("k", 9, struct.pack("<IQ", 12, 2**61))]),
        "ends within key 'k'",
    ),
    "many strings": (
        raw_file([key_value("k", 9, struct.pack("<IQ", 8, 2**40))]),
        "more than 4194304 strings",
    ),
    "cut strings": (
        raw_file([key_value("k", 9, struct.pack("<IQ", 8, 9) + string("x"))]),
        "ends within key 'k'",
    ),
    "a zero alignment": (
        raw_file([key_value("general.alignment", 4, struct.pack("<I", 0))]),
        "general.alignment must be a power of two",
    ),
    "an odd alignment": (
        raw_file([key_value("general.alignment", 4, struct.pack("<I", 48))]),
        "general.alignment must be a power of two.*48",
    ),
    "a split": (
        raw_file([key_value("split.count", 2, struct.pack("<H", 3))]),
        "is one of 3 parts.*llama-gguf-split --merge",
    ),
    "no dimensions": (raw_file((), [tensor_info("a", ())]), "must have 1 to 4 dimensions"),
    "5 dimensions": (raw_file((), [tensor_info("a", (1,) * 5)]), "1 to 4 dimensions but has 5"),
    "an empty tensor": (raw_file((), [tensor_info("a", (0,))]), "must have 1 to"),
    "an overflowing shape": (
        raw_file((), [tensor_info("a", (2**32, 2**32))], F32_32),
        "tensor 'a' must have 1 to 1099511627776 weights",
    ),
    "an odd name": (raw_file((), [tensor_info("a\n")], F32_32), r"'a\\n' must have a printable"),
    "a long name": (raw_file((), [tensor_info("n" * 300)], F32_32), "name of 300 bytes"),
    "a name twice": (
        raw_file((), [tensor_info("a"), tensor_info("a", offset=128)], F32_32 * 2),
        "tensor 'a' must occur once",
    ),
    "a misaligned offset": (
        raw_file((), [tensor_info("a", offset=8)], F32_32 * 2),
        "tensor 'a' must start at a multiple of 32 bytes but starts at 8",
    ),
    "an offset past the end": (
        raw_file((), [tensor_info("a", offset=2**62)], F32_32),
        "tensor 'a' starts at byte .* it is incomplete: download it again",
    ),
    "no data": (raw_file((), [tensor_info("a")]), "it is incomplete: download it again"),
    "one place for two": (
        raw_file((), [tensor_info("a"), tensor_info("b")], F32_32),
        "tensor 'a' starts at byte .* where another tensor starts too",
    ),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_file_is_refused_in_one_line(tmp_path, case):
    data, message = MALFORMED[case]

    with pytest.raises(ConfigError, match=message) as error:
        opened(tmp_path, data)

    assert str(error.value).startswith(f"{tmp_path / 'model.gguf'}: ")
    assert "\n" not in str(error.value)


def test_every_truncation_is_refused(tmp_path):
    keys = [key_value("k", 9, struct.pack("<IQ", 8, 2) + string("x") + string("yy"))]
    data = raw_file(keys, [tensor_info("a", (2, 16))], F32_32)

    for length in range(len(data) - len(F32_32) + 1):
        with pytest.raises(ConfigError):
            opened(tmp_path, data[:length])


def test_counts_beyond_the_file_cost_no_memory(tmp_path):
    data = raw_file([key_value("k", 9, struct.pack("<IQ", 12, 2**27))]) + b"\0" * 1000
    tracemalloc.start()

    with pytest.raises(ConfigError):
        opened(tmp_path, data)

    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20
