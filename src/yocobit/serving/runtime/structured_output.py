"""Structured output: a grammar, enforced by llguidance's token masks.

A grammar is a JSON schema, a regular expression, a list of choices, or a context-free grammar.

The output is also complete within max_tokens: a completion that fits is known at every step. If no
completion that fits is found after a sampled token, the first token of the known completion
replaces it. Regular expressions and context-free grammars for which no short output is found have
no known completion, so max_tokens may truncate their outputs.

Letters: V vocabulary
"""

from __future__ import annotations

import dataclasses
import json
import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, Literal

import msgspec
import numpy as np
from llguidance import LLMatcher, LLParserLimits, LLTokenizer

from yocobit.engine import Engine
from yocobit.engine.session import Logits
from yocobit.hardware.host import allocated_bytes
from yocobit.serving import limits
from yocobit.serving.errors import APIError
from yocobit.serving.runtime.gbnf import from_gbnf_or_lark
from yocobit.serving.runtime.grammar_completions import MAX_COMPLETION, GrammarCompletions
from yocobit.serving.runtime.json_schema import enforceable, relaxed

_MAX_MESSAGE = 300  # characters of llguidance's message in an error
_MAX_CHECKED = 16  # grammars whose shortest outputs are cached
_MAX_STATES = 10_000  # of the lexer, which all outputs of a grammar share and extend
# Of one mask, in the scheduler's thread: about 5 ms.
_STEP_LIMITS = LLParserLimits(
    step_lexer_fuel=50_000,
    step_max_items=20_000,
    max_lexer_states=_MAX_STATES,
    verbose_errors=False,
)
_GROWTH_BYTES = _MAX_STATES << 11  # of all these states, about 2 KB each
_MAX_CACHED_BYTES = 1 << 27  # of compiled grammars that are cached for later requests
# At most one blank between tokens of JSON: otherwise a model may fill its output with blanks.
_JSON_OPTIONS: Any = {"whitespace_pattern": r"[ \n]?"}
# Budget of the failed searches of one output, in masks: initial, and per generated token.
_BUDGET, _BUDGET_PER_TOKEN = 64, 16
_N_ATTEMPTS = 3  # after a sampled token

Kind = Literal["json", "regex", "choice", "cfg"]
_NAMES: Mapping[Kind, str] = {
    "json": "schema",
    "regex": "regular expression",
    "choice": "list of choices",
    "cfg": "grammar",
}


@dataclasses.dataclass(frozen=True)
class Grammar:
    """A grammar as a client wrote it: unchecked."""

    kind: Kind
    text: str  # a JSON schema, a regex, a JSON list of strings; GBNF, or Lark with "start:"

    @classmethod
    def from_json(cls, kind: Kind, value: Any, param: str) -> Grammar:
        """Return the grammar of a schema or of choices; APIError 400 if it nests too deep."""
        try:
            return cls(kind, msgspec.json.encode(value).decode())
        except RecursionError:
            raise APIError(
                400, f"{param}: the {_NAMES[kind]} is nested too deep; flatten it", param=param
            ) from None


@dataclasses.dataclass(frozen=True)
class CheckedGrammar:
    """A grammar that was compiled within the limits: the server's process compiles it again."""

    text: str  # in llguidance's form
    is_json: bool
    shortest: list[int] | None  # tokens of a short output; None: outputs may be truncated
    size_bytes: int  # compiled, before any output
    dropped: tuple[str, ...] = ()  # pointers of a schema's keywords that are not enforced


class CompiledGrammar:
    """A compiled grammar, which the outputs of several requests share."""

    def __init__(self, matcher: LLMatcher, size_bytes: int) -> None:
        self.matcher = matcher  # in its initial state
        self.size_bytes = size_bytes  # growth included
        # Whether a limit was exceeded. It may be the shared lexer's, so the grammar is compiled
        # again for later requests.
        self.is_exhausted = False


class GrammarCompiler:
    """Compiles grammars for guided decoding over one engine's vocabulary."""

    def __init__(self, engine: Engine) -> None:
        n_tokens = engine.config.vocab_size
        self._tokenizer = LLTokenizer(
            engine.tokenizer.to_str(),
            n_vocab=n_tokens,
            eos_token=sorted(engine.end_tokens) or None,
        )
        self.completions = GrammarCompletions(self._tokenizer, n_tokens, engine.end_tokens)
        self._checked = lru_cache(_MAX_CHECKED)(self._check)
        self._cache: OrderedDict[str, CompiledGrammar] = OrderedDict()  # the most recent is last
        self._compiled_bytes = 0  # of cached grammars and those in use
        self._freed: list[int] = []  # bytes to subtract from them, appended by any thread
        self._lock = threading.Lock()

    def compile(self, grammar: Grammar, param: str, max_tokens: int) -> Callable[[], GuidedOutput]:
        """Return a factory of guided decoding by a grammar; raises the errors of `check`."""
        return self.factory(self.check(grammar, param, max_tokens))

    def factory(self, checked: CheckedGrammar) -> Callable[[], GuidedOutput]:
        """Return a factory of guided decoding by a checked grammar.

        APIError 503 if the grammars of all requests take too much memory.
        """
        with self._lock:  # one compilation at a time
            compiled = self._compiled(checked)
        return lambda: GuidedOutput(self.completions, compiled, checked)

    def check(
        self, grammar: Grammar, param: str, max_tokens: int, limit_param: str = "max_tokens"
    ) -> CheckedGrammar:
        """Check a grammar, and search for an output of at most `max_tokens`.

        APIError 400 if the grammar is invalid, too costly, or needs more tokens. `param` and
        `limit_param` are the request's fields of the grammar and of the limit.
        """
        name = _NAMES[grammar.kind]
        if (size := len(grammar.text.encode())) > limits.GRAMMAR_BYTES:
            raise APIError(
                400,
                f"{param}: a {name} may have {limits.GRAMMAR_BYTES:,} bytes, but this has {size:,}",
                param=param,
            )
        checked = self._checked(grammar)
        if isinstance(checked, str):
            raise APIError(
                400, f"{param}: the {name} is invalid or not supported ({checked})", param=param
            )
        shortest, is_exact = checked.shortest, grammar.kind in ("json", "choice")
        if shortest is None and grammar.kind == "json":
            raise APIError(
                400,
                f"{param}: found no output of at most {MAX_COMPLETION:,} tokens for the {name}",
                param=param,
            )
        if shortest is not None and len(shortest) > max_tokens:
            if is_exact:
                raise APIError(
                    400,
                    f"{param}: the shortest output found for the {name} has {len(shortest)} "
                    f"tokens, but {limit_param} is {max_tokens}; allow more",
                    param=limit_param,
                )
            return dataclasses.replace(checked, shortest=None)
        return checked

    def token_bytes(self, token: int) -> bytes:
        """Return a token's bytes."""
        return bytes(self._tokenizer.decode_bytes([token]))

    def _check(self, grammar: Grammar) -> CheckedGrammar | str:
        """Return the checked grammar, or the error."""
        dropped: list[str] = []
        try:
            if grammar.kind == "json":
                text, matcher, size, dropped = self._check_schema(grammar.text)
            else:
                text = _TRANSLATIONS[grammar.kind](grammar.text)
                matcher, size = self._measure(text)
            if matcher.is_error():
                raise ValueError(str(matcher.get_error()))
            first = matcher.deep_copy()
            self.completions.allowed(first)
            if first.is_error():
                raise ValueError("no output matches it")
        except ValueError as error:
            return str(error)[:_MAX_MESSAGE]
        except RecursionError:
            return "recursion limit exceeded"
        is_json = grammar.kind == "json"
        if grammar.kind == "choice":
            shortest = self._shortest_choice(matcher, json.loads(grammar.text))
        else:
            shortest = self.completions.shortest(matcher, is_json)
        return CheckedGrammar(text, is_json, shortest, size, tuple(dropped))

    def _check_schema(self, text: str) -> tuple[str, LLMatcher, int, list[str]]:
        """Compile the enforceable part of a schema; return also the dropped keywords' pointers."""
        schema, dropped = json.loads(text), list[str]()
        if schema is True:
            schema = {}
        if isinstance(schema, dict):
            schema, dropped = enforceable(schema)
        while True:
            text = LLMatcher.grammar_from_json_schema(json.dumps(schema), overrides=_JSON_OPTIONS)
            matcher, size = self._measure(text)
            if not matcher.is_error() or not isinstance(schema, dict):
                return text, matcher, size, dropped
            less, more = relaxed(schema, str(matcher.get_error()))
            if less == schema:
                return text, matcher, size, dropped
            schema, dropped = less, dropped + more

    def _measure(self, text: str) -> tuple[LLMatcher, int]:
        """Compile a grammar of llguidance; return also its size. ValueError if it costs too much.

        The matcher has an error if the grammar is invalid.
        """
        started_s, start_bytes = time.thread_time(), allocated_bytes()
        matcher = self._matcher(text)
        cpu_s, size = time.thread_time() - started_s, max(0, allocated_bytes() - start_bytes)
        if cpu_s > limits.GRAMMAR_CPU_S:
            raise ValueError(
                f"compiling it takes {cpu_s:.1f} s, but the limit is {limits.GRAMMAR_CPU_S:g} s"
            )
        if size > limits.GRAMMAR_COMPILED_BYTES:
            raise ValueError(
                f"compiled, it takes {size:,} bytes, but the limit is "
                f"{limits.GRAMMAR_COMPILED_BYTES:,}"
            )
        return matcher, size

    def _matcher(self, text: str) -> LLMatcher:
        """Return the matcher of a grammar of llguidance, in its initial state."""
        return LLMatcher(self._tokenizer, text, log_level=0, limits=_STEP_LIMITS)

    def _shortest_choice(self, matcher: LLMatcher, choices: list[str]) -> list[int] | None:
        """Return the tokens of the choice that has the fewest."""
        found = sorted((self._tokenizer.tokenize_str(choice) for choice in choices), key=len)
        return next((each for each in found if self.completions.completes(matcher, each)), None)

    def _compiled(self, checked: CheckedGrammar) -> CompiledGrammar:
        """Return a checked grammar, compiled, from a cache."""
        found = self._cache.pop(checked.text, None)
        if found is None or found.is_exhausted:
            found = None  # frees it
            size = checked.size_bytes + _GROWTH_BYTES
            self._make_room(size)
            found = CompiledGrammar(self._matcher(checked.text), size)
            self._compiled_bytes += size
            weakref.finalize(found, self._freed.append, size)
        self._cache[checked.text] = found
        return found

    def _make_room(self, size: int) -> None:
        """Evict compiled grammars until one of that size fits."""
        while self._cache and self._cached_bytes + size > _MAX_CACHED_BYTES:
            self._cache.popitem(last=False)
        while self._freed:
            self._compiled_bytes -= self._freed.pop()
        if self._compiled_bytes + size > limits.GRAMMARS_BYTES:
            raise APIError(
                503,
                f"the grammars of all requests take {self._compiled_bytes:,} bytes of at most "
                f"{limits.GRAMMARS_BYTES:,}; try again",
                code="too_many_grammars",
                retry_after=1,
            )

    @property
    def _cached_bytes(self) -> int:
        return sum(each.size_bytes for each in self._cache.values())


class GuidedOutput:
    """Guided decoding of one sequence by a grammar: implements engine.decode.GuidedDecoding."""

    def __init__(
        self, completions: GrammarCompletions, compiled: CompiledGrammar, checked: CheckedGrammar
    ) -> None:
        self._completions = completions
        self._compiled = compiled
        self._matcher = compiled.matcher.deep_copy()
        self._is_json = checked.is_json
        self._is_bounded = checked.shortest is not None
        self._rest = list(checked.shortest or ())  # the known completion, which fits
        self._budget = _BUDGET

    def mask(self, logits: Logits) -> Logits:
        """Return logits (V,) with -infinity for every token that the grammar does not allow."""
        allowed = self._completions.allowed(self._matcher)
        if self._matcher.is_error():
            self._compiled.is_exhausted = True
            if self._rest:
                # A limit of llguidance was exceeded: follow the known completion.
                allowed[:] = False
                allowed[self._rest[:1]] = True
        return np.where(allowed, logits, np.float32(-np.inf))

    def force_completion(self, token: int, n_left: int) -> int:
        """Return the token to append: the sampled one, unless no completion would fit after it.

        `n_left` tokens are left, including this one.
        """
        if self._matcher.is_error():
            return self._rest.pop(0) if self._rest else self._end(token)
        if token in self._completions.end_tokens and self._matcher.is_accepting():
            return token
        if not self._is_bounded:
            return token
        self._budget = min(self._budget + _BUDGET_PER_TOKEN, _BUDGET)
        if self._rest[:1] == [token]:
            del self._rest[0]
        elif (rest := self._completion_after(token, n_left - 1)) is not None:
            self._rest = rest
        elif self._rest:
            return self._rest.pop(0)
        else:
            return self._end(token)
        return token

    def accept(self, token: int) -> bool:
        """Append a token; return whether the output is complete."""
        self._matcher.consume_token(token)
        if self._matcher.is_error():  # then the matcher counts as stopped, too
            return not self._rest
        if not self._completions.end_tokens and self._matcher.is_accepting():
            return True  # the vocabulary has no EOS token
        return bool(self._matcher.is_stopped())

    def _end(self, token: int) -> int:
        """Return the EOS token; `token` if the vocabulary has none."""
        return min(self._completions.end_tokens, default=token)

    def _completion_after(self, token: int, limit: int) -> list[int] | None:
        """Return at most `limit` tokens that complete the output after that token."""
        for attempt in range(_N_ATTEMPTS):
            matcher = self._matcher.deep_copy()
            if not matcher.consume_token(token):
                return None
            found = self._completions.find(
                matcher, self._rest, limit, self._budget, attempt, self._is_json
            )
            if found is not None:
                return found if len(found) <= limit else None
            self._budget -= min(limit, self._budget)
        return None


def _from_choices(text: str) -> str:
    """Return a JSON list of strings as a grammar of llguidance."""
    literals = [json.dumps(choice).replace("\x7f", "\\u007f") for choice in json.loads(text)]
    # A terminal: a rule would have a parser item for each choice.
    return LLMatcher.grammar_from_lark(f"start: CHOICE\nCHOICE: {' | '.join(literals)}")


_TRANSLATIONS: Mapping[Kind, Callable[[str], str]] = {
    "regex": LLMatcher.grammar_from_regex,
    "choice": _from_choices,
    "cfg": from_gbnf_or_lark,
}
