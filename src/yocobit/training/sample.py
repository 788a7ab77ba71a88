"""Text from the PyTorch model: to watch a run learn. The engine is what generates for users."""

from __future__ import annotations

import torch
from tokenizers import Tokenizer

from yocobit.data.tokenizer import end_token
from yocobit.model import Cache, Decoder


@torch.no_grad()
def sample(
    model: Decoder,
    tokenizer: Tokenizer,
    prompt: str,
    n_tokens: int,
    temperature: float = 0.0,
    seed: int = 0,
) -> str:
    """Return up to `n_tokens` of text after the prompt; temperature 0 takes the likeliest token."""
    generator = torch.Generator().manual_seed(seed)
    end = end_token(tokenizer)
    # A document starts where the one before has ended.
    tokens = [end, *tokenizer.encode(prompt, add_special_tokens=False).ids]
    cache = Cache()
    made: list[int] = []
    while len(made) < n_tokens:
        logits = model.step(torch.tensor([tokens]), cache)[0, -1]  # (V,)
        if temperature > 0:
            weights = (logits / temperature).softmax(dim=-1)
            token = int(torch.multinomial(weights, 1, generator=generator))
        else:
            token = int(logits.argmax())
        if token == end:
            break
        made.append(token)
        tokens = [token]
    text: str = tokenizer.decode(made)
    return text
