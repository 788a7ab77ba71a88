"""Chat: a multi-turn conversation with a model that has a chat template."""

from __future__ import annotations

import dataclasses

from yocobit.config import ConfigError
from yocobit.costs import summarize
from yocobit.engine.engine import Engine
from yocobit.engine.generation import Generation
from yocobit.engine.sampling import SamplingConfig
from yocobit.engine.session import DEFAULT_CACHE, CacheType, Session
from yocobit.errors import UserError

_MOST_CONTEXT = 1 << 40  # the limit of a session


class Chat:
    """Keeps the messages and one session; each reply prefills only the new tokens.

    chat = Chat(Engine.load())
    for piece in chat.reply("Tell me about the sea."):
        print(piece, end="", flush=True)
    """

    def __init__(
        self,
        engine: Engine,
        *,
        system: str | None = None,
        context: int = 8192,
        max_tokens: int = 512,
        cache: CacheType = DEFAULT_CACHE,
        sampling: SamplingConfig | None = None,
    ) -> None:
        """Start a conversation of at most `context` tokens, with replies of at most `max_tokens`.

        ConfigError if the model has no chat template or `context` is out of range.
        """
        if not 1 <= context <= _MOST_CONTEXT:
            raise ConfigError(f"context must be between 1 and 2^40 but is {context}")
        self.engine = engine
        self.context = context
        self._max_tokens = max_tokens
        self._cache: CacheType = cache
        self._sampling = sampling or engine.sampling()
        self._template = engine.chat_template
        self._system = [] if system is None else [{"role": "system", "content": system}]
        self._n_replies = 0
        self.clear()

    @property
    def messages(self) -> list[dict[str, str]]:
        """All messages so far, including the generated part of the last reply."""
        return [*self._messages, *self._last_reply()]

    @property
    def n_tokens(self) -> int:
        """Number of tokens in the session."""
        return self._session.position

    @property
    def cache_bytes(self) -> int:
        """Bytes reserved for the conversation's caches and states."""
        return self._session.memory().total

    @property
    def transformer_cache_bytes(self) -> int:
        """Bytes of the KV cache that a Transformer of the same shape would reserve."""
        per_token = summarize(self.engine.model).transformer_cache_bytes_per_token[self._cache]
        return self.context * per_token

    def clear(self) -> None:
        """Drop all messages except the system message."""
        self._messages = list(self._system)
        self._reply: Generation | None = None
        self._session: Session = self.engine.session(self.context, self._cache)

    def withdraw(self) -> str:
        """Remove the last message and its reply; return the message."""
        if self._reply is None:
            raise UserError("there is no message to withdraw yet")
        self._reply = None
        return self._messages.pop()["content"]

    def reply(self, message: str) -> Generation:
        """Return the reply to a message, as an iterator over pieces of text.

        The pieces that were iterated over join the conversation, even if the iteration stops early.
        UserError, with nothing changed, if the context is full.
        """
        messages = [*self.messages, {"role": "user", "content": message}]
        prompt = self.engine.encode(self._template.render(messages))
        room = self.context - len(prompt)
        if room < 1:
            raise UserError(
                f"the conversation has {len(prompt)} tokens but its context is {self.context}; "
                "start a new one, or choose a larger context"
            )
        session = self._session
        if prompt[: session.position] != self._consumed() or session.position == len(prompt):
            session = self.engine.session(self.context, self._cache)
        # A regenerated reply must differ.
        sampling = dataclasses.replace(self._sampling, seed=self._sampling.seed + self._n_replies)
        self._n_replies += 1
        self._session, self._messages = session, messages
        self._reply = self.engine.stream(
            prompt,
            max_tokens=min(self._max_tokens, room),
            stop=self.engine.stop_strings,
            sampling=sampling,
            session=session,
        )
        return self._reply

    def _last_reply(self) -> list[dict[str, str]]:
        if self._reply is None:
            return []
        return [{"role": "assistant", "content": self._reply.text.strip()}]

    def _consumed(self) -> list[int]:
        """Return the tokens that the session holds."""
        if self._reply is None:
            return []
        return [*self._reply.prompt, *self._reply.tokens][: self._session.position]
