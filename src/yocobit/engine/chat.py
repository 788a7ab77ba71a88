"""Chat: a multi-turn conversation with a model that has a chat template."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

import msgspec

from yocobit.config import ConfigError
from yocobit.costs import summarize
from yocobit.disk import claim_file, replacing
from yocobit.engine.engine import Engine
from yocobit.engine.generation import Generation
from yocobit.engine.sampling import SamplingConfig
from yocobit.engine.session import DEFAULT_CACHE, CacheType, Session
from yocobit.errors import UserError
from yocobit.reading import parse_json, read_json

_MOST_CONTEXT = 1 << 40  # the limit of a session


class _Message(msgspec.Struct, frozen=True):
    role: Literal["system", "user", "assistant"]
    content: str


class _Saved(msgspec.Struct, frozen=True):
    messages: list[_Message]


def _is_saved(content: bytes) -> bool:
    try:
        parse_json(content, "chat", _Saved)
    except ConfigError:
        return False
    return True


class Chat:
    """Keeps the messages and one session; each reply prefills only the new tokens.

    ```python
    chat = Chat(Engine.load())
    for piece in chat.reply("Tell me about the sea."):
        print(piece, end="", flush=True)
    ```
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
        self.max_tokens = max_tokens  # of a reply
        self.sampling = sampling or engine.sampling()  # of the next reply
        self.system = system  # the system message, or None without one
        self._cache: CacheType = cache
        self._summary = summarize(engine.model)
        self._template = engine.chat_template
        self._n_replies = 0
        self.clear()

    @property
    def messages(self) -> list[dict[str, str]]:
        """All messages so far, including the generated part of the last reply."""
        return [*self._system_message(), *self._messages, *self._last_reply()]

    @property
    def last_reply(self) -> Generation | None:
        """The last reply, or None before the first one."""
        return self._reply

    @property
    def n_tokens(self) -> int:
        """Number of tokens in the session."""
        return self._session.position

    @property
    def cache_bytes(self) -> int:
        """Bytes reserved for the conversation's caches and states."""
        return self._session.memory().total

    @property
    def used_cache_bytes(self) -> int:
        """Bytes of the KV cache of the tokens so far, and of the recurrent states."""
        per_token = self._summary.cache_bytes_per_token[self._cache]
        return self.n_tokens * per_token + self._summary.state_bytes[self._cache]

    @property
    def transformer_cache_bytes(self) -> int:
        """Bytes of the KV cache of the tokens so far in a Transformer of the same shape."""
        return self.n_tokens * self._summary.transformer_cache_bytes_per_token[self._cache]

    def clear(self) -> None:
        """Drop all messages except the system message."""
        self._messages: list[dict[str, str]] = []
        self._reply: Generation | None = None
        self._session: Session = self.engine.session(self.context, self._cache)

    def withdraw(self) -> str:
        """Remove the last message and its reply; return the message."""
        if self._reply is None and self._roles()[-2:] == ["user", "assistant"]:  # of load()
            self._messages.pop()
        elif self._reply is None:
            raise UserError("there is no message to withdraw yet")
        self._reply = None
        return self._messages.pop()["content"]

    def save(self, path: Path) -> None:
        """Write the messages to a JSON file, in the form of a conversation in training data.

        ConfigError for a file that is no saved conversation.
        """
        claim_file(path, _is_saved, "a saved conversation")
        data = msgspec.json.format(msgspec.json.encode({"messages": self.messages}))
        with replacing(path) as partial:
            partial.write_bytes(data + b"\n")

    def load(self, path: Path) -> None:
        """Continue the conversation of a file that save() wrote.

        ConfigError, with nothing changed, if the file holds no messages of system, user and
        assistant.
        """
        saved = [{"role": m.role, "content": m.content} for m in read_json(path, _Saved).messages]
        system = None
        if saved and saved[0]["role"] == "system":
            system = saved.pop(0)["content"]
        if any(message["role"] == "system" for message in saved):
            raise ConfigError(f"{path}: a system message must be the first one")
        self.clear()
        self.system, self._messages = system, saved

    def reply(self, message: str) -> Generation:
        """Return the reply to a message, as an iterator over pieces of text.

        The pieces that were iterated over join the conversation, even if the iteration stops early.
        UserError, with nothing changed, if the context is full.
        """
        added = [*self._messages, *self._last_reply(), {"role": "user", "content": message}]
        prompt = self.engine.encode(self._template.render([*self._system_message(), *added]))
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
        sampling = dataclasses.replace(self.sampling, seed=self.sampling.seed + self._n_replies)
        self._n_replies += 1
        self._session, self._messages = session, added
        self._reply = self.engine.stream(
            prompt,
            max_tokens=min(self.max_tokens, room),
            stop=self.engine.stop_strings,
            sampling=sampling,
            session=session,
        )
        return self._reply

    def _roles(self) -> list[str]:
        return [message["role"] for message in self._messages]

    def _system_message(self) -> list[dict[str, str]]:
        return [] if self.system is None else [{"role": "system", "content": self.system}]

    def _last_reply(self) -> list[dict[str, str]]:
        if self._reply is None:
            return []
        return [{"role": "assistant", "content": self._reply.text.strip()}]

    def _consumed(self) -> list[int]:
        """Return the tokens that the session holds."""
        if self._reply is None:
            return []
        return [*self._reply.prompt, *self._reply.tokens][: self._session.position]
