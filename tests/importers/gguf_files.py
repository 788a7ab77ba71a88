"""GGUF files for tests: written by llama.cpp's own writer (PyPI: gguf), or byte by byte."""

from __future__ import annotations

import struct

import gguf
import numpy as np

from yocobit.importers.gguf.tensor_types import TYPES

IDS = {each.name: each.id for each in TYPES}


def write(path, architecture, metadata, tensors):
    """Write a file; `tensors` maps names to arrays, or to (type name, bytes, shape)."""
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in metadata.items():
        add_value(writer, key, value)
    for name, tensor in tensors.items():
        if isinstance(tensor, tuple):
            kind, data, shape = tensor
            raw = np.ascontiguousarray(data).reshape(-1).view(np.int8)  # uint8 has a meaning
            writer.add_tensor(name, raw, raw_shape=shape, raw_dtype=IDS[kind])
        else:
            writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def add_value(writer, key, value):
    kinds = {bool: "bool", int: "uint32", float: "float32", str: "string", list: "array"}
    getattr(writer, f"add_{kinds[type(value)]}")(key, value)


def pack_i2_s(trits, scale):
    """Bytes of an I2_S tensor: the statement of microsoft/BitNet's converter."""
    codes = (np.asarray(trits).reshape(-1, 4, 32) + 1).astype(np.uint8)
    packed = codes[:, 0] << 6 | codes[:, 1] << 4 | codes[:, 2] << 2 | codes[:, 3]
    tail = np.full(32, 0xAB, dtype=np.uint8)  # 28 bytes of anything
    tail[:4] = np.array([scale], dtype=np.float32).view(np.uint8)
    return np.concatenate([packed.reshape(-1), tail])


def string(text):
    raw = text if isinstance(text, bytes) else text.encode()
    return struct.pack("<Q", len(raw)) + raw


def key_value(key, kind, payload):
    return string(key) + struct.pack("<I", kind) + payload


def tensor_info(name, shape=(32,), kind=0, offset=0):
    sizes = struct.pack(f"<{len(shape)}Q", *reversed(shape))
    return string(name) + struct.pack("<I", len(shape)) + sizes + struct.pack("<IQ", kind, offset)


def raw_file(keys=(), infos=(), data=b"", version=3, n_keys=None, n_tensors=None, alignment=32):
    """The bytes of a file of these parts, however wrong they are."""
    n_keys, n_tensors = (
        len(each) if n is None else n for n, each in ((n_keys, keys), (n_tensors, infos))
    )
    header = b"GGUF" + struct.pack("<IQQ", version, n_tensors, n_keys)
    header += b"".join(keys) + b"".join(infos)
    return header + b"\0" * (-len(header) % alignment) + data
