"""Distillation: a teacher's logits beside the text's next tokens (BitNet Distillation,
arXiv:2510.13998, without its attention loss).

A teacher is a run or checkpoint of ours, what YocobitForCausalLM saves, or a directory with any
causal language model of `transformers`. It has the student's vocabulary and sees the same
positions.

Letters: B batch   T positions   N tokens   C width of the teacher   V vocabulary
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Protocol

import torch
from tokenizers import Tokenizer
from torch import Tensor

from yocobit.config import MODEL_TYPE, ConfigError
from yocobit.data.tokenizer import END, read_tokenizer
from yocobit.model import Decoder
from yocobit.training import checkpoint
from yocobit.training.config import DistillConfig
from yocobit.training.loss import Guidance

TOKENIZER = "tokenizer.json"


class _Reader(Protocol):
    """A model in two halves, so that its logits can be made a slice at a time."""

    vocab_size: int

    def hidden(self, tokens: Tensor, resets: Tensor | None) -> Tensor:
        """Return what the head reads, (B, T, C)."""

    def head(self, hidden: Tensor) -> Tensor:
        """Map hidden (N, C) to logits (N, V)."""


class Teacher:
    """A model without gradients that says how likely it holds every next token."""

    def __init__(self, config: DistillConfig) -> None:
        self.config = config
        directory = locate(Path(config.teacher))
        self.tokenizer_path = directory / TOKENIZER
        if not self.tokenizer_path.exists():
            raise ConfigError(f"{self.tokenizer_path}: no such file; save the teacher's tokenizer "
                              "beside its weights")  # fmt: skip
        self.tokenizer = read_tokenizer(self.tokenizer_path)
        self.sha256 = _hash_weights(directory)
        self.reader: _Reader = (
            _OurReader(directory) if _is_ours(directory) else _HuggingFaceReader(directory)
        )

    def check(self, tokenizer: Tokenizer) -> None:
        """Refuse to teach a student that reads other tokens.

        END may have another name or be one of the rows that pad the teacher's vocabulary, which may
        have special tokens beyond the student's.
        """
        name, size = self.config.teacher, tokenizer.get_vocab_size()
        special = self.tokenizer.get_added_tokens_decoder()
        for i in range(max(size, self.tokenizer.get_vocab_size())):
            there, here = self.tokenizer.id_to_token(i), tokenizer.id_to_token(i)
            may_differ = here in (END, None) and (there is None or i in special)
            if there != here and not may_differ:
                raise ConfigError(
                    f"{name}: the teacher's vocabulary is not the run's: token {i} is {there!r} "
                    f"there but {here!r} here; leave out data.tokenizer and data.vocab_size to "
                    "take the teacher's tokenizer"
                )
        if self.reader.vocab_size < size:
            raise ConfigError(
                f"{name}: the teacher's vocabulary must have the tokenizer's {size} tokens but has "
                f"{self.reader.vocab_size}"
            )

    # It has no gradient to fuse, and may be anyone's code.
    @torch.compiler.disable  # type: ignore[untyped-decorator]
    @torch.no_grad()
    def guide(self, tokens: Tensor, resets: Tensor | None) -> Guidance:
        """Return what the teacher says of tokens (B, T)."""
        hidden = self.reader.hidden(tokens, resets).flatten(0, 1)  # (B * T, C)
        return Guidance(hidden, self.reader.head, self.config.weight, self.config.temperature)


def locate(path: Path) -> Path:
    """Return the directory of a teacher: `path`, or the checkpoint that it stands for."""
    if (path / checkpoint.CONFIG).is_file() and not _is_ours(path):
        return path
    return checkpoint.find(path)


def _is_ours(directory: Path) -> bool:
    """Whether it is a checkpoint, a packed model, or what YocobitForCausalLM saves."""
    if (directory / checkpoint.STATE).is_file():
        return True
    path = directory / checkpoint.CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read ({error})") from None
    return isinstance(config, dict) and config.get("model_type") == MODEL_TYPE


def _hash_weights(directory: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(directory.glob("model*.safetensors")):
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


class _OurReader:
    def __init__(self, directory: Path) -> None:
        self.model: Decoder = checkpoint.load_model(directory).eval().requires_grad_(False)
        self.vocab_size = self.model.config.vocab_size

    def hidden(self, tokens: Tensor, resets: Tensor | None) -> Tensor:
        return self.model.hidden(tokens, resets)

    def head(self, hidden: Tensor) -> Tensor:
        return self.model.head(hidden)


class _HuggingFaceReader:
    def __init__(self, directory: Path) -> None:
        try:
            from transformers import AutoModelForCausalLM
        except ModuleNotFoundError:
            raise ConfigError(
                f"{directory}: a teacher of transformers needs it: pip install 'yocobit[hf]'"
            ) from None
        try:
            model: Any = AutoModelForCausalLM.from_pretrained(
                directory, dtype=torch.float32, local_files_only=True, use_safetensors=True
            )
        except (OSError, ValueError) as error:
            line = str(error).strip().splitlines()[0]
            raise ConfigError(f"{directory}: cannot be read as a causal model ({line})") from None
        self.model = model.eval().requires_grad_(False)
        self.body = self.model.base_model
        self._check(directory)

    def _check(self, directory: Path) -> None:
        """Try both halves; what the head is of a model is its own business, and may be odd."""
        tokens = torch.arange(4)[None]
        with torch.no_grad():
            self.output_type = type(self.body(input_ids=tokens, use_cache=False))
            expected = self.model(input_ids=tokens, use_cache=False).logits[0]
            found = self.head(self.hidden(tokens, None)[0])
        self.vocab_size = expected.shape[-1]
        if not torch.allclose(found, expected, rtol=1e-4, atol=1e-4):
            raise ConfigError(f"{directory}: cannot be a teacher: its logits depend on more than "
                              "the last hidden states")  # fmt: skip

    def hidden(self, tokens: Tensor, resets: Tensor | None) -> Tensor:
        if resets is None:
            return self.body(input_ids=tokens, use_cache=False).last_hidden_state
        rows = []
        for row, starts in zip(tokens, resets, strict=True):
            first = starts.nonzero().flatten().tolist()
            sizes = torch.tensor([0, *first, len(row)]).diff().tolist()
            parts = [self.hidden(part[None], None)[0] for part in row.split(sizes) if len(part)]
            rows.append(torch.cat(parts))
        return torch.stack(rows)

    def head(self, hidden: Tensor) -> Tensor:
        # Through the whole model with its body replaced: some scale or bound their logits.
        output = self.output_type(last_hidden_state=hidden[None])
        self.body.forward = lambda *_, **__: output
        try:
            dummy = torch.zeros(1, len(hidden), dtype=torch.int64)
            return self.model(input_ids=dummy, use_cache=False).logits[0]
        finally:
            del self.body.forward
