"""POST embeddings: texts in, L2-normalised vectors out.

A vector is the mean of the hidden states after the final norm, or that of the last token. By the
engine's contract it depends on the model and the tokens alone, bit for bit.

Letters: T positions   C model width
"""

from __future__ import annotations

import base64
from typing import Literal

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from yocobit.serving.api.call import Call, Reply
from yocobit.serving.api.protocol import Prompt
from yocobit.serving.api.served_model import ServedModel
from yocobit.serving.errors import APIError
from yocobit.serving.runtime.request import Request

_MAX_INPUTS = 2048  # OpenAI's

Pooling = Literal["mean", "last"]


class EmbeddingRequest(Struct, kw_only=True):
    """The body of embeddings."""

    input: Prompt
    model: str | None = None
    encoding_format: Literal["float", "base64"] | None = None  # base64: little-endian float32
    pooling: Pooling | None = None  # "mean" unless given
    dimensions: int | None = None  # rejected: the model was not trained for shorter vectors
    user: str | None = None


async def embeddings(call: Call) -> Reply:
    poolers, requests = await call.runtime.prepare(_build, call.model, call.body, call.client)
    stream = await call.resources.enter_async_context(call.runtime.generate(requests))
    call.is_counted = True
    async for _ in stream.events():
        pass
    n_tokens = sum(len(request.prompt) for request in requests)
    is_base64 = call.body.encoding_format == "base64"
    return Reply(
        {
            "object": "list",
            "data": [
                {"object": "embedding", "index": i, "embedding": pooler.embedding(is_base64)}
                for i, pooler in enumerate(poolers)
            ],
            "model": call.body.model or call.model.name,
            "usage": {"prompt_tokens": n_tokens, "total_tokens": n_tokens},
        }
    )


class _Pooler:
    """Pools the hidden states of one input, which come in chunks."""

    def __init__(self, pooling: Pooling, d_model: int) -> None:
        self._pooling = pooling
        self._sum = np.zeros(d_model)  # (C,); float64

    def add(self, hidden: NDArray[np.float32]) -> None:
        """Add the hidden states (T, C) of the next tokens."""
        if self._pooling == "last":
            self._sum[:] = hidden[-1]
            return
        for row in hidden:  # token by token: chunks must not change the order of the sum
            self._sum += row

    def embedding(self, is_base64: bool) -> list[float] | str:
        """Return the normalised vector (C,); the mean and the sum have the same direction."""
        norm = np.sqrt((self._sum * self._sum).sum())
        vector = (self._sum / (norm or 1.0)).astype("<f4")
        return base64.b64encode(vector.tobytes()).decode() if is_base64 else vector.tolist()


def _build(
    model: ServedModel, body: EmbeddingRequest, client: str
) -> tuple[list[_Pooler], list[Request]]:
    if body.dimensions is not None:
        raise APIError(
            400,
            "dimensions is not supported: vectors have the model's width, "
            f"{model.engine.config.d_model}; leave it out",
            param="dimensions",
        )
    inputs = model.encode_prompts(body.input, "input", _MAX_INPUTS)
    poolers = [_Pooler(body.pooling or "mean", model.engine.config.d_model) for _ in inputs]
    requests = [
        model.check(_request(model, tokens, pooler, client), param="input")
        for tokens, pooler in zip(inputs, poolers, strict=True)
    ]
    return poolers, requests


def _request(model: ServedModel, tokens: list[int], pooler: _Pooler, client: str) -> Request:
    return Request(
        prompt=tuple(tokens),
        max_tokens=0,
        sampling=(model.engine.sampling(),),  # one sequence, which is not sampled
        on_hidden_states=pooler.add,
        client=client,
        timeout_s=model.settings.timeout_s,
    )
