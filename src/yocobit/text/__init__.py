"""Text: tokenizers, encoding and decoding, chat templates and generation_config.json.

The one place where text becomes tokens, and tokens text, in training, evaluation, generation, chat,
the server and the adapters. Never imports torch.
"""

from yocobit.text.detokenizer import Detokenizer
from yocobit.text.encoder import TextEncoder
from yocobit.text.generation_config import GenerationConfig, read_generation_config
from yocobit.text.tokenizer import (
    AddedTokens,
    added_tokens,
    check_lossless,
    n_ids,
    parse_tokenizer,
    read_tokenizer,
)

__all__ = [
    "AddedTokens",
    "Detokenizer",
    "GenerationConfig",
    "TextEncoder",
    "added_tokens",
    "check_lossless",
    "n_ids",
    "parse_tokenizer",
    "read_generation_config",
    "read_tokenizer",
]
