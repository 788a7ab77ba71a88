"""Mutations of valid inputs: JSON values exchanged for odd ones, and bytes of files."""

from __future__ import annotations

import copy
import json
import random
from typing import Any

NUMBERS: list[Any] = [
    *(-1, 0, 1, 2, 3, 255, 2**31 - 1, 2**31, 2**53 + 1, 2**63, 2**64, 10**30, -(2**63), 10**400),
    *(0.5, 1.0, -0.0, 1e-320, 1e308, -1e308, float("nan"), float("inf"), float("-inf")),
]
TEXTS = [
    *(
        "",
        " ",
        "0",
        "-1",
        "nan",
        "None",
        "null",
        "true",
        "a",
        "ab",
        "a\nb",
        "\0",
        "\x1b[2J",
        "\u202e",
    ),
    *(
        "☕",
        "é",
        "e\u0301",
        "\ud800",
        "\udcff",
        "\uffff",
        "🙂",
        "🙂" * 1000,
        "x" * 100_000,
        "▁",
        "Ġ",
    ),
    *("<s>", "</s>", "<unk>", "<0x0A>", "<|endoftext|>", "[UNK]", "%s", "{}", "{{ x }}", "../../x"),
    *("/dev/zero", "/dev/stdin", "/", ".", "(", "[", "(a+)+$", "\\", '"', "int8", "BPE", "Replace"),
]
OTHERS: list[Any] = [None, True, False, [], {}, [[]], [None], {"": None}, [{}], {"type": None}]


class Deep:
    """A value nested too deeply for json.dumps; `dump` writes it."""

    def __init__(self, opening: str, closing: str, depth: int) -> None:
        self.text = opening * depth + "1" + closing * depth


def mutate_json(value: Any, rng: random.Random, n: int | None = None) -> Any:
    """Return a copy with about one to three values, keys or items exchanged."""
    root = [copy.deepcopy(value)]
    for _ in range(n or rng.choice((1, 1, 1, 2, 3))):
        _mutate_one(root, rng)
    return root[0]


def dump(value: Any, rng: random.Random) -> bytes:
    """Write JSON with what json.dumps lacks: duplicate keys, deep values, byte order marks."""
    deep: list[str] = []

    def default(each: Any) -> str:
        deep.append(each.text)
        return f"\0{len(deep) - 1}\0"

    text = json.dumps(value, default=default, ensure_ascii=rng.random() < 0.5)
    for i, inner in enumerate(deep):
        text = text.replace(f'"\\u0000{i}\\u0000"', inner, 1)
    if rng.random() < 0.02:
        text = text.replace("{", '{"type": 1, "type": 2, ', 1)
    data = text.encode("utf-8", "surrogatepass")
    if rng.random() < 0.03:
        data = b"\xef\xbb\xbf" + data
    return mutate_bytes(data, rng) if rng.random() < 0.05 else data


def mutate_bytes(data: bytes, rng: random.Random) -> bytes:
    """Return other bytes: flipped, cut, repeated, exchanged, or none at all."""
    data = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 5))):
        at, to = sorted((rng.randrange(len(data) + 1), rng.randrange(len(data) + 1)))
        kind = rng.randrange(7)
        if kind == 0 and at < len(data):
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del data[at : min(to, at + rng.choice((1, 8, 1 << 20)))]
        elif kind == 2:
            data[at:at] = rng.choice((b"\0", b"\xff\xfe", b"[" * 5000, b"9" * 400, b'"', b"{"))
        elif kind == 3:
            data[at:at] = data[at : min(to, at + 64)] * rng.choice((1, 2, 100))
        elif kind == 4:
            del data[at:]
        elif kind == 5 and at + 8 <= len(data):
            number = rng.choice((0, 1, 2**31, 2**63 - 1, 2**64 - 1, len(data)))
            data[at : at + 8] = number.to_bytes(8, "little")
        elif kind == 6:
            data = bytearray(rng.choice((b"", b"\0" * len(data), b"null", b"[]", b"{}", b"5")))
    return bytes(data)


def mutate_gguf(data: bytes, start: int, rng: random.Random) -> bytes:
    """Return other bytes of a GGUF file whose weights start at `start`."""
    header, weights = data[:start], data[start:]
    kind = rng.randrange(5)
    if kind < 3:  # everything, the keys of the architecture, or the tensors; all keep their places
        places = ((0, start), (24, min(start, 900)), (max(start - 1800, 0), start))
        header = overwrite(header, rng, *places[kind])
    elif kind == 3:
        header = mutate_bytes(header, rng)
        header += b"\0" * (-len(header) % 32) * (rng.random() < 0.9)
    else:
        weights = mutate_bytes(weights, rng)
    return header + weights


def overwrite(data: bytes, rng: random.Random, first: int, last: int) -> bytes:
    """Return bytes of the same length with one to three numbers in a range exchanged."""
    data = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        size = rng.choice((1, 4, 4, 8))
        at = rng.randrange(first, last - size)
        number = int.from_bytes(data[at : at + size], "little")
        odd = (0, 1, 2, 255, 2**31, 2**32 - 1, 2**63, 2**64 - 1, len(data), rng.getrandbits(64))
        other = rng.choice((*odd, number + 1, number - 1, number * 2, number ^ 1))
        data[at : at + size] = (other % (1 << 8 * size)).to_bytes(size, "little")
        if rng.random() < 0.2:
            other_at = rng.randrange(first, last - size)
            data[other_at : other_at + size] = data[at : at + size]
    return bytes(data)


def _mutate_one(root: list[Any], rng: random.Random) -> None:
    """Walk to a random value and exchange it: each level of nesting is as likely as another."""
    place: Any = root
    key: Any = 0
    while isinstance(place[key], dict | list) and place[key] and rng.random() < 0.9:
        place = place[key]
        key = rng.choice(list(place)) if isinstance(place, dict) else rng.randrange(len(place))
    kind = rng.randrange(10)
    if kind == 0 and place is not root:
        del place[key]
    elif kind == 1 and isinstance(place, dict) and place is not root:
        place[rng.choice(TEXTS)] = place.pop(key)
    elif kind == 2 and isinstance(place, list) and place is not root:
        place[key:key] = [copy.deepcopy(place[key])] * rng.choice((1, 2, 1000))
    elif kind == 3 and isinstance(place[key], list | dict):
        odd = odd_value(rng)
        if isinstance(place[key], list):
            place[key].append(odd)
        else:
            place[key][rng.choice(TEXTS)] = odd
    elif kind == 4:
        other: Any = root
        while isinstance(other, dict | list) and other and rng.random() < 0.8:
            other = rng.choice(list(other.values()) if isinstance(other, dict) else other)
        place[key] = copy.deepcopy(other)
    elif kind == 5 and isinstance(place[key], str):
        text = place[key]
        at = rng.randrange(len(text) + 1)
        place[key] = text[:at] + rng.choice(TEXTS) + text[at:]
    elif kind == 6 and isinstance(place[key], int | float) and not isinstance(place[key], bool):
        number = place[key]
        place[key] = rng.choice(
            (-number, number + 1, number - 1, number * 2, str(number), [number])
        )
    elif kind == 7 and isinstance(place[key], bool):
        place[key] = not place[key]
    elif kind < 9 and isinstance(place[key], str):
        place[key] = rng.choice(TEXTS)
    elif kind < 9 and isinstance(place[key], int | float):
        place[key] = rng.choice(NUMBERS)
    else:
        place[key] = odd_value(rng)


def odd_value(rng: random.Random) -> Any:
    """Return a value that few readers expect."""
    if rng.random() < 0.03:
        pair = rng.choice((("[", "]"), ('{"a":', "}"), ('{"type":', "}"), ('[{"items":', "}]")))
        return Deep(*pair, rng.choice((50, 600, 20_000)))
    return copy.deepcopy(rng.choice(rng.choice((NUMBERS, TEXTS, OTHERS))))
