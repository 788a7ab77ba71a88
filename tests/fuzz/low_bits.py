"""Fuzzing of GGUF files with low-bit types: one line, or the weights that the file has.

The packed integers and scales of a mutated file, dequantised, must equal what the decoder of its
tensor type computes. All cases run in one process, so there are many of them.

    python tests/fuzz/low_bits.py 10000        # cases of each type
    python tests/fuzz/low_bits.py Q1_0 17      # case 17 of a type again
"""

from __future__ import annotations

import contextlib
import random
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from pathlib import Path

if __name__ == "__main__":
    import native_build  # noqa: F401

    sys.path.append(str(Path(__file__).resolve().parents[1] / "importers"))

import gguf_files
import gguf_models
import mutation
import numpy as np
from samples import LOW_BIT

from yocobit.errors import UserError
from yocobit.importers.convert import stored_tensors
from yocobit.importers.gguf.architectures import tensor_name
from yocobit.importers.gguf.container import GGUFFile
from yocobit.importers.gguf.reader import GGUFCheckpoint
from yocobit.importers.gguf.tensor_types import identify, read_floats
from yocobit.packing.file_format import scale_name
from yocobit.packing.stored_parameters import StoredParameter, stored_parameters

_CASE_SECONDS = 30
_N_EXPERTS = 2


def run(seconds: float, seed: int) -> int:
    """Run cases from number `seed` on for some time; return the number of failures."""
    end, number, n_failures = time.monotonic() + seconds, seed, 0
    with _samples() as samples:
        while time.monotonic() < end:
            n_failures += sum(not run_case(sample, number) for sample in samples)
            number += 1
    n_cases = (number - seed) * len(samples)
    print(f"low_bits: {n_cases} cases, {n_failures} failures", flush=True)
    return n_failures


class Sample:
    """A GGUF model whose matrices are of a low-bit type."""

    def __init__(self, path: Path, architecture: str, kind: str, tables: tuple[str, ...]) -> None:
        self.label = kind if architecture != "maple" else f"{kind} of experts"
        replaced = gguf_models.low_bit(architecture, kind, tables)[2]
        self.path = gguf_models.write_model(path, architecture, None, replaced)
        self.data = path.read_bytes()
        self.start = min(tensor.offset for tensor in GGUFFile(path).tensors.values())
        self.outcomes: Counter[str] = Counter()


@contextlib.contextmanager
def _samples():
    """Write a small model of each type into a directory that the cases use too."""
    gguf_models.LAYERS, gguf_models.E = 1, _N_EXPERTS
    gguf_models.KEYS["maple"] |= {
        "attention.sliding_window_pattern": [True],
        "swiglu_clamp_exp": [0.25],
        "expert_count": _N_EXPERTS,
        "expert_feed_forward_length": 512,
    }
    samples = []
    with tempfile.TemporaryDirectory(prefix="yocobit-fuzz-gguf-") as directory:
        for i, (architecture, kind, tables) in enumerate(LOW_BIT):
            gguf_models.F = 512 if gguf_files.BLOCKS[kind] > 128 else 256
            path = Path(directory) / f"{i}.gguf"
            samples.append(Sample(path, architecture, kind, tables))
        yield samples


def run_case(sample: Sample, number: int) -> bool:
    """Mutate a sample and import it; return whether that ended well."""
    rng = random.Random(f"{sample.label} {number}")
    if rng.random() < 0.6:
        data = mutation.mutate_gguf(sample.data, sample.start, rng)
    else:  # codes and scales
        data = bytearray(sample.data)
        for _ in range(rng.choice((1, 10, 1000))):
            at = rng.randrange(sample.start, len(data))
            data[at] = rng.choice((0, 0xFF, 0x80, data[at] ^ 1, rng.randrange(256)))
    sample.path.write_bytes(data)
    signal.alarm(_CASE_SECONDS)  # ends the process
    try:
        check_import(sample.path)
        sample.outcomes["imported"] += 1
    except UserError as error:
        sample.outcomes["one line"] += 1
        is_line = str(error).isprintable() and len(str(error)) < 2000
        if not is_line:
            print(f"FAILED: {str(error)[:500]!r}: {sample.label} {number}")
        return is_line
    except BaseException:
        traceback.print_exc()
        print(f"FAILED: python tests/fuzz/low_bits.py '{sample.label}' {number}", flush=True)
        return False
    finally:
        signal.alarm(0)
    return True


def check_import(path: Path) -> None:
    """Pack all tensors; AssertionError if their weights are not those of the file."""
    checkpoint = GGUFCheckpoint(path)
    parameters = stored_parameters(checkpoint.config, formats=checkpoint.formats)
    file, codes = GGUFFile(path), None
    for name, values in stored_tensors(checkpoint, parameters):
        stored = parameters.get(name)
        if stored is not None:
            codes = values
            continue
        stored = parameters[name := name.removesuffix(scale_name(""))]
        if stored.format.block_columns > 1:
            assert codes is not None
            packed = stored.format.dequantize(codes, values, *stored.shape)
            _check_weights(file, checkpoint, name, stored, packed)


def _check_weights(
    file: GGUFFile, checkpoint: GGUFCheckpoint, name: str, stored: StoredParameter, packed
) -> None:
    """Compare packed weights with those of the decoder of the tensor type."""
    theirs = tensor_name(name, checkpoint.config.n_experts > 0)
    if theirs.replace("weight", "scale") in file.tensors:
        return  # a factor, which is multiplied in another order
    expected = read_floats(file, file.tensors[theirs], identify(file, file.tensors[theirs]))
    expected = expected.reshape(stored.shape)
    if file.metadata["general.architecture"] in ("llama", "minicpm") and name.split(".")[-2] in (
        "q_proj",
        "k_proj",
    ):
        heads = expected.reshape(-1, checkpoint.config.head_dim // 2, 2, stored.shape[1])
        expected = heads.swapaxes(1, 2).reshape(stored.shape)
    np.testing.assert_array_equal(packed, expected, err_msg=name)


def main() -> int:
    """Run as many cases of each type as the argument says, or one case again."""
    with _samples() as samples:
        if len(sys.argv) == 3:
            sample = next(each for each in samples if each.label == sys.argv[1])
            return not run_case(sample, int(sys.argv[2]))
        n_failures = 0
        for sample in samples:
            start = time.monotonic()
            n_failures += sum(not run_case(sample, i) for i in range(int(sys.argv[1])))
            took = time.monotonic() - start
            print(f"{sample.label}: {dict(sample.outcomes)}, {took:.0f} s", flush=True)
    print(f"{n_failures} failures")
    return n_failures > 0


if __name__ == "__main__":
    warnings.simplefilter("error")
    sys.exit(main())
