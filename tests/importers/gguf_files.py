"""GGUF files for tests: written by llama.cpp's own writer (PyPI: gguf), or byte by byte."""

from __future__ import annotations

import functools
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


def low_bit_block(kind, integers, scale):
    """Bytes of a block of integers: the statement of each type, one weight after the other."""
    d = np.array([scale], dtype="<f2").tobytes()
    if kind == "Q1_0":
        return d + np.packbits(np.asarray(integers) > 0, bitorder="little").tobytes()
    if kind in ("Q2_0", "Q2_0 with 128 weights per scale", "PQ2_0", "Q2_0C"):
        codes = [(w + 3) // 2 if kind == "Q2_0C" else w + 1 for w in integers]
        fours = [codes[i : i + 4] for i in range(0, len(codes), 4)]
        return d + bytes(sum(c << 2 * i for i, c in enumerate(four)) for four in fours)
    if kind == "PTQ1_0":
        packed = bytearray(26)
        for byte in range(26):
            start, size, digits = next(
                each for each in ((24, 2, 4), (16, 8, 5), (0, 16, 5)) if byte >= each[0]
            )
            first = {0: 0, 16: 80, 24: 120}[start] + byte - start
            number = 0
            for n in range(5):  # qh has four digits, the first in the highest place
                number = 3 * number + (integers[first + n * size] + 1 if n < digits else 0)
            packed[byte] = -(-number * 256 // 243)
        return bytes(packed) + d
    if kind == "TQ2_0":
        fields = (np.asarray(integers).reshape(2, 4, 32) + 1).astype(np.uint8)
        packed = sum(fields[:, i] << 2 * i for i in range(4))
        return packed.astype(np.uint8).tobytes() + d
    assert kind == "STQ1_0"
    patterns = bytes.fromhex("a9892909a68626069a921a126a624a42012181a1042484a41018909840486068")
    nibbles, signs = bytearray(32), bytearray(8)
    for g in range(64):
        four = [integers[64 * (g // 16) + g % 16 + 16 * p] for p in range(4)]
        index = patterns.index(sum((w + 1) << 2 * p for p, w in enumerate(four)))
        nibbles[g // 2] |= (index & 15) << 4 * (g % 2)
        signs[g // 8] |= (index >> 4) << g % 8
    return bytes(nibbles + signs) + d


BLOCKS = {each.name: each.block for each in TYPES}


def pack_low_bit(kind, integers, scales):
    """Bytes of a matrix of integers (M, K) with scales (M, K / block)."""
    blocks = np.asarray(integers).reshape(scales.size, BLOCKS[kind]).tolist()
    return np.frombuffer(
        b"".join(low_bit_block(kind, *each) for each in zip(blocks, scales.ravel(), strict=True)),
        dtype=np.uint8,
    )


def random_integers(kind, shape, seed=0, has_twos=False):
    """Integers of a type: of STQ1_0, one of the four weights of a group is 0."""
    rng = np.random.default_rng(seed)
    values = {"Q1_0": (-1, 1), "Q2_0C": (-3, -1, 1, 3)}.get(kind, (-1, 0, 1))
    integers = rng.choice(np.array((*values, 2) if has_twos else values, dtype=np.int8), shape)
    if kind == "STQ1_0":
        integers[integers == 0] = 1
        groups = integers.reshape(-1, 4, 16)
        np.put_along_axis(groups, rng.integers(0, 4, (len(groups), 1, 16)), 0, axis=1)
    return integers


@functools.cache
def _different_blocks(kind, has_twos):
    """Integers and bytes of 64 random blocks without a scale."""
    integers = random_integers(kind, (64, BLOCKS[kind]), has_twos=has_twos)
    packed = [low_bit_block(kind, each.tolist(), 0) for each in integers]
    return integers, np.frombuffer(b"".join(packed), dtype=np.uint8).reshape(64, -1)


def random_matrix(kind, shape, scales, seed=0, has_twos=False):
    """Integers and bytes of a matrix of random blocks with these scales."""
    integers, packed = _different_blocks(kind, has_twos)
    chosen = np.random.default_rng(seed).integers(0, 64, scales.size)
    data = packed[chosen]
    at = data.shape[1] - 2 if kind in ("PTQ1_0", "STQ1_0", "TQ2_0") else 0
    data[:, at : at + 2] = scales.astype("<f2").reshape(-1, 1).view(np.uint8)
    return integers[chosen].reshape(shape), data


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
