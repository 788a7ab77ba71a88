"""Convert a published checkpoint to a packed model, verify it and generate with it.

    hf download microsoft/bitnet-b1.58-2B-4T --local-dir checkpoints/2b4t
    python examples/import_model.py checkpoints/2b4t models/2b4t

A checkpoint of bf16 master weights needs the extra `train`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from yocobit import Engine
from yocobit.costs import describe
from yocobit.errors import report_errors
from yocobit.importers import import_model
from yocobit.packing import verify


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path, help="a Hugging Face directory")
    parser.add_argument("model", type=Path, help="the new packed model's directory")
    arguments = parser.parse_args()

    packed = import_model(arguments.checkpoint, arguments.model)
    print("\n".join(describe(packed)))
    problems = verify(arguments.model)
    print("\n".join(problems) or "every byte matches its hash")
    print(Engine.load(arguments.model).generate("The capital of France is", max_tokens=16))


if __name__ == "__main__":
    report_errors(main)
