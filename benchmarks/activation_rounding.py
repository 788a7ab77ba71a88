"""Error of rounded activations: KL divergence of yocobit and llama.cpp from float32, same weights.

    python benchmarks/activation_rounding.py TEXT [--planes FILE] [--gguf FILE ...]
        [--tokens 1024] [--threads 2] [--out benchmarks/results/activation_rounding.json]

`--planes`: a dense llama-shaped GGUF file, rewritten in ternary weights (ternary_planes.py).
`--gguf`: files in low bits, with a tokenizer; yocobit writes the same weights in F32. Weights-only
models were trained with float activations, so the reference is llama.cpp on F32. The engines differ
from it in the rounding of activations only: KV caches are F32. Every window of 64 tokens starts a
new sequence. Standard errors are over windows, as an error in the first keys affects all tokens.

Needs the extra `peers` (llama-cpp-python, gguf).

Letters: T positions   V vocabulary
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from llama_cpp_logits import LlamaCpp
from measures import YOCOBIT, YOCOBIT_EXACT
from numpy.typing import NDArray
from peers import versions

from yocobit import Engine
from yocobit.exporters import export_gguf
from yocobit.hardware.host import provenance
from yocobit.importers import import_model

Floats = NDArray[np.float64]
Logits = Callable[[list[int]], NDArray[np.float32]]

RESULTS = Path(__file__).parent / "results" / "activation_rounding.json"
WINDOW = 64
N_PLANES = (3, 1)
PLANES_KINDS = ("Q2_0", "TQ2_0")
OWN_FLOAT = "yocobit float32"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("text", type=Path)
    parser.add_argument("--planes", type=Path)
    parser.add_argument("--gguf", nargs="+", type=Path, default=[])
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--work", type=Path, help="keep models here between runs")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    text = arguments.text.read_text(encoding="utf-8")[: 16 * arguments.tokens]
    report: dict[str, Any] = {**provenance(), "versions": versions(), "text": arguments.text.name}
    with tempfile.TemporaryDirectory() as name:
        work = arguments.work or Path(name)
        for model, files in models(arguments, work):
            print(model)
            found = errors(files, work, text, arguments.tokens, arguments.threads)
            report[model] = found
    arguments.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(f"wrote {arguments.out}")


def models(arguments: argparse.Namespace, work: Path) -> Iterator[tuple[str, dict[str, Path]]]:
    """Yield names of models, and their files by type: one or more in low bits, and "F32"."""
    if arguments.planes:
        import ternary_planes

        for n_planes in N_PLANES:
            files = ternary_planes.write_models(arguments.planes, n_planes, PLANES_KINDS, work)
            yield f"{arguments.planes.stem}, ternary planes: {n_planes}", files
    for low_bit in arguments.gguf:
        yield low_bit.stem, {"low bit": low_bit, "F32": in_f32(low_bit, work)}


def in_f32(low_bit: Path, work: Path) -> Path:
    """Write the weights of a file in F32 unless the result exists; return its path."""
    path = work / f"{low_bit.stem}-F32.gguf"
    if not path.exists():
        floats = import_model(low_bit, work / f"{low_bit.stem}-floats", "f32", weights="f32")
        export_gguf(floats, path)
    return path


def errors(
    files: dict[str, Path], work: Path, text: str, n_tokens: int, threads: int
) -> dict[str, Any]:
    """Return the errors of each engine, and their differences to llama.cpp's first type."""
    reference = LlamaCpp(files["F32"], threads)
    tokens = reference.encode(text)[: n_tokens // WINDOW * WINDOW]
    windows = [tokens[i : i + WINDOW] for i in range(0, len(tokens), WINDOW)]
    exact = [reference.logits(window) for window in windows]
    del reference
    found: dict[str, Any] = {"tokens": len(tokens), "nats_per_token": surprisal(exact, windows)}
    divergences: dict[str, Floats] = {}
    for engine, logits in engines(files, work, threads):
        rounded = [logits(window) for window in windows]
        pairs = list(zip(exact, rounded, strict=True))
        divergences[engine] = each = np.array([kl_divergence(*pair) for pair in pairs])
        same = [p.argmax(axis=1) == q.argmax(axis=1) for p, q in pairs]
        found[engine] = {
            "kl_nats": float(each.mean()),
            "kl_standard_error": standard_error(each),
            "same_most_likely_token": float(np.mean(same)),
            "nats_per_token": surprisal(rounded, windows),
        }
        print(f"  {engine:20} " + "  ".join(f"{k} {v:.4g}" for k, v in found[engine].items()))
    first = next(engine for engine in divergences if engine.startswith("llama.cpp"))
    for engine in (YOCOBIT, YOCOBIT_EXACT):
        difference = divergences[engine] - divergences[first]
        found[f"kl_nats of {engine} - {first}"] = {
            "mean": float(difference.mean()),
            "standard_error": standard_error(difference),
        }
    return found


def engines(files: dict[str, Path], work: Path, threads: int) -> Iterator[tuple[str, Logits]]:
    """Yield each engine as a function from tokens to logits (T, V); only one is open at a time."""
    kinds = [kind for kind in files if kind != "F32"]
    for kind in kinds:
        yield f"llama.cpp {kind}", LlamaCpp(files[kind], threads).logits
    # Not int8 for an embedding or a head that is not in low bits.
    low_bit = imported(files[kinds[0]], work, "f16")
    yield YOCOBIT, own(Engine.load(low_bit, threads=threads))
    yield YOCOBIT_EXACT, own(Engine.load(low_bit, threads=threads, exact=True))
    floats = imported(files["F32"], work, None)
    yield OWN_FLOAT, own(Engine.load(floats, threads=threads))


def own(engine: Engine) -> Logits:
    return lambda tokens: engine.session(len(tokens), "f32").feed_all(tokens)


def imported(source: Path, work: Path, head: str | None) -> Path:
    """Return a packed model of a GGUF file; import it unless it exists."""
    path = work / f"{source.stem}-imported"
    if not path.exists():
        import_model(source, path, head)
    return path


def kl_divergence(exact: NDArray[np.float32], rounded: NDArray[np.float32]) -> float:
    """Return the mean KL divergence of the positions of logits (T, V), in nats."""
    p, q = log_softmax(exact), log_softmax(rounded)
    return float((np.exp(p) * (p - q)).sum(axis=1).mean())


def surprisal(logits: list[NDArray[np.float32]], windows: list[list[int]]) -> float:
    """Return the mean negative log-likelihood of the tokens after the first of each window."""
    each = [
        -log_softmax(rows[:-1])[np.arange(len(window) - 1), window[1:]]
        for rows, window in zip(logits, windows, strict=True)
    ]
    return float(np.concatenate(each).mean())


def log_softmax(logits: NDArray[np.float32]) -> Floats:
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    normed: Floats = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return normed


def standard_error(each: Floats) -> float:
    return float(each.std(ddof=1) / len(each) ** 0.5)


if __name__ == "__main__":
    main()
