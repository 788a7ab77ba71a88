"""Knowledge distillation from a teacher's logits (BitNet Distillation, arXiv:2510.13998, without
its attention loss).

A teacher is a yocobit run or checkpoint, a directory saved by YocobitForCausalLM, or a directory of
any causal language model of transformers. It has the student's vocabulary and gets its inputs.

Letters: B batch   T positions   N tokens   C width of the teacher   V vocabulary
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Protocol

import torch
from tokenizers import Tokenizer
from torch import Tensor

from yocobit.config import MODEL_TYPE, ConfigError
from yocobit.data.tokenizer import END, read_tokenizer
from yocobit.extras import needs_extra
from yocobit.model import Decoder
from yocobit.packing import checkpoints
from yocobit.packing.checkpoints import CONFIG, STATE, TOKENIZER
from yocobit.reading import boundary, cause, open_regular, read_json
from yocobit.text import n_ids
from yocobit.training import checkpoint
from yocobit.training.config import DistillConfig
from yocobit.training.loss import TeacherOutput


class _TeacherModel(Protocol):
    """A model split into body and head, whose logits can be computed in slices of tokens."""

    vocab_size: int

    def hidden(self, tokens: Tensor, resets: Tensor | None) -> Tensor:
        """Return the input of the head, (B, T, C)."""

    def head(self, hidden: Tensor) -> Tensor:
        """Map hidden (N, C) to logits (N, V)."""


class Teacher:
    """A model without gradients whose next-token distribution the student learns."""

    def __init__(self, config: DistillConfig) -> None:
        self.config = config
        directory = locate(Path(config.teacher))
        self.tokenizer_path = directory / TOKENIZER
        if not self.tokenizer_path.exists():
            raise ConfigError(
                f"{self.tokenizer_path}: no such file; save the teacher's tokenizer next to its "
                "weights"
            )
        self.tokenizer = read_tokenizer(self.tokenizer_path)
        self.sha256 = _hash_weights(directory)
        self.model: _TeacherModel = (
            _YocobitModel(directory) if _is_yocobit(directory) else _TransformersModel(directory)
        )

    def check(self, tokenizer: Tokenizer) -> None:
        """Raise ConfigError unless the student's tokens are the teacher's.

        The teacher may have another name for END, or only a padding row for it. It may have
        additional special tokens.
        """
        name, size = self.config.teacher, n_ids(tokenizer)
        special = self.tokenizer.get_added_tokens_decoder()
        for i in range(max(size, n_ids(self.tokenizer))):
            teacher_token, own_token = self.tokenizer.id_to_token(i), tokenizer.id_to_token(i)
            may_differ = own_token in (END, None) and (teacher_token is None or i in special)
            if teacher_token != own_token and not may_differ:
                raise ConfigError(
                    f"{name}: the teacher's vocabulary is not the run's: token {i} is "
                    f"{teacher_token!r} in the teacher's tokenizer but {own_token!r} in the run's; "
                    "omit data.tokenizer and data.vocab_size to use the teacher's"
                )
        if self.model.vocab_size < size:
            raise ConfigError(
                f"{name}: the teacher's vocabulary must have the tokenizer's {size} tokens but has "
                f"{self.model.vocab_size}"
            )

    # Without gradients there is little to fuse, and a published model may not compile.
    @torch.compiler.disable  # type: ignore[untyped-decorator]
    @torch.no_grad()
    def output(self, tokens: Tensor, resets: Tensor | None) -> TeacherOutput:
        """Return the teacher's output for tokens (B, T)."""
        hidden = self.model.hidden(tokens, resets).flatten(0, 1)  # (B * T, C)
        return TeacherOutput(hidden, self.model.head, self.config.weight, self.config.temperature)


def locate(path: Path) -> Path:
    """Return the directory of a teacher: `path`, or the checkpoint that it names."""
    if (path / CONFIG).is_file() and not _is_yocobit(path):
        return path
    return checkpoints.find(path)


def _is_yocobit(directory: Path) -> bool:
    """Whether a directory is a checkpoint, a packed model, or saved by YocobitForCausalLM."""
    if (directory / STATE).is_file():
        return True
    path = directory / CONFIG
    try:
        return read_json(path).get("model_type") == MODEL_TYPE
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from None


def _hash_weights(directory: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(directory.glob("model*.safetensors")):
        with open_regular(path) as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


class _YocobitModel:
    def __init__(self, directory: Path) -> None:
        self.decoder: Decoder = checkpoint.load_model(directory).eval().requires_grad_(False)
        self.vocab_size = self.decoder.config.vocab_size

    def hidden(self, tokens: Tensor, resets: Tensor | None) -> Tensor:
        return self.decoder.hidden(tokens, resets)

    def head(self, hidden: Tensor) -> Tensor:
        return self.decoder.logits(hidden)


class _TransformersModel:
    def __init__(self, directory: Path) -> None:
        try:
            from transformers import AutoModelForCausalLM
        except ModuleNotFoundError:
            raise needs_extra("hf", f"{directory}: this teacher needs transformers") from None
        try:
            with boundary(directory, "cannot be read as a causal model"):
                model: Any = AutoModelForCausalLM.from_pretrained(
                    directory, dtype=torch.float32, local_files_only=True, use_safetensors=True
                )
        except OSError as error:  # transformers raises it for many causes, on several lines
            raise ConfigError(
                f"{directory}: cannot be read as a causal model ({cause(error)})"
            ) from None
        self.model = model.eval().requires_grad_(False)
        self.body = self.model.base_model
        with boundary(directory, "cannot be a teacher"):
            self._check(directory)

    def _check(self, directory: Path) -> None:
        """Raise ConfigError unless body and head in sequence give the logits of the model."""
        tokens = torch.arange(4)[None]
        with torch.no_grad():
            self.output_type = type(self.body(input_ids=tokens, use_cache=False))
            expected = self.model(input_ids=tokens, use_cache=False).logits[0]
            found = self.head(self.hidden(tokens, None)[0])
        self.vocab_size = expected.shape[-1]
        if not torch.allclose(found, expected, rtol=1e-4, atol=1e-4):
            raise ConfigError(
                f"{directory}: cannot be a teacher: its logits depend on more than the last hidden "
                "states"
            )

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
        # Through the whole model with its body replaced: some models scale or cap their logits.
        output = self.output_type(last_hidden_state=hidden[None])
        self.body.forward = lambda *_, **__: output
        try:
            dummy = torch.zeros(1, len(hidden), dtype=torch.int64)
            return self.model(input_ids=dummy, use_cache=False).logits[0]
        finally:
            del self.body.forward
