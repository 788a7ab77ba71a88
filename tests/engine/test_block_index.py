"""Cross attention to selected blocks of the shared KV cache: the selection, and its results.

Letters: B batch   T positions   H heads   G K/V heads   D head size
"""

from __future__ import annotations

import functools

import numpy as np
import packed_models
import pytest
import torch
from kernel_families import KERNELS
from packed_models import as_packed, nano, packed, trained
from typer.testing import CliRunner

from yocobit import Engine, _native
from yocobit.benchmark.random_model import write_random_model
from yocobit.cli import app
from yocobit.config import BLOCK, ConfigError, preset
from yocobit.model import Cache, Decoder
from yocobit.model.block_index import Blocks, visible_positions
from yocobit.packing import read_model

CACHES = ("f32", "f16", "int8", "int4")
T = 300  # ten blocks; a token attends to four
FOUR_BLOCKS = {"cross_positions": 4 * BLOCK}


@pytest.fixture(scope="session")
def model_of(tmp_path_factory):
    """A function from weights and changes to (PyTorch twin, packed directory)."""

    @functools.cache
    def make(weights: str, **changes):
        model = trained(nano("yoco-gret", weights, **FOUR_BLOCKS, **changes), 20)
        return as_packed(model), packed(model, tmp_path_factory.mktemp(weights)).path

    return make


@pytest.fixture
def tokens() -> np.ndarray:
    return packed_models.tokens()[500 : 500 + T].numpy()


def bits(array) -> np.ndarray:
    return np.ascontiguousarray(array).view(np.uint32)


# ---- block selection ----


def expected_blocks(q, keys, n_selected: int, position: int) -> set[int]:
    """Return the selected blocks of one token, in float64; q (n, D), keys (S, D) of a document."""
    own = position // BLOCK
    if own < n_selected:
        return set(range(own + 1))
    others = range(1, own - 1)
    bounds = softmaxes_of_bounds(q, keys, own)
    candidates = sorted(others, key=lambda block: -bounds[block])[: 4 * (n_selected - 3)]
    shares = np.zeros(own + 1)
    for query in q:
        at = [p for p in range(position + 1) if p // BLOCK in {0, own - 1, own, *candidates}]
        scores = keys[at] @ query / len(query) ** 0.5
        weights = np.exp(scores - scores.max())
        np.add.at(shares, [p // BLOCK for p in at], weights / weights.sum())
    best = sorted(candidates, key=lambda block: -shares[block])[: n_selected - 3]
    return {0, own - 1, own, *best}


def softmaxes_of_bounds(q, keys, own: int) -> np.ndarray:
    shares = np.zeros(own)
    for query in q:
        bounds = []
        for block in range(own):
            rows = keys[block * BLOCK : (block + 1) * BLOCK]
            highest, lowest = (
                x.astype(np.float16).astype(float) for x in (rows.max(0), rows.min(0))
            )
            bounds.append(
                sum(max(a * b, a * c) for a, b, c in zip(query, highest, lowest, strict=True))
            )
        weights = np.exp((np.array(bounds) - max(bounds)) / len(query) ** 0.5)
        shares += weights / weights.sum()
    return shares


def seen_by_blocks(seen: torch.Tensor, position: int) -> set[int]:
    """Return the blocks that a token attends to; seen (S,) starts at the document's first token."""
    found = set((seen.nonzero()[:, 0] // BLOCK).tolist())
    for block in found:  # up to the token itself
        assert seen[block * BLOCK : min((block + 1) * BLOCK, position + 1)].all()
    return found


@pytest.mark.parametrize("lengths", [[T], [1, 133, 40, 126], [31, 33, 236]])
def test_selected_blocks_equal_an_independent_implementation(lengths):
    rng = np.random.default_rng(0)
    q, k = rng.standard_normal((1, 4, T, 16)), rng.standard_normal((1, 2, T, 16))
    config = preset("nano").replace(cross_attention="index", **FOUR_BLOCKS)
    positions = torch.cat([torch.arange(length) for length in lengths])[None]

    seen = visible_positions(
        torch.from_numpy(q), torch.from_numpy(k), config, Blocks.of_positions(positions)
    )

    begin = 0
    for length in lengths:
        for position in range(length):
            at = begin + position
            for head in range(2):
                assert not seen[0, head, at, :begin].any()
                assert not seen[0, head, at, at + 1 :].any()
                found = seen_by_blocks(seen[0, head, at, begin:], position)
                queries = q[0, 2 * head : 2 * head + 2, at]
                keys = k[0, head, begin : begin + length]
                assert found == expected_blocks(queries, keys, 4, position)
        begin += length


def test_the_block_of_the_matching_key_is_selected_despite_larger_bounds_of_others():
    rng = np.random.default_rng(1)
    n = 7 * BLOCK
    k = torch.from_numpy(2 * rng.standard_normal((1, 1, n, 16)))
    q = torch.from_numpy(rng.standard_normal((1, 1, n, 16)))
    k[0, 0, 3 * BLOCK : 4 * BLOCK] *= 0.1
    k[0, 0, 107] = 3 * q[0, 0, -1]
    config = preset("nano").replace(cross_attention="index", **FOUR_BLOCKS)

    seen = visible_positions(q, k, config, Blocks.of_positions(torch.arange(n)[None]))
    bounds = softmaxes_of_bounds(q[0, 0, -1:].numpy(), k[0, 0].numpy(), 6)

    assert seen[0, 0, -1, 107]
    assert bounds[1:5].argmax() != 107 // BLOCK - 1


def test_padding_changes_nothing():
    torch.manual_seed(0)
    model = Decoder(preset("nano").replace(cross_attention="index", weights="dense", **FOUR_BLOCKS))
    tokens = torch.randint(512, (1, T))
    real = torch.ones(1, T + 70, dtype=torch.bool)
    real[0, :20] = real[0, 150:200] = False
    padded = torch.zeros(1, T + 70, dtype=torch.long)
    padded[real] = tokens[0]

    with torch.no_grad():
        expected = model.hidden(tokens)
        found = model.extend(padded, Cache(), real)[real]

    torch.testing.assert_close(found, expected[0], rtol=0, atol=1e-5)


def test_gradients_reach_attended_positions_only():
    torch.manual_seed(0)
    config = preset("nano").replace(
        layers=("window", "cross"),
        window=1,
        cross_attention="index",
        weights="dense",
        **FOUR_BLOCKS,
    )
    model = Decoder(config)
    embedded = []

    def keep(module, inputs, output):
        embedded.append(output.detach().requires_grad_())
        return embedded[-1]

    model.embedding.register_forward_hook(keep)
    model.hidden(torch.randint(512, (1, T)))[0, -1].sum().backward()

    has_gradient = embedded[0].grad[0].abs().sum(dim=-1) > 0
    assert has_gradient.view(-1).sum() <= config.n_kv_heads * 4 * BLOCK
    assert has_gradient[:BLOCK].all() and has_gradient[-(T % BLOCK) - BLOCK :].all()


# ---- the engine ----


@pytest.mark.parametrize("dtype", CACHES)
def test_attention_to_tiles_equals_attention_to_a_cache_of_these_tiles(dtype):
    rng = np.random.default_rng(0)
    q, keys, values = (rng.standard_normal((n, 24), dtype=np.float32) for n in (5, 320, 320))
    tiles = np.array([0, 3, 4, 9], dtype=np.int32)
    rows = (tiles[:, None] * BLOCK + np.arange(BLOCK)).ravel()

    for kernels in KERNELS:
        for begin, end, split in ((0, 128, 128), (0, 101, 64), (40, 97, 32)):
            found = _native.attend(kernels, q, keys, values, dtype, begin, end, split, tiles)
            expected = _native.attend(
                "scalar", q, keys[rows], values[rows], dtype, begin, end, split
            )
            assert (bits(found) == bits(expected)).all()


@pytest.mark.parametrize("rope", ["interleaved", "none"])
@pytest.mark.parametrize("weights", ["ternary", "dense"])
def test_logits_equal_pytorch(model_of, weights, rope, tokens):
    twin, path = model_of(weights, cross_attention="index", cross_rope=rope)

    with torch.no_grad():
        expected = twin(torch.from_numpy(tokens)[None])[0].numpy()
    error = np.abs(Engine.load(path).logits(tokens, "f32") - expected).max(axis=1)

    # Quantised values and selections near a tie occasionally differ.
    assert np.median(error / np.abs(expected).max()) < (1e-5 if weights == "dense" else 1e-2)
    assert (error < 0.1 * np.abs(expected).max()).mean() > 0.95


def test_attention_is_full_up_to_the_number_of_selected_positions(model_of, tokens):
    _, path = model_of("ternary", cross_attention="index")
    full = Engine.load(path, attention="full").logits(tokens, "f32")
    n = 4 * BLOCK

    some = Engine.load(path).logits(tokens, "f32")

    assert (bits(some[:n]) == bits(full[:n])).all()
    assert (bits(some[n:]) != bits(full[n:])).any(axis=1).all()


@pytest.mark.parametrize("cache", CACHES)
def test_same_bits_for_any_threads_kernels_chunks_and_batch(model_of, cache, tokens):
    _, path = model_of("ternary", cross_attention="index")
    expected = Engine.load(path, threads=1, kernels="scalar").session(T, cache).feed_all(tokens)

    for kernels in KERNELS:
        for threads in (1, 2, 3):
            engine = Engine.load(path, threads=threads, kernels=kernels)
            assert (bits(engine.session(T, cache).feed_all(tokens)) == bits(expected)).all()
    for chunk in (1, 31, 32, 33, 130):
        session = engine.session(T, cache)
        for begin in range(0, T, chunk):
            logits = session.feed(tokens[begin : begin + chunk])
            end = min(begin + chunk, T)
            assert (bits(logits) == bits(expected[end - 1])).all()
    lengths = [1, 100, 129, 250]
    sessions = [engine.session(T, cache) for _ in lengths]
    for session, n in zip(sessions, lengths, strict=True):
        session.feed(tokens[:n])
    for step in range(40):
        logits = engine.step(sessions, [tokens[n + step] for n in lengths])
        assert (bits(logits) == bits(expected[[n + step for n in lengths]])).all()


@pytest.mark.parametrize("cache", ["f32", "int4"])
def test_same_bits_after_fork_restore_and_truncate(model_of, cache, tokens):
    _, path = model_of("ternary", cross_attention="index")
    engine = Engine.load(path)
    expected = engine.session(T, cache).feed_all(tokens)[-1]
    session = engine.session(T, cache)
    session.feed(tokens[:170])
    snapshot, fork = session.snapshot(), session.fork(T + 50)
    session.feed(tokens[::-1][:100])

    session.truncate(snapshot)
    restored = engine.session(T, cache)
    restored.restore(
        snapshot.tokens, snapshot.state, [fork.copy_positions(0, 40), fork.copy_positions(40, 170)]
    )

    for each in (session, fork, restored):
        assert (bits(each.feed(tokens[170:])) == bits(expected)).all()


def test_nan_and_overflow_in_keys_still_select_blocks(tmp_path):
    config = nano("yoco-gret", "dense", cross_attention="index", **FOUR_BLOCKS)
    model = Decoder(config)
    with torch.no_grad():
        model.shared_kv.k_proj.weight[:3] = torch.tensor([1e30, 3e38, -3e38])[:, None]
    engine = Engine.load(packed(model.eval(), tmp_path).path)

    logits = engine.session(T, "f32").feed(np.arange(T) % 500)

    assert logits.shape == (512,)


def test_memory_includes_the_index(model_of):
    _, path = model_of("ternary", cross_attention="index")
    memory = Engine.load(path).session(1 << 20, "int8").memory()
    n_blocks = (1 << 20) // BLOCK

    # Bounds of each block in float16, scores of four heads and block order of two.
    assert memory.index >= n_blocks * 2 * (2 * 2 * 16)
    assert memory.index <= n_blocks * (2 * (2 * 2 * 16) + 4 * 4 + 2 * 4) + 4096
    assert Engine.load(path, attention="full").session(64, "f32").memory().index == 0


# ---- settings ----


@pytest.mark.parametrize("positions", [0, 96, 100, 129, (1 << 20) + 32])
def test_positions_must_be_a_multiple_of_a_block(positions):
    with pytest.raises(ConfigError, match="cross_positions must be a multiple of 32, from 128"):
        preset("nano").replace(cross_positions=positions)


@pytest.mark.parametrize(
    "text",
    ["", "all", "index", "index:", "index:-1", "full:2048", "index:²", "index:100", "index:96",
     "window:128", "index:" + 5000 * "9"],
)  # fmt: skip
def test_attention_is_full_or_an_index(text):
    rule = r"index:POSITIONS, where POSITIONS is a multiple of 32, from 128"
    with pytest.raises(ConfigError, match=f"^attention must be full or {rule}.* but is '{text}'$"):
        preset("nano").attending(text)


@pytest.mark.parametrize("text", ["full", "index:2048"])
def test_attention_of_a_config_is_the_requested_one(text):
    config = preset("nano").attending(text)

    assert config.attention == text
    assert config.replace(layers=("full",)).attention is None


@pytest.mark.parametrize("text", ["full", "index:2048"])
def test_attention_is_rejected_without_cross_layers(tmp_path, text):
    path = write_random_model(nano("transformer", "ternary"), tmp_path / "model").path

    with pytest.raises(ConfigError, match=f"a model without cross layers but is '{text}'; leave"):
        Engine.load(path, attention=text)


def test_a_model_is_packed_with_its_attention(model_of):
    _, path = model_of("ternary", cross_attention="index")

    assert read_model(path).config.cross_attention == "index"
    assert read_model(path).attending("index:256").config.cross_positions == 256


def test_generate_accepts_attention(model_of):
    _, path = model_of("ternary", cross_attention="index")
    run = functools.partial(CliRunner().invoke, app)
    command = ["generate", "Licensed under", "--model", str(path), "-n", "8", "--attention"]

    assert run([*command, "index:128"]).exit_code == 0
    assert str(run([*command, "index:100"]).exception).startswith(
        "--attention must be full or index"
    )
