"""Samples of the PyTorch model during training; the engine generates for users."""

from __future__ import annotations

import torch
from tokenizers import Tokenizer

from yocobit.data.tokenizer import end_token
from yocobit.model import Cache, Decoder
from yocobit.text import TextEncoder
from yocobit.text.detokenizer import continuation

_INVALID = "\ufffd"  # decoded from bytes that are not UTF-8
_MAX_INVALID_SHARE = 0.02  # of the characters of a printed sample


@torch.no_grad()
def sample(
    model: Decoder,
    tokenizer: Tokenizer,
    prompt: str,
    n_tokens: int,
    temperature: float = 0.0,
    seed: int = 0,
) -> str:
    """Return up to `n_tokens` tokens of text after the prompt; temperature 0 is greedy."""
    generator = torch.Generator().manual_seed(seed)
    end = end_token(tokenizer)
    # A document starts after the EOS token of the previous one.
    tokens = start = [end, *TextEncoder(tokenizer, control_tokens=[end]).encode(prompt)]
    cache = Cache()
    generated: list[int] = []
    while len(generated) < n_tokens:
        logits = model.step(torch.tensor([tokens]), cache)[0, -1]  # (V,)
        if not logits.isfinite().all():
            break  # the run diverges
        if temperature > 0:
            weights = (logits / temperature).softmax(dim=-1)
            token = int(torch.multinomial(weights, 1, generator=generator))
        else:
            token = int(logits.argmax())
        if token == end:
            break
        generated.append(token)
        tokens = [token]
    return continuation(tokenizer, start, generated)


def printable_sample(prompt: str, text: str) -> str:
    """Return prompt and text; a remark replaces a text with much invalid UTF-8.

    Models produce such text early in a run.
    """
    n_invalid = text.rstrip(_INVALID).count(_INVALID)  # the last character may be incomplete
    if n_invalid <= _MAX_INVALID_SHARE * len(text):
        return prompt + text
    remark = f"[sample not printed: {n_invalid} of {len(text)} characters are invalid UTF-8]"
    return f"{prompt} {remark}".lstrip()
