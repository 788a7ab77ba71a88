"""PromptEncoder: the prompts of requests as tokens, checked against the context."""

from __future__ import annotations

import threading
from array import array
from functools import cached_property
from typing import Any

from yocobit.engine import Engine
from yocobit.serving.errors import APIError
from yocobit.serving.settings import ServerSettings
from yocobit.text.chat_template import Prompt

_CACHED_TEXTS = 16  # recent texts whose tokens are kept


class PromptEncoder:
    """Converts texts to tokens, with a cache of the most recent texts."""

    def __init__(self, engine: Engine, settings: ServerSettings) -> None:
        self.engine = engine
        self.settings = settings
        # By whether it is a conversation, and text; the least recently used first.
        self._token_cache: dict[tuple[bool, str], array[int]] = {}
        self._token_lock = threading.Lock()

    def encode(self, text: str, param: str) -> list[int]:
        """Return the tokens of a text, from a cache of the most recent texts.

        APIError 400, without tokenising, for a text that is far too long for the context. `param`
        is the request field that holds the text.
        """
        self.check_length(len(text), param)
        # A rendered conversation has special tokens, the same text of a user has none, and a
        # conversation that spells some has those of its template.
        key = (isinstance(text, Prompt), str(text))
        if isinstance(text, Prompt) and self.engine.encoder.spells_special_tokens(
            [text.messages, text.variables]
        ):
            return self.engine.encode(text)
        with self._token_lock:
            cached = self._token_cache.pop(key, None)
        # As an array, a token takes 4 bytes.
        tokens = array("i", self.engine.encode(text)) if cached is None else cached
        if len(tokens) <= self.settings.context:
            with self._token_lock:
                self._token_cache[key] = tokens  # the most recent is last
                while len(self._token_cache) > _CACHED_TEXTS:
                    del self._token_cache[next(iter(self._token_cache))]
        return tokens.tolist()

    def check_length(self, n_chars: int, param: str) -> None:
        """APIError 400 for a text that has too many characters for any tokens to fit."""
        if n_chars > self.max_chars:
            raise APIError(
                400,
                f"This model's maximum context length is {self.settings.context} tokens, at most "
                f"{self.max_chars:,} characters, but the prompt has {n_chars:,}",
                param=param,
                code="context_length_exceeded",
            )

    def encode_prompts(
        self,
        prompt: str | list[str | int | list[int]] | None,
        param: str,
        max_prompts: int,
        has_suffix: bool = False,
    ) -> list[list[int]]:
        """Return the prompts of a request as tokens: strings, tokens, or lists of either.

        `has_suffix` appends to texts what the tokenizer appends: those of a text that is complete.
        APIError 400 unless each has at least one token of the vocabulary, and they are at most
        `max_prompts` and can be queued.
        """
        if isinstance(prompt, list) and prompt and all(isinstance(item, int) for item in prompt):
            prompts: list[Any] = [prompt]
        else:
            prompts = prompt if isinstance(prompt, list) else [prompt or ""]
        if any(isinstance(item, int) for item in prompts):
            raise APIError(
                400,
                f"{param} must hold strings, tokens, or lists of tokens, not a mixture",
                param=param,
            )
        if len(prompts) > max_prompts:
            raise APIError(
                400,
                f"{param} must hold at most {max_prompts} texts but has {len(prompts)}",
                param=param,
            )
        running, waiting = self.settings.max_sequences, self.settings.max_waiting
        if len(prompts) > running + waiting:
            raise APIError(
                400,
                f"{param} has {len(prompts)} texts, but this server accepts at most "
                f"{running + waiting}: {running} running and {waiting} waiting",
                param=param,
            )
        found = [
            [*self.encode(item, param), *(self.engine.encoder.suffix if has_suffix else ())]
            if isinstance(item, str)
            else item
            for item in prompts
        ]
        if not found or not all(found):
            raise APIError(400, f"{param} must have at least one token but is empty", param=param)
        for tokens in found:
            if len(tokens) > self.settings.context:
                break  # `check` reports it, with its numbers
            self.check_tokens(tokens, param)
        return found

    def check_tokens(self, tokens: list[int], param: str) -> None:
        """APIError 400 unless all tokens are in the vocabulary."""
        size = self.engine.config.vocab_size
        for token in tokens:
            if not 0 <= token < size:
                raise APIError(
                    400,
                    f"{param}: token {token} must be at least 0 and below {size}",
                    param=param,
                )

    @property
    def max_chars(self) -> int:
        """Characters of a text above which its tokens exceed the context."""
        return self.settings.context * self.longest_token

    @cached_property
    def longest_token(self) -> int:
        """Characters of the longest token."""
        return max(map(len, self.engine.tokenizer.get_vocab()))
