"""Generate text with a packed model and print the decode speed.

python examples/generate.py [PROMPT] [--model MODEL] [--max-tokens 60] [--seed 0]
"""

from __future__ import annotations

import argparse

from yocobit import Engine
from yocobit.engine import SamplingConfig


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("prompt", nargs="?", default="In the beginning")
    parser.add_argument("--model", help="a packed model's directory; the packaged one by default")
    parser.add_argument("--max-tokens", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()

    engine = Engine.load(arguments.model) if arguments.model else Engine.load()
    sampling = SamplingConfig(temperature=0.8, top_p=0.95, seed=arguments.seed)
    generation = engine.stream(
        arguments.prompt, max_tokens=arguments.max_tokens, cache="int8", sampling=sampling
    )
    print(arguments.prompt, end="")
    for piece in generation:
        print(piece, end="", flush=True)
    print(f"\n{generation.decode_tokens_per_s:,.0f} tokens/s, {engine.kernels} kernels")


if __name__ == "__main__":
    main()
