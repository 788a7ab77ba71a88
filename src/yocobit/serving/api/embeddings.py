"""POST embeddings: texts in, L2-normalised vectors out.

A vector is the mean of the hidden states after the final norm, or that of the last token. By the
engine's contract it depends on the model and the tokens alone, bit for bit. A text has the tokens
that the tokenizer adds around it; embedding models were trained to end it with one of them.

Letters: T positions   C model width
"""

from __future__ import annotations

import base64
import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from yocobit.config import Pooling
from yocobit.serving import limits
from yocobit.serving.api.call import Call, Reply
from yocobit.serving.api.protocol import Name, Prompt
from yocobit.serving.api.refused_fields import Refused
from yocobit.serving.api.served_model import ServedModel
from yocobit.serving.errors import APIError
from yocobit.serving.runtime.request import Request


class EmbeddingRequest(Struct, kw_only=True):
    """The body of embeddings."""

    refused: ClassVar[Mapping[str, Refused]] = {
        # vLLM
        "add_special_tokens": Refused((True,), "give the input as tokens"),
        "embed_dtype": Refused(("float32",)),
        "endianness": Refused(("little", "native")),
        "messages": Refused(remedy="give the conversation's text as input"),
        "normalize": Refused((True,), "vectors are normalised"),
        "truncate_prompt_tokens": Refused(remedy="shorten the input"),
        "use_activation": Refused((True,), "vectors are normalised"),
        # llama.cpp
        "embd_normalize": Refused((2,), "vectors are normalised"),
    }

    input: Prompt
    model: Name | None = None
    encoding_format: Literal["float", "base64"] | None = None  # base64: little-endian float32
    pooling: Pooling | None = None  # the model's unless given
    dimensions: int | None = None  # the width: the model was not trained for shorter vectors
    user: Name | None = None


@dataclasses.dataclass(frozen=True)
class EmbeddingInputs:
    """A prepared request."""

    requests: list[Request]  # without their poolers
    pooling: Pooling
    is_base64: bool
    model: str


async def embeddings(call: Call) -> Reply:
    return Reply(await embed(call, call.prepared))


async def embed(call: Call, inputs: EmbeddingInputs) -> dict[str, Any]:
    """Return the vectors of inputs, in the form of the response."""
    width = call.model.engine.config.d_model
    poolers = [_Pooler(inputs.pooling, width) for _ in inputs.requests]
    requests = [
        dataclasses.replace(request, on_hidden_states=pooler.add)
        for request, pooler in zip(inputs.requests, poolers, strict=True)
    ]
    stream = await call.generate(requests)
    async for _ in stream.events():
        pass
    n_tokens = sum(len(request.prompt) for request in requests)
    return {
        "object": "list",
        "data": [
            {"object": "embedding", "index": i, "embedding": pooler.embedding(inputs.is_base64)}
            for i, pooler in enumerate(poolers)
        ],
        "model": inputs.model,
        "usage": {"prompt_tokens": n_tokens, "total_tokens": n_tokens},
    }


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


def build(model: ServedModel, body: EmbeddingRequest, client: str) -> EmbeddingInputs:
    """Return the requests of a body; APIError 400 if it is invalid."""
    width = model.engine.config.d_model
    if body.dimensions not in (None, width):
        raise APIError(
            400,
            f"dimensions: vectors have the model's width, {width}, but it is {body.dimensions}; "
            "leave it out",
            param="dimensions",
        )
    inputs = model.prompts.encode_prompts(body.input, "input", limits.INPUTS, has_suffix=True)
    return EmbeddingInputs(
        [model.check(_request(model, tokens, client), "input") for tokens in inputs],
        body.pooling or model.engine.config.pooling,
        body.encoding_format == "base64",
        body.model or model.name,
    )


def _request(model: ServedModel, tokens: list[int], client: str) -> Request:
    return Request(
        prompt=tuple(tokens),
        max_tokens=0,
        sampling=(model.engine.sampling(),),  # one sequence, which is not sampled
        client=client,
        timeout_s=model.settings.timeout_s,
    )
