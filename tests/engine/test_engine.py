"""The engine equals the PyTorch model; its logits depend on model and tokens only.

Letters: T positions   V vocabulary
"""

from __future__ import annotations

import functools

import numpy as np
import packed_models
import pytest
import torch
from packed_models import KINDS, STACKS, as_packed, nano, packed, trained

from yocobit import Engine, _native
from yocobit.model import Cache
from yocobit.packing.formats import INT4
from yocobit.packing.layout import quantize_int4

T = 136  # more than two chunks of 64, and eight windows of 16


@pytest.fixture(scope="session")
def model_of(tmp_path_factory):
    """A function from stack, weights and changes to (PyTorch twin, packed directory)."""

    @functools.cache
    def make(stack: str, weights: str, steps: int = 20, **changes):
        model = trained(nano(stack, weights, **changes), steps)
        directory = tmp_path_factory.mktemp(f"{stack}-{weights}")
        return as_packed(model), packed(model, directory).path

    return make


@pytest.fixture
def tokens() -> np.ndarray:
    return packed_models.tokens()[1000 : 1000 + T].numpy()


@pytest.fixture
def engine(model_of) -> Engine:
    return Engine.load(model_of("yoco-gret", "ternary")[1])


def bits(array) -> np.ndarray:
    """Floats as integers, so that equality means the same bits."""
    return np.ascontiguousarray(array).view(np.uint32)


# ---- equal to PyTorch ----


def errors(twin, engine: Engine, tokens: np.ndarray) -> np.ndarray:
    """Largest difference from PyTorch's logits in each of 8 texts, relative to absmax."""
    texts = tokens.reshape(8, -1)
    with torch.no_grad():
        expected = twin(torch.from_numpy(texts)).numpy()
    logits = np.stack([engine.logits(text) for text in texts])
    return np.abs(logits - expected).max(axis=(1, 2)) / np.abs(expected).max()


def assert_agree(error: np.ndarray, largest: float = 1e-2) -> None:
    """Assert that the errors are explained by float32 sums in different orders.

    The sums differ by about 1e-7. An activation this close to a rounding tie is quantised to
    different values: an error of about 1e-5 in the head (15 bits), and of about 1e-3 in other
    layers (8 bits), but not in most texts. PyTorch in float32 and in float64 differs likewise.
    """
    assert np.median(error) < 1e-4
    assert error.max() < largest


@pytest.mark.parametrize("weights", KINDS)
@pytest.mark.parametrize("stack", STACKS)
def test_logits_equal_pytorch(model_of, stack, weights, tokens):
    twin, path = model_of(stack, weights)

    error = errors(twin, Engine.load(path), tokens)

    assert_agree(error)


@pytest.mark.parametrize("stack", STACKS)
def test_logits_of_a_long_text_equal_pytorch(model_of, stack, tokens):
    twin, path = model_of(stack, "dense")

    logits = Engine.load(path).logits(tokens)

    with torch.no_grad():
        expected = twin(torch.from_numpy(tokens)[None])[0].numpy()
    assert np.abs(logits - expected).max() < 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("weights", KINDS)
@pytest.mark.parametrize("stack", ["yoco-gret", "yoco-swa", "transformer"])
def test_64_greedy_tokens_equal_pytorch(model_of, stack, weights, tokens):
    # Trained for long enough that rounding ties do not change the argmax.
    twin, path = model_of(stack, weights, steps=120)
    prompt = tokens[:50]

    session = Engine.load(path).session(len(prompt) + 64)
    logits, generated = session.feed(prompt), []
    for _ in range(64):
        generated.append(int(logits.argmax()))
        logits = session.step(generated[-1])

    cache, expected = Cache(), []
    with torch.no_grad():
        row = twin.step(torch.from_numpy(prompt)[None], cache)[0, -1]
        for _ in range(64):
            expected.append(int(row.argmax()))
            row = twin.step(torch.tensor([expected[-1:]]), cache)[0, -1]
    assert generated == expected


@pytest.mark.parametrize(
    "changes",
    [
        {"ffn": "relu2"},
        {"ffn": "sign"},
        {"sub_norm": False},
        {"tie_embeddings": True, "scale_embedding": False},
        {"d_ff": 136},  # off the block size
        {
            "retention_rope": "half",
            "window_rope": "half",
            "full_rope": "half",
            "cross_rope": "half",
        },
        {
            "retention_rope": "none",
            "window_rope": "none",
            "full_rope": "none",
            "cross_rope": "none",
        },
        {"n_self_heads": 4, "n_self_kv_heads": 1, "n_heads": 2, "n_kv_heads": 1},
        {"window": 1},
        {"window": 500},
    ],
    ids=str,
)
def test_logits_of_every_option_equal_pytorch(model_of, changes, tokens):
    twin, path = model_of("mixed", "ternary", steps=3, **changes)

    error = errors(twin, Engine.load(path), tokens)

    # A flip of sign() moves a feature by 2: PyTorch in float64 differs by 0.09.
    assert_agree(error, largest=0.2 if changes.get("ffn") == "sign" else 1e-2)


def test_f16_weights_equal_pytorch_with_rounded_weights(tmp_path, tokens):
    model = trained(nano("mixed", "dense"), steps=3)
    engine = Engine(packed(model, tmp_path, "f16"), threads=1, kernels=None)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2 and "decay" not in name:
                parameter.copy_(parameter.half())

    assert errors(model, engine, tokens).max() < 1e-5


@pytest.mark.parametrize("is_tied", [False, True])
def test_int4_head_equals_pytorch_with_a_rounded_head(tmp_path, is_tied, tokens):
    model = trained(nano("yoco-gret", "sign", tie_embeddings=is_tied), steps=3)
    engine = Engine(packed(model, tmp_path, head="int4"), threads=2, kernels=None)
    twin = as_packed(model)
    with torch.no_grad():
        codes, scales = quantize_int4(model.head.weight.numpy())
        head = torch.from_numpy(INT4.dequantize(codes, scales, *model.head.weight.shape))
    twin.head.weight = torch.nn.Parameter(head)

    assert_agree(errors(twin, engine, tokens))


def test_int4_head_logits_have_the_same_bits_for_any_kernels_threads_and_chunks(tmp_path, tokens):
    path = packed(trained(nano("mixed", "ternary"), steps=3), tmp_path, head="int4").path
    expected = bits(Engine.load(path, threads=1, kernels="scalar").logits(tokens))

    for kernels in _native.supported_kernels():
        engine = Engine.load(path, threads=2, kernels=kernels)
        np.testing.assert_array_equal(bits(engine.logits(tokens)), expected)
        session = engine.session(T)
        for t in range(T):
            np.testing.assert_array_equal(bits(session.step(tokens[t])), expected[t])


@pytest.mark.parametrize("weights", KINDS)
@pytest.mark.parametrize("cache", ["int8", "int4"])
def test_logits_equal_pytorch_with_the_same_quantised_cache(model_of, cache, weights, tokens):
    twin, path = model_of("yoco-gret", weights, shared_kv=cache)
    engine = Engine.load(path)
    texts = tokens.reshape(8, -1)
    with torch.no_grad():
        expected = twin(torch.from_numpy(texts)).numpy()

    error = [
        np.abs(engine.logits(text, cache) - logits).max() / np.abs(expected).max()
        for text, logits in zip(texts, expected, strict=True)
    ]

    # As in assert_agree, but a tie in int4 moves a value by a seventh, and with int16 queries
    # and weights, most texts have an int8 activation near a tie.
    assert np.median(error) < (1e-4 if weights == "dense" else 1e-2)
    assert max(error) < 3e-2


@pytest.mark.parametrize("stack", ["yoco-gret", "yoco-swa", "transformer"])
@pytest.mark.parametrize(("cache", "bound"), [("f16", 5e-3), ("int8", 5e-2), ("int4", 0.5)])
def test_small_caches_stay_near_f32(model_of, stack, cache, bound, tokens):
    engine = Engine.load(model_of(stack, "dense")[1])
    exact = engine.logits(tokens)

    logits = engine.logits(tokens, cache=cache)

    assert 0 < np.abs(logits - exact).max() < bound * np.abs(exact).max()


# ---- a pure function of model and tokens ----


@pytest.mark.parametrize(
    ("weights", "cache"),
    [(kind, "f32") for kind in KINDS] + [("ternary", type) for type in ("f16", "int8", "int4")],
)
@pytest.mark.parametrize("stack", STACKS)
def test_logits_have_the_same_bits_for_any_kernels_threads_and_chunks(
    model_of, stack, weights, cache, tokens
):
    path = model_of(stack, weights)[1]
    expected = bits(Engine.load(path, threads=1, kernels="scalar").logits(tokens, cache=cache))

    for kernels in _native.supported_kernels():
        for threads, chunks in ((1, (7, T)), (2, (1, 64)), (3, (50,))):
            engine = Engine.load(path, threads=threads, kernels=kernels)
            np.testing.assert_array_equal(bits(engine.logits(tokens, cache=cache)), expected)
            for chunk in chunks if kernels != "scalar" else chunks[-1:]:
                session = engine.session(T, cache)
                for begin in range(0, T, chunk):
                    logits = session.feed(tokens[begin : begin + chunk])
                    last = min(begin + chunk, T) - 1
                    np.testing.assert_array_equal(bits(logits), expected[last])


@pytest.mark.parametrize("kernels", _native.supported_kernels()[1:])
@pytest.mark.parametrize("stack", ["yoco-gret", "yoco-swa", "transformer"])
def test_logits_over_several_kv_splits_have_the_same_bits_for_any_chunking(
    model_of, stack, kernels
):
    path = model_of(stack, "ternary", window=700)[1]
    text = packed_models.tokens()[:1700].numpy()  # a KV split has 512 positions
    together = Engine.load(path, threads=2, kernels=kernels).session(len(text), "f16")
    alone = Engine.load(path, threads=1, kernels=kernels).session(len(text), "f16")

    rows = together.feed_all(text)
    alone.feed(text[:1500])
    steps = np.stack([alone.step(token) for token in text[1500:]])

    np.testing.assert_array_equal(bits(rows[1500:]), bits(steps))


@pytest.mark.parametrize("stack", STACKS)
def test_early_exit_changes_no_bit(model_of, stack, tokens):
    engine = Engine.load(model_of(stack, "ternary")[1])
    eager, early = engine.session(T), engine.session(T)

    eager.feed_all(tokens[:-1])
    early.feed(tokens[:-1])

    np.testing.assert_array_equal(bits(early.logits), bits(eager.logits))
    np.testing.assert_array_equal(bits(early.step(tokens[-1])), bits(eager.step(tokens[-1])))


def test_sessions_of_one_engine_are_independent(model_of, tokens):
    engine = Engine.load(model_of("mixed", "ternary")[1])
    expected = bits(engine.logits(tokens[:20]))
    one, two = engine.session(20), engine.session(20)

    for t in range(20):
        two.step(tokens[T - 1 - t])
        np.testing.assert_array_equal(bits(one.step(tokens[t])), expected[t])


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("kernels", _native.supported_kernels())
@pytest.mark.parametrize("stack", STACKS)
def test_logits_have_the_same_bits_for_any_batch_composition(
    model_of, stack, kernels, threads, tokens
):
    path = model_of(stack, "ternary")[1]
    engine = Engine.load(path, threads=threads, kernels=kernels)
    expected = bits(engine.logits(tokens))
    sessions = [engine.session(T) for _ in range(64)]
    for i, session in enumerate(sessions):
        session.feed(tokens[: 1 + 3 * i % 97])

    for _ in range(4):
        logits = engine.step(sessions, [tokens[s.position] for s in sessions])
        for session, row in zip(sessions, logits, strict=True):
            np.testing.assert_array_equal(bits(row), expected[session.position - 1])


def test_a_batch_larger_than_one_pass_has_the_same_bits(model_of, tokens):
    engine = Engine.load(model_of("mixed", "ternary")[1])
    expected = bits(engine.logits(tokens[:1]))[0]
    sessions = [engine.session(1) for _ in range(300)]

    logits = engine.step(sessions, [tokens[0]] * 300)

    assert (bits(logits) == expected).all()


def test_a_callers_flush_to_zero_mode_changes_nothing(model_of, tokens):
    path = model_of("yoco-gret", "ternary")[1]
    expected = bits(Engine.load(path).logits(tokens))
    torch.set_flush_denormal(True)
    try:
        np.testing.assert_array_equal(bits(Engine.load(path).logits(tokens)), expected)
    finally:
        torch.set_flush_denormal(False)


# ---- out ----


def test_logits_go_to_out_and_are_the_same(engine, tokens):
    expected = engine.logits(tokens[:8])
    V = engine.config.vocab_size
    row, rows = np.empty(V, np.float32), np.empty((5, V), np.float32)
    session, other = engine.session(8), engine.session(8)

    assert session.feed(tokens[:2], out=row) is row is session.logits
    np.testing.assert_array_equal(bits(row), bits(expected[1]))
    assert session.step(tokens[2], out=row) is row
    np.testing.assert_array_equal(bits(row), bits(expected[2]))
    assert session.feed_all(tokens[3:8], out=rows) is rows
    np.testing.assert_array_equal(bits(rows), bits(expected[3:8]))
    assert engine.step([other], tokens[:1], out=rows[:1]).base is rows
    np.testing.assert_array_equal(bits(rows[0]), bits(expected[0]))


@pytest.mark.parametrize(
    ("out", "actual"),
    [
        (np.empty(511, np.float32), r"float32 of shape \(511,\)"),
        (np.empty((1, 512), np.float32), r"float32 of shape \(1, 512\)"),
        (np.empty(512), r"float64 of shape \(512,\)"),
        (np.empty(512, ">f4"), r">f4 of shape \(512,\)"),
        (np.empty(1024, np.float32)[::2], r"not contiguous, with strides \(8,\)"),
        (np.broadcast_to(np.float32(0), 512), "not contiguous"),
        (np.frombuffer(bytes(2048), np.float32), "read-only"),
        ([0.0] * 512, "list"),
    ],
)
def test_an_invalid_out_is_rejected_and_changes_nothing(engine, out, actual):
    session = engine.session(8)

    with pytest.raises(ValueError, match=r"out must be .* of shape \(512,\) .* but is " + actual):
        session.step(1, out=out)
    with pytest.raises(ValueError, match=r"out must be .* of shape \(2, 512\)"):
        engine.step([session, engine.session(8)], [1, 1], out=out)

    assert session.position == 0


# ---- memory ----


@pytest.mark.parametrize("stack", STACKS)
@pytest.mark.parametrize("cache", ["f32", "f16", "int8", "int4"])
def test_memory_grows_by_the_growing_caches_only(model_of, stack, cache):
    engine = Engine.load(model_of(stack, "ternary")[1])
    config = engine.config

    small, large = engine.session(64, cache).memory(), engine.session(1088, cache).memory()

    value_bits = {"f32": 32, "f16": 16, "int8": 8, "int4": 4}[cache]
    scale_bytes = 4 if cache in ("int8", "int4") else 0
    per_cache = 2 * config.n_kv_heads * (config.head_dim * value_bits // 8 + scale_bytes)
    n_caches = config.layers.count("full") + ("cross" in config.layers)
    assert large.total - small.total == 1024 * n_caches * per_cache
    assert large.shared_kv_per_token == (per_cache if "cross" in config.layers else 0)
    assert large.full_per_token == config.layers.count("full") * per_cache
    state = 4 * config.d_model * config.self_head_dim
    assert large.retention == config.layers.count("retention") * state


def test_activation_buffers_do_not_grow_with_sessions(model_of):
    engine = Engine.load(model_of("yoco-gret", "ternary")[1])
    before = engine.buffer_bytes
    rows = 128 * 4 * (6 * engine.config.d_model + 3 * engine.config.d_ff)

    engine.session(100_000)

    assert engine.buffer_bytes == before > rows * 0.8


# ---- bad input ----


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ([0, 512], r"token 1 must be in \[0, 512\) but is 512"),
        ([-1], r"token 0 must be in \[0, 512\) but is -1"),
        ([], "at least one token"),
        ([0.5], "must be a list of integers but are float64"),
        ([[1, 2]], r"of shape \(1, 2\)"),
        ([1 << 40], "must fit 32 bits"),
        ([0] * 9, "has room for 8 tokens and holds 2, so 9 more do not fit"),
    ],
)
def test_invalid_tokens_are_rejected_and_change_nothing(engine, tokens, message):
    session, undisturbed = engine.session(8), engine.session(8)
    session.feed([1, 2])
    undisturbed.feed([1, 2])

    with pytest.raises(ValueError, match=message):
        session.feed(tokens)

    assert session.position == 2
    np.testing.assert_array_equal(session.step(3), undisturbed.step(3))


def test_invalid_steps_are_rejected_and_change_nothing(engine, model_of):
    one, two = engine.session(2), engine.session(2)
    other = Engine.load(model_of("yoco-gret", "ternary")[1]).session(2)
    two.feed([1, 2])

    for sessions, tokens, message in (
        ([one, one], [1, 2], "must differ but one is given twice"),
        ([one], [1, 2], "one token for each session but got 2 for 1"),
        ([], [], "needs a session"),
        ([one, two], [1, 2], "has room for 2 tokens and holds 2"),
        ([one, other], [1, 2], "must be of this engine"),
        ([one], [512], r"must be in \[0, 512\)"),
    ):
        with pytest.raises(ValueError, match=message):
            engine.step(sessions, tokens)

    assert one.position == other.position == 0


def test_logits_before_the_first_token_are_an_error(engine):
    with pytest.raises(ValueError, match="feed it a token first"):
        _ = engine.session(8).logits


@pytest.mark.parametrize("max_tokens", [0, -1, 1 << 50])
def test_sessions_of_invalid_capacity_are_rejected(engine, max_tokens):
    with pytest.raises(ValueError, match="max_tokens must be between 1 and"):
        engine.session(max_tokens)


def test_sessions_larger_than_memory_raise_memory_error(engine):
    with pytest.raises(MemoryError):
        engine.session(1 << 40)


@pytest.mark.parametrize("threads", [0, 1025])
def test_invalid_thread_counts_are_rejected(model_of, threads):
    with pytest.raises(ValueError, match=f"threads must be between 1 and 1024 but is {threads}"):
        Engine.load(model_of("yoco-gret", "ternary")[1], threads=threads)


def test_keys_values_rejects_positions_that_are_not_cached(engine):
    session = engine.session(8)
    session.feed([1, 2])

    for begin, end in ((0, 3), (-1, 1), (2, 1)):
        with pytest.raises(IndexError):
            session.keys_values(3, begin, end)


def test_yocobit_engine_imports_without_torch():
    import subprocess
    import sys

    code = (
        "import sys; sys.modules['torch'] = None; import yocobit, yocobit.engine, yocobit.packing;"
        "import yocobit.cli; assert yocobit.Engine"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_jinja_is_imported_when_a_chat_template_is_read():
    import subprocess
    import sys

    code = (
        "import sys, yocobit, yocobit.cli; engine = yocobit.Engine.load();"
        "assert 'jinja2' not in sys.modules; engine.chat_template; assert 'jinja2' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
