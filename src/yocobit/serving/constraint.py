"""Answers that must be JSON: what may follow is masked token by token, by llguidance.

An answer also ends in time: when few tokens are left, a token after which it could not be completed
any more is replaced by the next one of a shortest completion.

Letters: V vocabulary
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import msgspec
import numpy as np
from llguidance import LLMatcher, LLTokenizer
from numpy.typing import NDArray

from yocobit.engine import Engine
from yocobit.serving.errors import APIError
from yocobit.serving.generation import Logits

# One blank at most between tokens of JSON: a model may not fill an answer with blanks.
_OPTIONS: Any = {"whitespace_pattern": r"[ \n]?"}
# Tokens left from which on it is asked whether an answer can still be completed.
_AMPLE = 1024
# What ends lists and objects soonest, then what begins the shortest values. Strings end by a quote;
# where a letter may follow that begins no value of JSON, it stands in one.
_CLOSERS = ("}", "]", "0", '""', '"', "[]", "{}", "[", "{", "null", "true", ":", ",")
_QUOTE, _LETTER = '"', "q"


class Grammars:
    """Makes constraints for the tokens of one engine."""

    def __init__(self, engine: Engine) -> None:
        self._n_tokens = engine.config.vocab_size
        self._tokenizer = LLTokenizer(
            engine.tokenizer.to_str(),
            n_vocab=self._n_tokens,
            eos_token=sorted(engine.end_tokens) or None,
        )
        self._closers = [token for text in _CLOSERS if (token := self._single(text)) is not None]
        self._quote, self._letter = self._single(_QUOTE), self._single(_LETTER)
        self._matcher = lru_cache(64)(self._compile)

    def follow(
        self, schema: dict[str, Any] | bool, param: str, max_tokens: int
    ) -> Callable[[], JSONConstraint]:
        """Return what makes constraints by a JSON schema, for answers of at most `max_tokens`.

        APIError 400 naming `param` if the schema is none, or needs more tokens.
        """
        matcher = self._matcher(msgspec.json.encode(schema).decode())
        if isinstance(matcher, str):
            raise APIError(
                400, f"{param}: is not a schema that can be followed ({matcher})", param=param
            )
        if (n := len(self.completion(matcher, max_tokens + 1))) > max_tokens:
            raise APIError(
                400,
                f"{param}: the shortest answer has {n} tokens or more, but max_tokens is "
                f"{max_tokens}; allow more",
                param="max_tokens",
            )
        return lambda: JSONConstraint(self, matcher.deep_copy())

    def allowed(self, matcher: LLMatcher) -> NDArray[np.bool_]:
        """Return which tokens (V,) may follow."""
        bits = np.frombuffer(matcher.compute_bitmask(), dtype=np.uint8)
        return np.unpackbits(bits, bitorder="little")[: self._n_tokens].astype(bool)

    def completion(self, matcher: LLMatcher, limit: int) -> list[int]:
        """Return few tokens that complete an answer; `limit` of them if it takes more."""
        tokens: list[int] = []
        matcher = matcher.deep_copy()
        while len(tokens) < limit and not matcher.is_accepting():
            token = self._next_closer(matcher)
            if token is None or not matcher.consume_token(token):
                break
            tokens.append(token)
        return tokens if matcher.is_accepting() else tokens + [0] * (limit - len(tokens))

    def token_bytes(self, token: int) -> bytes:
        """Return the bytes that a token stands for."""
        return bytes(self._tokenizer.decode_bytes([token]))

    def _compile(self, schema: str) -> LLMatcher | str:
        """Return a matcher at its begin, or what is wrong."""
        try:
            grammar = LLMatcher.grammar_from_json_schema(schema, overrides=_OPTIONS)
        except ValueError as error:
            return str(error)
        if problem := LLMatcher.validate_grammar(grammar, self._tokenizer):
            return problem
        return LLMatcher(self._tokenizer, grammar, log_level=0)

    def _next_closer(self, matcher: LLMatcher) -> int | None:
        if forced := matcher.compute_ff_tokens():
            return int(forced[0])
        allowed = self.allowed(matcher)
        closers = self._closers
        if self._quote is not None and self._letter is not None and allowed[self._letter]:
            closers = [self._quote, *closers]
        for token in closers:
            if allowed[token]:
                return token
        found = np.flatnonzero(allowed)
        return int(found[0]) if len(found) else None

    def _single(self, text: str) -> int | None:
        """Return the token of a text; None if it is several."""
        tokens = self._tokenizer.tokenize_str(text)
        return int(tokens[0]) if len(tokens) == 1 else None


class JSONConstraint:
    """One answer that follows a schema."""

    def __init__(self, grammars: Grammars, matcher: LLMatcher) -> None:
        self._grammars = grammars
        self._matcher = matcher

    def apply(self, logits: Logits) -> Logits:
        """Return logits (V,) in which tokens that must not follow are -infinity."""
        return np.where(self._grammars.allowed(self._matcher), logits, np.float32(-np.inf))

    def settle(self, token: int, left: int) -> int:
        """Return the token that follows: the one drawn, unless no completion would fit behind it.

        `left` tokens may follow, this one included.
        """
        if left > _AMPLE or self._completes(token, left - 1):
            return token
        completion = self._grammars.completion(self._matcher, left)
        return completion[0] if completion else token

    def accept(self, token: int) -> bool:
        """Take in the token that follows; return whether the answer is complete."""
        self._matcher.consume_token(token)
        return bool(self._matcher.is_stopped())

    def _completes(self, token: int, left: int) -> bool:
        matcher = self._matcher.deep_copy()
        if not matcher.consume_token(token):
            return False
        return matcher.is_stopped() or len(self._grammars.completion(matcher, left + 1)) <= left
