"""Measurements of peers.py and on_chip.py, one function per kind of run.

yocobit, llama.cpp and PyTorch are opened by one interface and timed alike: a function that starts a
new sequence and returns a function that consumes tokens.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from yocobit import Engine, _native
from yocobit.benchmark.random_model import write_random_model
from yocobit.benchmark.shapes import named_shape
from yocobit.config import ModelConfig
from yocobit.costs import decode_bytes
from yocobit.engine.session import CacheType
from yocobit.hardware.host import read_caches, usable_cpus
from yocobit.hardware.limits import measure_limits
from yocobit.packing import read_model

Feed = Callable[[list[int]], object]
NewSequence = Callable[[], Feed]

# Any other engine is llama.cpp.
YOCOBIT, YOCOBIT_EXACT, PYTORCH = "yocobit", "yocobit --exact", "PyTorch float32"
WITHOUT_FLASH = " without flash attention"  # flash attention is slower on some CPUs
PREFILL, DECODE = 512, 64
DEPTH = 16384
SESSIONS = 16
ON_CHIP_DEPTH, ON_CHIP_STEPS, EVICTED_EVERY = 512, 1200, 20
MOST_SESSIONS = 128
LONG_PREFILL = 2048


def speed(run: dict[str, Any]) -> dict[str, float]:
    """Return tokens/s of a prefill of PREFILL tokens and of DECODE decode steps after it."""
    tokens = np.random.default_rng(0).integers(1, run["vocab_size"], PREFILL + DECODE).tolist()
    new_sequence = _open(run, PREFILL + DECODE)
    new_sequence()(tokens[:64])
    feed = new_sequence()
    prefill = PREFILL / seconds(lambda: feed(tokens[:PREFILL]))
    times = _decode(feed, tokens[PREFILL:])
    return {"prefill": prefill, "decode": 1 / statistics.median(times)}


def attention(run: dict[str, Any]) -> dict[str, float]:
    """Return the milliseconds that DEPTH positions add to a decode step of the single layer."""
    tokens = np.random.default_rng(0).integers(1, 1000, DEPTH + 64).tolist()
    new_sequence = _open(run, DEPTH + 128)
    feed = new_sequence()
    feed(tokens[:64])
    shallow = statistics.median(_decode(feed, tokens[:32]))
    feed = new_sequence()
    feed(tokens[:DEPTH])
    deep = statistics.median(_decode(feed, tokens[DEPTH:]))
    return {"ms": 1000 * (deep - shallow)}


def share(run: dict[str, Any]) -> dict[str, float]:
    """Return the memory traffic of decode per second, as a share of the read bandwidth."""
    engine = Engine.load(run["path"], threads=run["threads"])
    session = engine.session(512, "f16")
    tokens = np.random.default_rng(0).integers(1, engine.config.vocab_size, 256).tolist()
    session.feed(tokens[:16])
    n_bytes = decode_bytes(engine.model, "f16", 16, len(tokens), 1) / len(tokens)
    caches = read_caches()
    is_resident = n_bytes < caches.last_bytes
    rates, roofs = [], []
    for part in range(4):  # interleaved, so that noise affects both
        limits = measure_limits(run["threads"], usable_cpus(), caches)
        roofs.append(limits.last_level_bytes_per_s if is_resident else limits.dram_bytes_per_s)
        times = _decode(session.feed, tokens[part * 64 : part * 64 + 64])
        rates.append(n_bytes / statistics.median(times))
    return {
        "gigabytes_per_s": statistics.median(rates) / 1e9,
        "limit_gigabytes_per_s": max(roofs) / 1e9,
        "limit_gigamultiply_adds_per_s": limits.int8_per_s / 1e9,
        "share": statistics.median(rates) / max(roofs),
        "p99_over_median": _p99_over_median(session.feed, tokens),
    }


def sessions(run: dict[str, Any]) -> dict[str, float]:
    """Return tokens/s of SESSIONS sessions in one batch, and of one session."""
    engine = Engine.load(run["path"], threads=run["threads"])
    rng = np.random.default_rng(0)
    prompts = rng.integers(1, engine.config.vocab_size, (SESSIONS, 32)).tolist()
    batch = [engine.session(128, "f16") for _ in prompts]
    for session, prompt in zip(batch, prompts, strict=True):
        session.feed(prompt)
    alone = statistics.median(_decode(batch[0].feed, prompts[0][:24]))
    steps = [[prompt[i] for prompt in prompts] for i in range(12)]
    together = statistics.median(seconds(lambda s=s: engine.step(batch, s)) for s in steps)
    return {"alone": 1 / alone, "together": SESSIONS / together}


def early_exit(run: dict[str, Any]) -> dict[str, float]:
    """Return prefill tokens/s of LONG_PREFILL tokens in a YOCO stack and in a Transformer."""
    found = {}
    for name, path in (("transformer", run["path"]), ("yoco", run["yoco_path"])):
        engine = Engine.load(path, threads=run["threads"])
        tokens = np.random.default_rng(0).integers(1, engine.config.vocab_size, LONG_PREFILL)
        engine.session(64, "f16").feed(tokens[:64])
        session = engine.session(LONG_PREFILL, "f16")
        found[name] = LONG_PREFILL / seconds(lambda s=session, t=tokens: s.feed(t))
    return found


def opening(run: dict[str, Any]) -> dict[str, float]:
    """Return the milliseconds from a path to an open session, with the files in the page cache."""
    Engine.load(run["path"], threads=run["threads"]).session(64, "f16").feed([1])

    started = time.perf_counter()
    session = Engine.load(run["path"], threads=run["threads"]).session(64, "f16")
    opened = time.perf_counter()
    session.feed([1])
    return {
        "ms": 1000 * (opened - started),
        "first_token_ms": 1000 * (time.perf_counter() - opened),
    }


def on_chip(run: dict[str, Any]) -> dict[str, float]:
    """Measure decode steps back to back, and steps after other data evicted every cache.

    `dram_megabytes` estimates the DRAM traffic of a median step: it assumes that the fastest step
    reads nothing from DRAM and a step with evicted caches everything.
    """
    rng = np.random.default_rng(0)
    tokens = rng.integers(1, run["vocab_size"], ON_CHIP_DEPTH + ON_CHIP_STEPS).tolist()
    feed = _open(run, len(tokens), "int8")()
    feed(tokens[:ON_CHIP_DEPTH])
    caches = read_caches()
    times: list[float] = []
    evicted: list[float] = []
    for i, token in enumerate(tokens[ON_CHIP_DEPTH:]):
        since_evicted = i % EVICTED_EVERY
        if since_evicted == 0:  # every thread fills a buffer of the last-level cache's size
            _native.read_bytes_per_s(usable_cpus()[: run["threads"]], caches.last_bytes, 1)
        elapsed = _decode(feed, [token])
        if since_evicted == 0:
            evicted += elapsed
        elif since_evicted > 2:  # back on chip
            times += elapsed
    median, cold = statistics.median(times), statistics.median(evicted)
    del feed
    found = {
        "tokens_per_s": 1 / median,
        "median_ms": 1000 * median,
        "p99_over_median": float(np.quantile(times, 0.99)) / median,
        "evicted_over_median": cold / median,
    }
    if run["engine"] == YOCOBIT:
        model = read_model(Path(run["path"]))
        n_bytes = decode_bytes(model, "int8", ON_CHIP_DEPTH, ON_CHIP_STEPS, 1) / ON_CHIP_STEPS
        limits = measure_limits(run["threads"], usable_cpus(), caches)
        found |= {
            "step_megabytes": n_bytes / 1e6,
            "dram_megabytes": n_bytes / 1e6 * (median - min(times)) / (cold - min(times)),
            "gigabytes_per_s": n_bytes / median / 1e9,
            "dram_gigabytes_per_s": limits.dram_bytes_per_s / 1e9,
            "last_level_gigabytes_per_s": limits.last_level_bytes_per_s / 1e9,
            "machine_p99_over_median": _machine_p99_over_median(run["threads"], median, len(times)),
        }
    return found


def _machine_p99_over_median(threads: int, at_least: float, n_steps: int) -> float:
    """Return p99 / median of the step times of a model that fits in the L2 caches.

    The batch is large enough for a step of `at_least` seconds.
    """
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "model"
        write_random_model(named_shape("nano"), path)
        engine = Engine.load(path, threads=threads)

        def steps(n: int, n_sessions: int) -> list[float]:
            batch = [engine.session(n, "f32") for _ in range(n_sessions)]
            starts = [session.snapshot() for session in batch]
            for _ in range(2):  # page faults occur in the first pass
                times = [seconds(lambda: engine.step(batch, [1] * n_sessions)) for _ in range(n)]
                for session, start in zip(batch, starts, strict=True):
                    session.truncate(start)
            return times

        n_sessions = 1
        while n_sessions < MOST_SESSIONS and statistics.median(steps(20, n_sessions)) < at_least:
            n_sessions *= 2
        times = steps(n_steps, n_sessions)
    return float(np.quantile(times, 0.99)) / statistics.median(times)


def seconds(call: Callable[[], object]) -> float:
    """Time a call."""
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def _open(run: dict[str, Any], room: int, cache: CacheType = "f16") -> NewSequence:
    """Open the model of a run; `cache` is the KV cache type of yocobit, the others use f16."""
    if run["engine"] == PYTORCH:
        return open_pytorch(ModelConfig.from_dict(run["config"]), run["threads"])
    if run["engine"] in (YOCOBIT, YOCOBIT_EXACT):
        is_exact = run["engine"] == YOCOBIT_EXACT
        return open_yocobit(run["path"], run["threads"], room, cache, is_exact)
    has_flash_attention = not run["engine"].endswith(WITHOUT_FLASH)
    return open_llama_cpp(run["path"], run["threads"], room, has_flash_attention)


def _decode(feed: Feed, tokens: list[int]) -> list[float]:
    return [seconds(lambda token=token: feed([token])) for token in tokens]


def _p99_over_median(feed: Feed, tokens: list[int]) -> float:
    times = _decode(feed, tokens[:200])
    return float(np.quantile(times, 0.99)) / statistics.median(times)


def open_yocobit(
    path: str, threads: int, room: int, cache: CacheType, is_exact: bool = False
) -> NewSequence:
    """Open a packed model; sequences have a capacity of `room` tokens."""
    engine = Engine.load(path, threads=threads, exact=is_exact)
    logits = np.empty(engine.config.vocab_size, dtype=np.float32)

    def new_sequence() -> Feed:
        session = engine.session(room, cache)
        return lambda tokens: session.feed(tokens, logits)

    return new_sequence


def open_llama_cpp(path: str, threads: int, room: int, has_flash_attention: bool) -> NewSequence:
    """Open a GGUF file in llama.cpp; sequences have a capacity of `room` tokens."""
    from llama_cpp import Llama

    model = Llama(path, n_ctx=room, n_batch=512, n_ubatch=512, n_threads=threads,
                  n_threads_batch=threads, flash_attn=has_flash_attention,
                  verbose=False)  # fmt: skip

    def new_sequence() -> Feed:
        model.reset()
        return model.eval

    return new_sequence


def open_pytorch(config: ModelConfig, threads: int) -> NewSequence:
    """Return the same shape in PyTorch with dense float32 weights, the unquantised baseline."""
    import torch

    from yocobit.model import Cache, Decoder

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    model = Decoder(config.replace(weights="dense")).eval()

    def new_sequence() -> Feed:
        cache = Cache()

        @torch.inference_mode()
        def feed(tokens: list[int]) -> object:
            consume = model.step if len(tokens) == 1 else model.prefill
            return consume(torch.tensor([tokens]), cache)

        return feed

    return new_sequence
