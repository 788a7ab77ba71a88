"""completions: a text or tokens in, what follows out."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

from yocobit.serving.completion import Completion, stops
from yocobit.serving.errors import APIError
from yocobit.serving.generation import Event, Finish, Logprob, Prompt, Request, Token
from yocobit.serving.protocol import CompletionRequest
from yocobit.serving.service import Answer, Service

_MAX_TOKENS = 16  # as OpenAI's
_MAX_PROMPTS = 1024
_MAX_PROMPT_LOGPROBS = 1 << 18  # entries of an answer, which take some 100 bytes each


@dataclasses.dataclass
class _Choice:
    """A continuation as it grows."""

    text: str = ""
    tokens: list[str] = dataclasses.field(default_factory=list)
    token_logprobs: list[float | None] = dataclasses.field(default_factory=list)
    top_logprobs: list[dict[str, float] | None] = dataclasses.field(default_factory=list)
    text_offset: list[int] = dataclasses.field(default_factory=list)
    reason: str | None = None


class _Offsets:
    """Where in the text of a choice its tokens begin: the text does not show every token."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._decoder = DecodeStream(skip_special_tokens=True)
        self._n_characters = 0

    def add(self, token: int) -> int:
        """Return where a token begins."""
        begin = self._n_characters
        self._n_characters += len(self._decoder.step(self._tokenizer, token) or "")
        return begin


class TextCompletion(Completion):
    """One request to completions."""

    kind = "cmpl"
    chunk_object = "text_completion"

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
        bias = service.logit_bias(body)
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
                    logit_bias=bias,
                    n_logprobs=body.logprobs,
                    n_prompt_logprobs=body.logprobs if self._echo else None,
                    client=client,
                    timeout_s=service.settings.timeout_s,
                ),
                param="prompt",
            )
            for i, prompt in enumerate(prompts)
        ]
        n = self._n_open = len(self.requests) * self._n
        self._choices = [_Choice() for _ in range(n)]  # what has come of them and is not sent
        self._offsets = [_Offsets(service.engine.tokenizer) for _ in range(n)]
        n_tokens = sum(map(len, prompts))
        if body.echo and body.logprobs is not None:
            n_entries = n_tokens * self._n * (body.logprobs + 1)
            if n_entries > _MAX_PROMPT_LOGPROBS:
                raise APIError(
                    400,
                    f"echo with logprobs would give {n_entries:,} log-probabilities, but an answer "
                    f"has at most {_MAX_PROMPT_LOGPROBS:,}; ask for fewer prompts, or logprobs",
                    param="logprobs",
                )

    async def whole(self, answer: Answer) -> dict[str, Any]:
        async for events in answer.events():
            for index, event in events:
                for i in self._take(index, event):
                    self._choices[i].reason = event.reason if isinstance(event, Finish) else None
        results = [self._choice(i, choice) for i, choice in enumerate(self._choices)]
        return self.whole_frame(self.chunk_object, results, answer)

    def first_chunks(self) -> tuple[()]:
        return ()

    def chunks_of(self, index: int, event: Event, answer: Answer) -> Iterator[dict[str, Any]]:
        for i in self._take(index, event):
            choice, self._choices[i] = self._choices[i], _Choice()
            if isinstance(event, Finish):
                choice.reason = event.reason
                self._n_open -= 1
            if choice.text or choice.tokens or choice.reason:
                yield self.chunk_frame([self._choice(i, choice)], None if self._n_open else answer)

    def _take(self, index: int, event: Event) -> list[int]:
        """Add an event of a request to its choices; return which they are."""
        choices = self._choices
        first = index * self._n
        if isinstance(event, Prompt):
            if not self._echo:
                return []
            for i in range(first, first + self._n):
                self._add_prompt(choices[i], i, event)
            return list(range(first, first + self._n))
        if not isinstance(event, Token | Finish):
            return []
        i = first + event.choice
        choices[i].text += event.text
        if isinstance(event, Token) and event.logprob is not None:
            self._add(choices[i], i, event.token, event.logprob)
        return [i]

    def _add_prompt(self, choice: _Choice, i: int, event: Prompt) -> None:
        prompt = list(self.requests[i // self._n].prompt)
        choice.text += self.service.engine.tokenizer.decode(prompt, skip_special_tokens=True)
        if self._n_logprobs is not None:
            for token, found in zip(prompt, event.logprobs, strict=True):
                self._add(choice, i, token, found)

    def _add(self, choice: _Choice, i: int, token: int, found: Logprob | None) -> None:
        text, _ = self.token_text(token)
        top = {self.token_text(t)[0]: value for t, value in reversed(found.top)} if found else {}
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
    if len(prompts) > _MAX_PROMPTS:
        raise APIError(
            400,
            f"prompt must hold at most {_MAX_PROMPTS} texts but has {len(prompts)}",
            param="prompt",
        )
    settings = service.settings
    if len(prompts) > settings.max_sequences + settings.max_waiting:
        raise APIError(
            400,
            f"prompt has {len(prompts)} texts, but this server takes at most "
            f"{settings.max_sequences + settings.max_waiting}: {settings.max_sequences} at work "
            f"and {settings.max_waiting} waiting",
            param="prompt",
        )
    found = [service.encode(item, "prompt") if isinstance(item, str) else item for item in prompts]
    if not found or not all(found):
        raise APIError(400, "prompt must have at least one token but is empty", param="prompt")
    size = service.engine.config.vocab_size
    for tokens in found:
        if len(tokens) > settings.context:
            break  # which is said with the numbers of its request
        for token in tokens:
            if not 0 <= token < size:
                raise APIError(
                    400,
                    f"prompt: token {token} must be at least 0 and below {size}",
                    param="prompt",
                )
    return found
