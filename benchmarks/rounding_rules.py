"""Rules for the scale of int8 activations: KL divergence from float32 activations, in PyTorch.

    python benchmarks/rounding_rules.py TEXT MODEL.gguf [--tokens 24576] [--threads 2]

The model runs in float32; only the inputs of its linear layers are rounded, in groups of 32
columns. Q8_0 is the rule of llama.cpp, `best of four` that of the engine
(docs/explanation/numerics.md). MODEL is a dense GGUF file in F32, such as one of
ternary_planes.py. The start of TEXT is split into windows of 64 tokens that are independent
sequences; standard errors are over windows.

Needs transformers and the extra `peers` (llama-cpp-python, for the tokenizer).

Letters: N windows   T positions   V vocabulary   K columns
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from activation_rounding import WINDOW
from llama_cpp import Llama
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from yocobit.hardware.host import provenance

Rule = Callable[[Tensor], Tensor]

RESULTS = Path(__file__).parent / "results" / "rounding_rules.json"
GROUP = 32
LARGEST_CODES = (127, 125, 123, 121)  # as Kernels::quantize_grouped_row has them
WINDOWS_PER_BATCH = 4
Q8_0 = "Q8_0"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("text", type=Path)
    parser.add_argument("model", type=Path)
    parser.add_argument("--tokens", type=int, default=24576)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    path = arguments.model
    model = AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32
    ).eval()
    text = arguments.text.read_text(encoding="utf-8")[: 16 * arguments.tokens]
    tokenizer = Llama(str(path), vocab_only=True, verbose=False)
    tokens = tokenizer.tokenize(text.encode(), add_bos=False)[: arguments.tokens // WINDOW * WINDOW]
    windows = torch.tensor(tokens).reshape(-1, WINDOW)
    rules = {
        Q8_0: q8_0,
        "max / 127": best_of([127]),
        "best of four": best_of(LARGEST_CODES),
    }
    divergences = kl_divergences(model, windows, rules)
    report: dict[str, Any] = {
        **provenance(),
        "text": arguments.text.name,
        "model": path.name,
        "tokens": len(tokens),
    }
    for name, each in divergences.items():
        difference = each - divergences[Q8_0]
        base = divergences[Q8_0].mean()
        report[name] = {
            "kl_nats": float(each.mean()),
            "kl_standard_error": standard_error(each),
            "relative_to_q8_0": float(difference.mean() / base),
            "relative_standard_error": standard_error(difference) / float(base),
        }
        print(f"{name:14}" + "  ".join(f"{k} {v:.4g}" for k, v in report[name].items()))
    arguments.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(f"wrote {arguments.out}")


def kl_divergences(model: nn.Module, windows: Tensor, rules: dict[str, Rule]) -> dict[str, Tensor]:
    """Return the mean divergence of each window (N,) by rule, in nats per token."""
    rule: Rule | None = None

    def round_input(_: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor] | None:
        return (rule(inputs[0]),) if rule else None

    for module in model.modules():
        if isinstance(module, nn.Linear):
            module.register_forward_pre_hook(round_input)
    found: dict[str, list[Tensor]] = {name: [] for name in rules}
    with torch.inference_mode():
        for batch in windows.split(WINDOWS_PER_BATCH):
            rule = None
            exact = torch.log_softmax(model(batch).logits, -1)  # (N, T, V)
            for name in rules:
                rule = rules[name]
                rounded = torch.log_softmax(model(batch).logits, -1)
                divergence = (exact.exp() * (exact - rounded)).double().sum(-1)
                found[name].append(divergence.mean(1))
    return {name: torch.cat(each) for name, each in found.items()}


def q8_0(x: Tensor) -> Tensor:
    """Round x (..., K) as ggml's Q8_0: integers by max / 127, then the scale to float16."""
    groups = x.unflatten(-1, (-1, GROUP))
    scales = groups.abs().amax(-1, keepdim=True) / 127
    codes = torch.where(scales > 0, torch.round(groups / scales), 0)
    return (codes * scales.half().float()).reshape(x.shape)


def best_of(largest_codes: list[int] | tuple[int, ...]) -> Rule:
    """Return the rule that selects the scale max / code with the least squared error."""

    def rule(x: Tensor) -> Tensor:
        groups = x.unflatten(-1, (-1, GROUP))
        largest = groups.abs().amax(-1, keepdim=True).clamp(min=1e-12)
        best, least = groups, torch.full_like(largest, torch.inf)
        for code in largest_codes:
            scales = largest / code
            rounded = torch.round(groups / scales) * scales
            error = (groups - rounded).square().sum(-1, keepdim=True)
            best = torch.where(error < least, rounded, best)
            least = torch.minimum(error, least)
        return best.reshape(x.shape)

    return rule


def standard_error(each: Tensor) -> float:
    return float(each.std() / len(each) ** 0.5)


if __name__ == "__main__":
    main()
