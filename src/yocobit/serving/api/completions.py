"""POST completions: text or tokens in, their continuation out."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, ClassVar

from msgspec import Meta
from tokenizers import Tokenizer

from yocobit.serving import limits
from yocobit.serving.api.constraints import Constrained, constrained, constraint_of
from yocobit.serving.api.generated_response import Completion, check_stream_options
from yocobit.serving.api.protocol import MaxTokens, Prompt, Sampling
from yocobit.serving.api.refused_fields import Refused
from yocobit.serving.api.served_model import ServedModel
from yocobit.serving.errors import APIError
from yocobit.serving.runtime.request import Event, Finish, Logprob, Prefilled, Request, Token
from yocobit.serving.runtime.runtime import EventStream
from yocobit.serving.runtime.structured_output import CheckedGrammar
from yocobit.text import Detokenizer

_DEFAULT_MAX_TOKENS = 16  # OpenAI's


class CompletionRequest(Constrained, kw_only=True):
    """The body of completions."""

    refused: ClassVar[Mapping[str, Refused]] = {
        **Sampling.refused,
        "add_special_tokens": Refused((True,), "give the prompt as tokens"),
    }

    prompt: Prompt | None = None
    max_tokens: MaxTokens | None = None
    echo: bool | None = None
    logprobs: Annotated[int, Meta(ge=0, le=limits.LOGPROBS)] | None = None
    best_of: int | None = None
    suffix: str | None = None


def build(model: ServedModel, body: CompletionRequest, client: str) -> TextCompletion:
    """Return the response to generate for a body; APIError 400 if it is invalid."""
    check_stream_options(body)
    n = body.n or 1
    _check_supported(body, n)
    prompts = model.prompts.encode_prompts(body.prompt, "prompt", limits.PROMPTS)
    bias = model.logit_bias(body)
    sampling = model.sampling(body, len(prompts))
    limit = body.n_predict if body.max_tokens is None else body.max_tokens
    if limit is None:
        limit = _DEFAULT_MAX_TOKENS
    if limit == 0 and not body.echo:
        raise APIError(400, "max_tokens can be 0 only with echo", param="max_tokens")
    prompts = [model.truncate(body, prompt, limit) for prompt in prompts]
    n_logprobs = 0 if body.logprobs is None else len(prompts) * n * (body.logprobs + 1)
    token_limits = [model.max_tokens(limit, len(prompt), n_logprobs) for prompt in prompts]
    requests = [
        model.check(
            Request(
                prompt=tuple(prompt),
                max_tokens=max_tokens,
                sampling=sampling[i * n : (i + 1) * n],
                **model.end_conditions(body, max_tokens),
                logit_bias=bias,
                n_logprobs=body.logprobs,
                n_prompt_logprobs=body.logprobs if body.echo else None,
                cache_salt=body.cache_salt or "",
                client=client,
                timeout_s=model.settings.timeout_s,
            ),
            "prompt",
        )
        for i, (prompt, max_tokens) in enumerate(zip(prompts, token_limits, strict=True))
    ]
    model.check_logprobs(requests)
    _check_prompt_logprobs(body, sum(map(len, prompts)) * n)
    grammar, requests = constrained(model, constraint_of(body), body, requests)
    return TextCompletion(model, body, requests, grammar)


def _check_supported(body: CompletionRequest, n: int) -> None:
    """APIError 400 for a field with a value that is not supported."""
    if body.best_of is not None and body.best_of != n:
        raise APIError(
            400,
            f"best_of is not supported: it must equal n, which is {n}, but is {body.best_of}; "
            "request more choices with n",
            param="best_of",
        )
    if body.suffix:
        raise APIError(400, "suffix is not supported; leave it out", param="suffix")


def _check_prompt_logprobs(body: CompletionRequest, n_tokens: int) -> None:
    """APIError 400 if the prompts would have too many log-probabilities in the response.

    `n_tokens` are the tokens of the prompts of all choices.
    """
    if not body.echo or body.logprobs is None:
        return
    n_entries = n_tokens * (body.logprobs + 1)
    if n_entries > limits.PROMPT_LOGPROBS:
        raise APIError(
            400,
            f"echo with logprobs would return {n_entries:,} log-probabilities, but a response "
            f"has at most {limits.PROMPT_LOGPROBS:,}; request fewer prompts, or logprobs",
            param="logprobs",
        )


def is_heavy(body: CompletionRequest) -> bool:
    """Whether a grammar must be compiled."""
    return body.is_constrained


@dataclasses.dataclass
class _Choice:
    """The part of a continuation that has been generated, or that has not been sent."""

    text: str = ""
    tokens: list[str] = dataclasses.field(default_factory=list)
    token_logprobs: list[float | None] = dataclasses.field(default_factory=list)
    top_logprobs: list[dict[str, float] | None] = dataclasses.field(default_factory=list)
    text_offset: list[int] = dataclasses.field(default_factory=list)
    token_ids: list[int] = dataclasses.field(default_factory=list)
    prompt_ids: list[int] | None = None
    reason: str | None = None


class _Offsets:
    """Offsets of tokens in a choice's text, which has no special tokens."""

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int]) -> None:
        self._detokenizer = Detokenizer(tokenizer, prompt=prompt)
        self._n_characters = 0

    def add(self, token: int) -> int:
        """Append a token; return its offset."""
        offset = self._n_characters
        self._n_characters += len(self._detokenizer.add(token))
        return offset


class TextCompletion(Completion):
    """The response to one request body, with one or more prompts."""

    id_prefix = "cmpl"
    object_name = chunk_object_name = "text_completion"

    def __init__(
        self,
        model: ServedModel,
        body: CompletionRequest,
        requests: list[Request],
        grammar: CheckedGrammar | None,
    ) -> None:
        super().__init__(model, body, requests, grammar)
        self._echo = bool(body.echo)
        self._n_logprobs = body.logprobs
        self._n = body.n or 1
        n_choices = len(requests) * self._n
        self._choices = [_Choice() for _ in range(n_choices)]
        if self.has_token_ids:
            for i, choice in enumerate(self._choices):
                choice.prompt_ids = list(requests[i // self._n].prompt)
        self._offsets: list[_Offsets] = []

    def attach(self, model: ServedModel) -> None:
        super().attach(model)
        # The text starts with the prompt, or after it.
        prompts = [() if self._echo else request.prompt for request in self.requests]
        self._offsets = [
            _Offsets(model.engine.tokenizer, prompts[i // self._n])
            for i in range(len(self._choices))
        ]

    def add(self, index: int, event: Event) -> None:
        self._add(index, event)

    def choices(self) -> list[dict[str, Any]]:
        return [self._choice(i, choice) for i, choice in enumerate(self._choices)]

    def chunks_of(self, index: int, event: Event, stream: EventStream) -> Iterator[dict[str, Any]]:
        for i in self._add(index, event):
            choice, self._choices[i] = self._choices[i], _Choice()
            finished = self.finish_choice(stream) if isinstance(event, Finish) else None
            if choice.text or choice.tokens or choice.token_ids or choice.reason:
                yield self.chunk(self._choice(i, choice), finished)

    def _add(self, index: int, event: Event) -> list[int]:
        """Add an event of a request to its choices; return their indices."""
        first = index * self._n
        if isinstance(event, Prefilled):
            if not self._echo:
                return []
            for i in range(first, first + self._n):
                self._add_prompt(i, event)
            return list(range(first, first + self._n))
        if not isinstance(event, Token | Finish):
            return []
        i = first + event.choice
        self._choices[i].text += event.text
        if isinstance(event, Finish):
            self._choices[i].reason = event.reason
            return [i]
        if self.has_token_ids:
            self._choices[i].token_ids.append(event.token)
        if event.logprob is not None:
            self._add_token(i, event.token, event.logprob)
        return [i]

    def _add_prompt(self, i: int, event: Prefilled) -> None:
        prompt = list(self.requests[i // self._n].prompt)
        tokenizer = self.model.engine.tokenizer
        self._choices[i].text += tokenizer.decode(prompt, skip_special_tokens=True)
        if self._n_logprobs is not None:
            for token, found in zip(prompt, event.logprobs, strict=True):
                self._add_token(i, token, found)

    def _add_token(self, i: int, token: int, found: Logprob | None) -> None:
        choice, token_text = self._choices[i], self.model.token_text
        text, _ = token_text(token)
        top = {token_text(t)[0]: value for t, value in reversed(found.top)} if found else {}
        if found:
            top.setdefault(text, found.logprob)
        choice.tokens.append(text)
        choice.token_logprobs.append(found.logprob if found else None)
        choice.top_logprobs.append(top if found else None)
        choice.text_offset.append(self._offsets[i].add(token))

    def _choice(self, index: int, choice: _Choice) -> dict[str, Any]:
        logprobs = None
        if self._n_logprobs is not None:
            logprobs = {
                "tokens": choice.tokens,
                "token_logprobs": choice.token_logprobs,
                "top_logprobs": choice.top_logprobs,
                "text_offset": choice.text_offset,
            }
        return {
            "index": index,
            "text": choice.text,
            "logprobs": logprobs,
            "finish_reason": choice.reason,
            **self._token_ids(choice),
        }

    def _token_ids(self, choice: _Choice) -> dict[str, Any]:
        if not self.has_token_ids:
            return {}
        prompt = {} if choice.prompt_ids is None else {"prompt_token_ids": choice.prompt_ids}
        return {"token_ids": choice.token_ids, **prompt}
