"""Speed of the kernels and the engine, compared with PyTorch in the same run.

    python benchmarks/pytorch.py [--rounds 5] [--threads 2]

Every round measures every row once, so that noise of a shared machine affects all of them. A row
shows minimum, median and maximum over the rounds, and the median of the ratios to the first row.

Letters: M output features   K input features   N tokens   T positions
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from yocobit import Engine, _native
from yocobit.config import PRESETS, ModelConfig
from yocobit.data.tokenizer import train_tokenizer
from yocobit.hardware.host import default_threads, describe_host
from yocobit.model import Cache, Decoder
from yocobit.packing import pack, pack_sign, pack_ternary
from yocobit.training import checkpoint

Rate = Callable[[], float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=default_threads())
    parser.add_argument("--preset", choices=PRESETS, default="tiny")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)

    print(f"{describe_host().cpu}, {arguments.threads} threads, torch {torch.__version__}")
    compare("matmul, one thread, G multiply-adds/s", matmul_rates(), arguments.rounds)
    with tempfile.TemporaryDirectory() as directory:
        config = PRESETS[arguments.preset].replace(weights="ternary", sub_norm=True)
        for name, rates in model_rates(config, arguments.threads, Path(directory)).items():
            compare(f"{arguments.preset}, ternary, {name}, tokens/s", rates, arguments.rounds)


def compare(title: str, rows: dict[str, Rate], rounds: int) -> None:
    """Measure the rows in turn and print them."""
    measured: dict[str, list[float]] = {name: [] for name in rows}
    for _ in range(rounds):
        for name, rate in rows.items():
            measured[name].append(rate())
    first = next(iter(measured.values()))
    print(f"\n{title:46} {'min':>9} {'median':>9} {'max':>9} {'ratio':>7}")
    for name, values in measured.items():
        ratio = statistics.median(v / f for v, f in zip(values, first, strict=True))
        low, middle, high = min(values), statistics.median(values), max(values)
        print(f"{name:46} {low:9,.1f} {middle:9,.1f} {high:9,.1f} {ratio:7.2f}")


def matmul_rates(M: int = 2560, K: int = 2560, N: int = 64) -> dict[str, Rate]:
    """Return rates of matmuls of (N, K) activations with (M, K) weights, for N tokens and one."""
    rng = np.random.default_rng(0)
    ternary = pack_ternary(rng.integers(-1, 2, (M, K), dtype=np.int8))
    sign = pack_sign(rng.integers(0, 2, (M, K), dtype=np.int8) * np.int8(2) - np.int8(1))
    dense, x = torch.randn(M, K), torch.randn(N, K)
    codes = rng.integers(-127, 128, (N, K), dtype=np.int8)

    def torch_matmul(n: int) -> None:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        torch.nn.functional.linear(x[:n], dense)
        torch.set_num_threads(threads)

    kernels = _native.supported_kernels()[-1]
    calls: dict[str, tuple[int, Callable[[], object]]] = {}
    for n in (N, 1):
        calls[f"torch float32, {n} tokens"] = (n, lambda n=n: torch_matmul(n))
        for name, w in (("ternary", ternary), ("sign", sign)):
            calls[f"{kernels} {name}, {n} tokens"] = (
                n,
                lambda n=n, w=w, name=name: _native.low_bit_gemm(
                    kernels, w, M, codes[:n], name == "ternary"
                ),
            )
    return {
        name: lambda n=n, call=call: n * M * K / 1e9 / _seconds(call)
        for name, (n, call) in calls.items()
    }


def model_rates(config: ModelConfig, threads: int, directory: Path) -> dict[str, dict[str, Rate]]:
    """Return rates of prefill and decode, of PyTorch (dense arithmetic) and of the engine."""
    torch.manual_seed(0)
    model = Decoder(config).eval()
    tokenizer = train_tokenizer(["a"], 257)
    state = checkpoint.RunState(corpus_sha256="", step=1)
    saved = checkpoint.save(directory / "run", state, model, {}, {}, tokenizer, keep=1)
    engine = Engine(pack(saved, directory / "model"), threads, None)
    tokens = np.random.default_rng(0).integers(0, config.vocab_size, 544)

    def torch_prefill() -> float:
        with torch.no_grad():
            return 512 / _seconds(lambda: model.prefill(torch.tensor(tokens[None, :512]), Cache()))

    def torch_decode() -> float:
        cache = Cache()
        with torch.no_grad():
            model.prefill(torch.tensor(tokens[None, :512]), cache)
            started = time.perf_counter()
            for token in tokens[512:]:
                model.step(torch.tensor([[token]]), cache)
            return 32 / (time.perf_counter() - started)

    def engine_prefill() -> float:
        return 512 / _seconds(lambda: engine.session(544, "f32").feed(tokens[:512]))

    def engine_decode() -> float:
        session = engine.session(544, "f32")
        session.feed(tokens[:512])
        started = time.perf_counter()
        for token in tokens[512:]:
            session.step(token)
        return 32 / (time.perf_counter() - started)

    return {
        "decode at depth 512": {"torch": torch_decode, "engine": engine_decode},
        "prefill of 512": {"torch": torch_prefill, "engine": engine_prefill},
    }


def _seconds(call: Callable[[], object]) -> float:
    """Return the time per call, over at least 0.1 s, after one call to warm up."""
    call()
    n, started = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - started) < 0.1:
        call()
        n += 1
    return elapsed / n


if __name__ == "__main__":
    main()
