"""yocobit, llama.cpp and PyTorch behind one call, so that all are measured alike.

Each opens a model and returns a function that begins a new text and gives the call that feeds it
tokens: a prompt, or one token to decode.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from yocobit import Engine
from yocobit.config import ModelConfig
from yocobit.engine.session import CacheType

Feed = Callable[[list[int]], object]
NewText = Callable[[], Feed]


def open_yocobit(path: str, threads: int, room: int, cache: CacheType) -> NewText:
    engine = Engine.load(path, threads=threads)
    logits = np.empty(engine.config.vocab_size, dtype=np.float32)

    def new_text() -> Feed:
        session = engine.session(room, cache)
        return lambda tokens: session.feed(tokens, logits)

    return new_text


def open_llama_cpp(path: str, threads: int, room: int, has_flash_attention: bool) -> NewText:
    from llama_cpp import Llama

    model = Llama(path, n_ctx=room, n_batch=512, n_ubatch=512, n_threads=threads,
                  n_threads_batch=threads, flash_attn=has_flash_attention,
                  verbose=False)  # fmt: skip

    def new_text() -> Feed:
        model.reset()
        return model.eval

    return new_text


def open_pytorch(config: ModelConfig, threads: int) -> NewText:
    """The same shape in float32, dense: what a model costs that nobody quantised."""
    import torch

    from yocobit.model import Cache, Decoder

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    model = Decoder(config.replace(weights="dense")).eval()

    def new_text() -> Feed:
        cache = Cache()

        @torch.inference_mode()
        def feed(tokens: list[int]) -> object:
            take = model.step if len(tokens) == 1 else model.prefill
            return take(torch.tensor([tokens]), cache)

        return feed

    return new_text
