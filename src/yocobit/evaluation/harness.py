"""Packed models in lm-evaluation-harness (extra `eval`), as the model "yocobit".

    python -m yocobit.evaluation.harness --model yocobit --model_args pretrained=MODEL --tasks TASK

Started this way, the harness also loads checkpoints with `--model hf` if transformers is
installed. Each request runs in its own session; the model's BOS token, if it has one, precedes its
text. In a model without one, the EOS token precedes an empty context.

As in the server, only the chat template writes special tokens: those that a text or a message
spells are plain text.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from tqdm import tqdm

from yocobit.engine import Engine
from yocobit.engine.session import CacheType
from yocobit.errors import UserError
from yocobit.evaluation.native import NativeScorer
from yocobit.evaluation.perplexity import CONTEXT

_MAX_NEW_TOKENS = 256  # for tasks without max_gen_toks


class _Chat(str):
    """A rendered conversation, and what it was rendered from.

    The harness keeps the object; with --cache_requests it pickles it, which Prompt does not allow.
    """

    messages: list[dict[str, str]]
    variables: dict[str, bool]


@register_model("yocobit")
class HarnessModel(TemplateLM):  # type: ignore[misc]
    """Runs the harness's requests in the engine; batch size and device have no effect."""

    def __init__(
        self,
        pretrained: str,
        max_length: int = CONTEXT,
        threads: int | None = None,
        cache: CacheType = "f32",
        attention: str | None = None,
        exact: bool = False,
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,
        device: str | None = None,
    ) -> None:
        """Open the packed model `pretrained`; requests keep at most `max_length` tokens."""
        super().__init__()
        self.max_length = max_length
        self._engine = Engine.load(
            Path(pretrained), threads=threads, attention=attention, exact=exact
        )
        self._scorer = NativeScorer(self._engine, cache)
        self._cache = cache

    @property
    def eot_token_id(self) -> int:
        return self._scorer.bos_token

    @property
    def tokenizer_name(self) -> str:
        return str(self._engine.model.path)

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **kwargs: Any
    ) -> list[int]:
        """Tokenize a text, after the model's BOS token, if any, unless add_special_tokens=False."""
        if isinstance(string, _Chat):
            return self._encode_chat(string, "")
        bos, tokens = self._engine.bos_token, self._scorer.encode(string)
        return tokens if bos is None or add_special_tokens is False else [bos, *tokens]

    def _encode_chat(self, chat: _Chat, continuation: str | None) -> list[int]:
        """Tokenize a conversation and its continuation; None removes blanks at the end."""
        template = self._engine.chat_template

        def render(messages: Any, *, continuation: str | None, **variables: Any) -> str:
            text = template.render(messages, **variables)
            return text.rstrip() if continuation is None else text + continuation

        return self._engine.encode_chat(
            chat.messages, render=render, continuation=continuation, **chat.variables
        )

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Split the tokens of a text into those of context and continuation.

        A continuation whose text is part of the last token of the context is encoded alone.
        """
        if isinstance(context, _Chat):
            before, whole = (self._encode_chat(context, text) for text in (None, continuation))
            after = whole[len(before) :]
        else:
            before, after = super()._encode_pair(context, continuation)
        after = after or self.tok_encode(continuation, add_special_tokens=False)
        return before or [self.prefix_token_id], after

    def loglikelihood(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        """Return log p of continuations, and whether greedy decoding would produce them."""
        for request in requests:
            if not request.args[1]:
                raise UserError("request: the continuation must not be empty but is ''")
        answers: list[tuple[float, bool]] = super().loglikelihood(requests, disable_tqdm)
        return answers

    def _loglikelihood_tokens(
        self,
        requests: Sequence[tuple[Any, list[int], list[int]]],
        disable_tqdm: bool = False,
        **kwargs: Any,
    ) -> list[tuple[float, bool]]:
        answers = []
        for request, context, continuation in tqdm(requests, disable=disable_tqdm):
            if not 0 < len(continuation) <= self.max_length:
                raise UserError(
                    f"request: the continuation must have 1 to {self.max_length} tokens but has "
                    f"{len(continuation)}; raise max_length"
                )
            tokens = (context + continuation)[-(self.max_length + 1) :]
            nats, is_greedy = 0.0, True
            n_context = max(1, len(tokens) - len(continuation))
            targets = np.asarray(tokens[n_context:])
            for chunk, argmax in self._scorer.chunks(tokens, n_context):
                nats += float(chunk.sum())
                is_greedy &= bool((argmax == targets[: len(chunk)]).all())
                targets = targets[len(chunk) :]
            answers.append((-nats, is_greedy))
            if request is not None:
                self.cache_hook.add_partial("loglikelihood", request, answers[-1])
        return answers

    def loglikelihood_rolling(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[float]:
        """Return log p of whole texts, in windows of max_length tokens with one token overlap.

        As in the model "hf", the BOS token of the text, if the model has one, is scored too.
        """
        answers = []
        for (text,) in tqdm([request.args for request in requests], disable=disable_tqdm):
            windows = get_rolling_token_windows(
                token_list=self.tok_encode(text),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
            parts = [(None, *make_disjoint_window(window)) for window in windows]
            answers.append(sum(nats for nats, _ in self._loglikelihood_tokens(parts, True)))
            self.cache_hook.add_partial("loglikelihood_rolling", (text,), answers[-1])
        return answers

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Complete texts up to a stop string, the EOS token or the maximum number of tokens."""
        answers = []
        for text, settings in tqdm([request.args for request in requests], disable=disable_tqdm):
            kwargs = normalize_gen_kwargs(settings, _MAX_NEW_TOKENS)
            max_tokens = kwargs["max_gen_toks"]
            if max_tokens >= self.max_length:
                raise UserError(
                    f"request: max_gen_toks must be below max_length = {self.max_length} but is "
                    f"{max_tokens}; raise max_length"
                )
            sampling = {k: kwargs[k] for k in ("top_k", "top_p", "min_p") if k in kwargs}
            prompt = self.tok_encode(text) or [self.prefix_token_id]
            generation = self._engine.stream(
                prompt[max_tokens - self.max_length :],
                max_tokens=max_tokens,
                stop=[stop for stop in kwargs["until"] if stop],
                cache=self._cache,
                sampling=self._engine.sampling(
                    temperature=kwargs.get("temperature", 0.0), **sampling
                ),
            )
            answers.append("".join(generation))
            self.cache_hook.add_partial("generate_until", (text, settings), answers[-1])
        return answers

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """Render a conversation; without a generation prompt, it ends with the last message."""
        variables = {"continue_final_message": not add_generation_prompt}
        chat = _Chat(self._engine.chat_template.render(chat_history, **variables))
        chat.messages, chat.variables = chat_history, variables
        return chat

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """Return the source of the model's template, which the harness stores with results."""
        return self._engine.chat_template.source if chat_template else None


if __name__ == "__main__":
    from lm_eval.__main__ import cli_evaluate

    with contextlib.suppress(ModuleNotFoundError):
        import yocobit.hf  # noqa: F401
    cli_evaluate()
