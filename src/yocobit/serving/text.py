"""completions: a text or tokens in, what follows out."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator
from typing import Any

from yocobit.serving.completion import Completion, stops
from yocobit.serving.errors import APIError
from yocobit.serving.generation import Finish, Logprob, Prompt, Request, Token
from yocobit.serving.protocol import CompletionRequest
from yocobit.serving.service import Answer, Service

_OBJECT = "text_completion"
_MAX_TOKENS = 16  # as OpenAI's


@dataclasses.dataclass
class _Choice:
    """A continuation as it grows."""

    text: str = ""
    tokens: list[str] = dataclasses.field(default_factory=list)
    token_logprobs: list[float | None] = dataclasses.field(default_factory=list)
    top_logprobs: list[dict[str, float] | None] = dataclasses.field(default_factory=list)
    text_offset: list[int] = dataclasses.field(default_factory=list)
    n_characters: int = 0  # of the tokens
    reason: str | None = None

    def add(self, token: str, shown: str, found: Logprob | None, top: dict[str, float]) -> None:
        """Take in a token, its name and what the text shows of it."""
        self.tokens.append(token)
        self.token_logprobs.append(None if found is None else found.logprob)
        self.top_logprobs.append(None if found is None else top)
        self.text_offset.append(self.n_characters)
        self.n_characters += len(shown)


class TextCompletion(Completion):
    """One request to completions."""

    kind = "cmpl"

    def __init__(self, service: Service, body: CompletionRequest, client: str) -> None:
        super().__init__(service, body)
        self._echo = bool(body.echo)
        self._n_logprobs = body.logprobs
        self._n = body.n or 1
        if body.best_of is not None and body.best_of != self._n:
            raise APIError(
                400,
                f"best_of is not offered: it must be n, which is {self._n}, but is {body.best_of}; "
                "ask for more choices by n",
                param="best_of",
            )
        if body.suffix:
            raise APIError(400, "suffix is not offered; leave it out", param="suffix")
        prompts = _prompts(service, body.prompt)
        sampling = service.sampling(body, len(prompts))
        max_tokens = _MAX_TOKENS if body.max_tokens is None else body.max_tokens
        if max_tokens == 0 and not self._echo:
            raise APIError(400, "max_tokens can be 0 with echo only", param="max_tokens")
        self.requests = [
            service.check(
                Request(
                    prompt=tuple(prompt),
                    max_tokens=max_tokens,
                    sampling=sampling[i * self._n : (i + 1) * self._n],
                    stop=stops(body.stop),
                    logit_bias=service.logit_bias(body),
                    n_logprobs=body.logprobs,
                    n_prompt_logprobs=body.logprobs if self._echo else None,
                    client=client,
                    timeout_s=service.settings.timeout_s,
                ),
                param="prompt",
            )
            for i, prompt in enumerate(prompts)
        ]
        if len(self.requests) > service.settings.max_waiting + service.settings.max_sequences:
            raise APIError(
                400, f"{len(self.requests)} prompts are more than can wait", param="prompt"
            )

    async def whole(self, answer: Answer) -> dict[str, Any]:
        choices = [_Choice() for _ in range(len(self.requests) * self._n)]
        async for index, event in answer.events():
            for i in self._take(choices, index, event):
                choices[i].reason = event.reason if isinstance(event, Finish) else None
        results = [self._choice(i, choice) for i, choice in enumerate(choices)]
        return self.whole_frame(_OBJECT, results, answer)

    async def chunks(self, answer: Answer) -> AsyncIterator[dict[str, Any]]:
        choices = [_Choice() for _ in range(len(self.requests) * self._n)]
        n_open = len(choices)
        async for index, event in answer.events():
            for i in self._take(choices, index, event):
                choice = choices[i]
                if isinstance(event, Finish):
                    choice.reason = event.reason
                    n_open -= 1
                if choice.text or choice.tokens or choice.reason:
                    chunk = [self._choice(i, choice)]
                    yield self.chunk_frame(_OBJECT, chunk, None if n_open else answer)
                choices[i] = _Choice(n_characters=choice.n_characters)
        if self.has_usage_chunk:
            yield self.usage_frame(_OBJECT, answer)

    def _take(self, choices: list[_Choice], index: int, event: object) -> list[int]:
        """Add an event of a request to its choices; return which they are."""
        first = index * self._n
        if isinstance(event, Prompt):
            if not self._echo:
                return []
            for i in range(first, first + self._n):
                self._add_prompt(choices[i], index, event)
            return list(range(first, first + self._n))
        if not isinstance(event, Token | Finish):
            return []
        choice = choices[first + event.choice]
        choice.text += event.text
        if isinstance(event, Token) and event.logprob is not None:
            self._add(choice, event.token, event.logprob)
        return [first + event.choice]

    def _add_prompt(self, choice: _Choice, index: int, event: Prompt) -> None:
        prompt = list(self.requests[index].prompt)
        choice.text += self.service.engine.tokenizer.decode(prompt, skip_special_tokens=True)
        if self._n_logprobs is not None:
            for token, found in zip(prompt, event.logprobs, strict=True):
                self._add(choice, token, found)

    def _add(self, choice: _Choice, token: int, found: Logprob | None) -> None:
        text, _ = self.token_text(token)
        shown = "" if token in self.service.special_tokens else text
        top = {self.token_text(t)[0]: value for t, value in reversed(found.top)} if found else {}
        if found:
            top.setdefault(text, found.logprob)
        choice.add(text, shown, found, top)

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
        }


def _prompts(service: Service, prompt: str | list[str | int | list[int]] | None) -> list[list[int]]:
    """Return the prompts of a request as tokens; APIError 400 unless each has some."""
    if isinstance(prompt, list) and prompt and all(isinstance(item, int) for item in prompt):
        prompts: list[Any] = [prompt]
    else:
        prompts = prompt if isinstance(prompt, list) else [prompt or ""]
    if any(isinstance(item, int) for item in prompts):
        raise APIError(
            400, "prompt must hold texts, tokens, or lists of tokens, not a mixture", param="prompt"
        )
    engine = service.engine
    found = [engine.encode(item) if isinstance(item, str) else item for item in prompts]
    if not found or not all(found):
        raise APIError(400, "prompt must have at least one token but is empty", param="prompt")
    for token in (token for tokens in found for token in tokens):
        if not 0 <= token < engine.config.vocab_size:
            raise APIError(
                400,
                f"prompt: token {token} must be at least 0 and below {engine.config.vocab_size}",
                param="prompt",
            )
    return found
