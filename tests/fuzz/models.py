"""Fuzzing of packed models: random shapes with extreme values, damaged files, the native module.

Whatever a file holds, opening it ends in an engine or a UserError. Whatever an engine opened, all
kernel families compute the same bits, in one piece or in several, and under sanitizers nothing is
read out of bounds. Each case is a forked process, and depends on its number only.

    python tests/fuzz/models.py 17        # run case 17 again
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    import native_build  # noqa: F401

import numpy as np

from yocobit import Engine, _native
from yocobit.config import ConfigError, ModelConfig
from yocobit.errors import UserError
from yocobit.packing import PackedModel, read_model, verify
from yocobit.packing.file_format import DTYPES, canonical_json
from yocobit.packing.formats import PROJECTION_FORMATS
from yocobit.packing.stored_parameters import StoredParameter, stored_parameters
from yocobit.packing.writer import write_model

_CASE_SECONDS = 120
_ODD = [None, True, -1, 0, 1, 7, 1 << 31, 1 << 62, 1 << 64, 10**400, 0.5, "", "x", [], {}, [[0]]]
_CACHES = ("f32", "f16", "int8", "int4")


def run(seconds: float, seed: int) -> int:
    """Run cases from number `seed` on for some time; return the number of failures."""
    end, number, n_failures = time.monotonic() + seconds, seed, 0
    while time.monotonic() < end:
        n_failures += not run_case(number)
        number += 1
    print(f"models: {number - seed} cases, {n_failures} failures", flush=True)
    return n_failures


def run_case(number: int) -> bool:
    """Run a case in a child process; return whether it ended well."""
    sys.stdout.flush()
    if child := os.fork():
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if code != 0:
            print(f"FAILED models: exit code {code}: python tests/fuzz/models.py {number}")
        return code == 0
    code = 1
    try:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(_CASE_SECONDS)
        with tempfile.TemporaryDirectory(prefix="yocobit-fuzz-model-") as directory:
            _case(random.Random(f"models {number}"), Path(directory))
        code = 0
    except BaseException:
        traceback.print_exc()
    os._exit(code)


def _case(rng: random.Random, directory: Path) -> None:
    model = _random_model(rng, directory / "model")
    kind = rng.choice(("whole", "whole", "data", "data", "header", "config", "bytes", "native"))
    if kind == "native":
        _native_case(rng, model)
        return
    if kind != "whole":
        _damage(rng, model, kind)
    try:
        engine = Engine(read_model(model.path).attending(_attention(rng, model)), 2, "scalar")
        engine.check_weights()
    except UserError as error:
        assert kind != "whole", error
        assert "\n" not in str(error), error
        return
    if rng.random() < 0.2:
        assert kind != "whole" or verify(model) == []
    _compare_families(rng, engine)
    _restore(rng, engine, directory / "saved")


def _attention(rng: random.Random, model: PackedModel) -> str | None:
    return "index:128" if model.config.has_cross_decoder and rng.random() < 0.4 else None


def _compare_families(rng: random.Random, engine: Engine) -> None:
    """Feed tokens to each kernel family, whole and in pieces; all logits must have equal bits."""
    V, n = engine.config.vocab_size, rng.choice((1, 3, 40, 200, 300))
    tokens, cache = [rng.randrange(V) for _ in range(n)], rng.choice(_CACHES)
    expected = engine.logits(tokens, cache).view(np.uint32)
    for kernels in (*_native.supported_kernels(), *_native.emulated_kernels()):
        other = Engine(engine.model, rng.choice((1, 3)), kernels)
        cuts = sorted(rng.randrange(n + 1) for _ in range(3))
        session = other.session(n, cache)
        for part in np.split(np.array(tokens), cuts):
            begin = session.position
            if len(part) and not np.array_equal(
                session.feed_all(part).view(np.uint32), expected[begin : begin + len(part)]
            ):
                raise AssertionError(f"{kernels} differs from scalar: {engine.config}, {cache}")
        assert session.memory().total >= 0
        _decode_in_a_batch(rng, other, tokens, cache, expected)


def _decode_in_a_batch(
    rng: random.Random, engine: Engine, tokens: list[int], cache: Any, expected: np.ndarray
) -> None:
    """Decode the last token of several sessions in a step that also prefills another."""
    sessions = [engine.session(len(tokens), cache) for _ in range(rng.choice((1, 2, 9)))]
    for session in sessions:
        if len(tokens) > 1:
            session.feed(tokens[:-1])
    waiting = engine.session(len(tokens), cache)
    logits = engine.step(sessions, [tokens[-1]] * len(sessions), prompts=[(waiting, tokens)])
    assert all(np.array_equal(row.view(np.uint32), expected[-1]) for row in logits)
    assert waiting.position == len(tokens)


def _restore(rng: random.Random, engine: Engine, file: Path) -> None:
    """Save a session, damage the file, and restore it: the same logits, or one line."""
    cache = rng.choice(_CACHES)
    session = engine.session(64, cache)
    session.feed([rng.randrange(engine.config.vocab_size) for _ in range(rng.choice((1, 40)))])
    was_finite = session.is_finite()
    engine.save(session, file)
    data = bytearray(file.read_bytes())
    is_damaged = rng.random() < 0.7
    if is_damaged:
        at = rng.randrange(len(data))
        data[at : at + rng.choice((0, 1, 8))] = rng.randbytes(rng.choice((0, 1, 8)))
        file.write_bytes(data[: rng.choice((at, len(data), len(data)))])
    try:
        restored = engine.restore(file, 65)
    except UserError:
        assert is_damaged or not was_finite
        return
    token = rng.randrange(engine.config.vocab_size)
    fresh = session.fork(65).feed([token])
    assert np.array_equal(restored.feed([token]).view(np.uint32), fresh.view(np.uint32))


# ---- models


def _random_model(rng: random.Random, directory: Path) -> PackedModel:
    """Write a model of a random small shape with random or extreme values."""
    config = _random_config(rng)
    formats = [f.name for f in PROJECTION_FORMATS.values() if f.weights == config.weights]
    parameters = stored_parameters(config, rng.choice(formats), rng.choice(("int8", "int4")))
    generator, style = np.random.default_rng(rng.randrange(1 << 32)), rng.randrange(4)
    tensors = (
        (tensor, _values(generator, style, stored, tensor, dtype, shape))
        for name, stored in parameters.items()
        for tensor, (dtype, shape) in stored.format.tensors(name, stored.shape).items()
    )
    return write_model(directory, config, parameters, tensors)


def _random_config(rng: random.Random) -> ModelConfig:
    def divisor(n: int) -> int:
        return rng.choice([k for k in range(1, n + 1) if n % k == 0])

    def rope() -> Any:
        return rng.choice(("interleaved", "half", "none"))

    while True:
        d_model = 8 * rng.choice((1, 2, 3, 5, 8, 9, 16, 17, 33))
        heads, self_heads = divisor(d_model // 8), divisor(d_model // 8)
        is_plain = rng.random() < 0.4  # of self-attention only, which may have more features
        mixers = ("window", "full") if is_plain else ("retention", "window", "full", "gate")
        layers = rng.choices(mixers, k=rng.randint(1, 3))
        if not is_plain and rng.random() < 0.7:
            layers += ["cross", *rng.choices(("cross", "gmu"), k=rng.randint(0, 2))]
        try:
            return ModelConfig(
                vocab_size=rng.choice((1, 2, 7, 8, 63, 65, 257)),
                d_model=d_model,
                layers=tuple(layers),
                d_ff=8 * rng.choice((1, 3, 8, 15, 17, 40)),
                n_heads=heads,
                n_kv_heads=divisor(heads),
                n_self_heads=self_heads,
                n_self_kv_heads=divisor(self_heads),
                window=rng.choice((1, 2, 31, 32, 33, 100, 1 << 24)),
                ffn=rng.choice(("swiglu", "geglu", "relu2", "sign")),
                weights=rng.choice(("ternary", "ternary_row", "sign", "dense")),
                sub_norm=rng.random() < 0.6,
                retention_rope=rope(),
                window_rope=rope(),
                full_rope=rope(),
                cross_rope=rope(),
                rope_theta=rng.choice((1.0001, 2.0, 10000.0, 1e12)),
                cross_positions=rng.choice((128, 160, 1 << 20)),
                cross_attention=rng.choice(("full", "full", "index")),
                norm_eps=rng.choice((1e-5, 1e-20, 1.0)),
                tie_embeddings=rng.random() < 0.4,
                scale_embedding=rng.random() < 0.5,
                **_features(rng, layers),
            )
        except ConfigError:
            continue


def _features(rng: random.Random, layers: list[Any]) -> dict[str, Any]:
    """Return features of published models, some of them valid with those layers."""
    scales = (1.0, 0.37, 1e-30, 1e30)
    features: dict[str, tuple[Any, ...]] = {
        "head_norm": (True,),
        "post_norms": (True,),
        "embedding_scale": scales,
        "residual_scale": scales,
        "logit_scale": scales,
    }
    if set(layers) <= {"full", "window"}:
        frequencies = ((1.0,), (1e30, 1e-30, 0.1, 0.01), (0.5,) * 8)
        features |= {
            "head_size": (8, 12, 24, 100, 1024),
            "attention_scale": scales,
            "qk_norm": ("before_rope", "after_rope"),
            "qkv_bias": (True,),
            "full_rope_frequencies": frequencies,
            "window_rope_frequencies": frequencies,
            "rope_factor": scales,
            "nope_layers": ((0,), (1, 2), tuple(range(len(layers)))),
            "projection_norms": (True,),
            "projection_norm_eps": (1.0, 1e-20),
        }
    chance = rng.choice((0.0, 0.2, 0.6))
    return {name: rng.choice(values) for name, values in features.items() if rng.random() < chance}


def _values(
    rng: np.random.Generator,
    style: int,
    stored: StoredParameter,
    tensor: str,
    dtype: str,
    shape: tuple[int, ...],
) -> np.ndarray:
    """Return valid values: ordinary ones, or the largest, the smallest, or both."""
    if dtype in ("U8", "I8"):
        valid = np.flatnonzero(stored.format.valid_bytes).astype(np.uint8)
        chosen = valid if style == 0 else valid[[0, -1]]
        return rng.choice(chosen, shape).view(DTYPES[dtype])
    is_scale = tensor.endswith("_scale")
    if style == 0:
        values = rng.uniform(0.5, 1, shape) if is_scale else rng.standard_normal(shape)
        return (values * stored.shape[-1] ** -0.5).astype(DTYPES[dtype])
    largest, smallest = {"F16": (6.5e4, 6e-8), "F32": (3e38, 1e-45)}[dtype]
    sizes = {1: [largest], 2: [smallest], 3: [largest, smallest, 1.0, 0.01]}[style]
    signs = 1.0 if is_scale else rng.choice([-1.0, 1.0], shape)
    return (rng.choice(sizes, shape) * signs).astype(DTYPES[dtype])


# ---- damage


def _damage(rng: random.Random, model: PackedModel, kind: str) -> None:
    """Change a file of a model; hashes of header and config.json match, so that more is read."""
    data = bytearray(model.file.read_bytes())
    end = 8 + int.from_bytes(data[:8], "little")
    header, config = json.loads(bytes(data[8:end])), model.path / "config.json"
    body = bytes(data[end:])
    if kind == "data":
        for _ in range(rng.choice((1, 10, 1000))):
            data[rng.randrange(end, len(data))] = rng.choice((0, 0xFF, 0x80, rng.randrange(256)))
        model.file.write_bytes(data)
        return
    if kind == "bytes":
        at = rng.randrange(len(data) if rng.random() < 0.5 else end)
        data[at : at + rng.choice((0, 1, 8))] = rng.randbytes(rng.choice((0, 1, 8)))
        model.file.write_bytes(data[: rng.choice((at, len(data), len(data)))])
        return
    if kind == "config":
        fields = json.loads(config.read_text())
        _mutate(rng, fields)
        config.write_bytes(_dump(fields))
        header["__metadata__"]["config_sha256"] = hashlib.sha256(config.read_bytes()).hexdigest()
    else:
        _mutate(rng, header)
    if isinstance(metadata := header.get("__metadata__"), dict):
        metadata.pop("header_sha256", None)
        metadata["header_sha256"] = hashlib.sha256(_dump(header)).hexdigest()
    raw = _dump(header)
    raw += b" " * (-(8 + len(raw)) % 64)
    model.file.write_bytes(len(raw).to_bytes(8, "little") + raw + body)


def _dump(value: Any) -> bytes:
    return canonical_json(value)


def _mutate(rng: random.Random, value: Any) -> None:
    """Exchange some values, deep inside JSON objects, for odd ones."""
    for _ in range(rng.choice((1, 1, 3))):
        place, key = value, rng.choice(list(value))
        while isinstance(place[key], dict | list) and place[key] and rng.random() < 0.8:
            place = place[key]
            key = rng.choice(list(place)) if isinstance(place, dict) else rng.randrange(len(place))
        old = place[key]
        if isinstance(place, dict) and rng.random() < 0.1:
            del place[key]
        elif type(old) is int and rng.random() < 0.7:
            place[key] = rng.choice((old - 8, old - 1, old + 1, old + 8, 2 * old, old // 2))
        else:
            place[key] = rng.choice(_ODD)
        if not value:
            return


# ---- the native module, without the checks of Python


def _native_case(rng: random.Random, model: PackedModel) -> None:
    """Open a valid file with a configuration and tensors that do not match it."""
    config: dict[str, Any] = model.config.to_dict()
    tensors = {n: [t.dtype, list(t.shape), t.begin, t.end] for n, t in model.tensors.items()}
    formats = {name: stored.format.name for name, stored in model.parameters.items()}
    where = rng.randrange(3)
    if where == 0:
        _mutate(rng, config)
    elif where == 1:
        _mutate(rng, tensors)
    else:
        name = rng.choice(list(formats))
        formats[name] = rng.choice(list(formats.values()))
    entries = {n: tuple(t) if isinstance(t, list) else t for n, t in tensors.items()}
    try:
        engine = _native.Engine(str(model.file), config, entries, formats, "", 2)
        session = _native.Session(engine, 64, rng.choice(_CACHES))
    except (ValueError, RuntimeError, TypeError, KeyError, IndexError, MemoryError, OverflowError):
        return
    logits = np.empty(engine.vocab_size, np.float32)
    for n in (1, 40):
        tokens = np.array([rng.randrange(engine.vocab_size) for _ in range(n)], np.int32)
        engine.feed(session, tokens, "last", logits)


if __name__ == "__main__":
    codes = [run_case(int(number)) for number in sys.argv[1:]]
    sys.exit(not all(codes))
