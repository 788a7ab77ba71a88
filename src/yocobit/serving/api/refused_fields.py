"""Fields of other servers that would change the answer and are not supported.

They are rejected with an error that names the field, never ignored. Values that have no effect are
accepted, since clients send the defaults of all their fields.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import msgspec

from yocobit.errors import shown
from yocobit.serving.errors import APIError


@dataclasses.dataclass(frozen=True)
class Refused:
    """A refused field."""

    accepted: tuple[Any, ...] = ()  # values without effect
    remedy: str = "leave it out"


_OFF = Refused((False,))
_ZERO = Refused((0,))
_LOGPROBS = "use logprobs and top_logprobs, or logprobs of completions"

REFUSED: Mapping[str, Refused] = {
    # OpenAI
    "audio": Refused(),
    "modalities": Refused((["text"],)),
    "verbosity": Refused(("medium",)),
    "web_search_options": Refused(),
    # Groq
    "compound_custom": Refused(),
    "documents": Refused(([],), "put them into a message"),
    "search_settings": Refused(),
    # vLLM
    "allowed_token_ids": Refused(([],), "use logit_bias"),
    "bad_words": Refused(([],), "use logit_bias"),
    "chat_template": Refused(remedy="that of the model is applied"),
    "logprob_token_ids": Refused(([],), _LOGPROBS),
    "logits_processors": Refused(([],)),
    "prompt_embeds": Refused(([],)),
    "prompt_logprobs": Refused(remedy="use echo with logprobs of completions"),
    "repetition_detection": Refused(),
    "return_prompt_text": _OFF,
    "return_tokens_as_token_ids": Refused((False,), "use return_token_ids"),
    "skip_special_tokens": Refused((True,), "special tokens have no text"),
    "thinking_token_budget": Refused((-1,)),
    "use_beam_search": _OFF,
    "vllm_xargs": Refused(({},)),
    "watermarking": _OFF,
    # llama.cpp
    "adaptive_target": Refused((-1,)),
    "dry_multiplier": _ZERO,
    "dynatemp_range": _ZERO,
    "grammar_lazy": Refused((False,), "a grammar applies from the start"),
    "grammar_triggers": Refused(([],)),
    "lora": Refused(([],)),
    "min_keep": Refused((0, 1)),
    "mirostat": _ZERO,
    "n_cmpl": Refused((1,), "use n"),
    "n_indent": _ZERO,
    "n_probs": Refused((0,), _LOGPROBS),
    "parse_tool_calls": Refused((True,), "leave tools out"),
    "response_fields": Refused(([],)),
    "return_tokens": Refused((False,), "use return_token_ids"),
    "samplers": Refused(),
    "t_max_predict_ms": Refused((0, -1), "use max_tokens"),
    "tfs_z": Refused((1,)),
    "thinking_budget_tokens": Refused((-1,)),
    "top_n_sigma": Refused((0, -1)),
    "typ_p": Refused((1,)),
    "typical_p": Refused((1,)),
    "xtc_probability": _ZERO,
    # Others
    "ebnf": Refused(remedy="use guided_grammar"),
    "no_repeat_ngram_size": _ZERO,
    "num_beams": Refused((1,)),
    "regex": Refused(remedy="use guided_regex"),
    "stop_regex": Refused(([], "")),
    "top_a": _ZERO,
}

# Fields of sampling in chat completions, for protocols that do not have them.
REFUSED_SAMPLING: Mapping[str, Refused] = {
    "cache_salt": Refused(),
    "frequency_penalty": _ZERO,
    "ignore_eos": _OFF,
    "include_stop_str_in_output": _OFF,
    "logit_bias": Refused(([], {})),
    "min_p": _ZERO,
    "min_tokens": _ZERO,
    "n": Refused((1,)),
    "n_predict": Refused(),
    "presence_penalty": _ZERO,
    "repeat_penalty": Refused((1,)),
    "repetition_penalty": Refused((1,)),
    "return_token_ids": _OFF,
    "seed": Refused((-1,)),
    "stop_token_ids": Refused(([],)),
    "truncate_prompt_tokens": Refused(),
}


def refused_chat_fields(constraint: str) -> dict[str, Refused]:
    """Return the other fields of chat completions that the later protocols do not have.

    `constraint` is the remedy for those that constrain the output.
    """
    constraints = (
        *("structured_outputs", "json_schema", "guided_json", "guided_regex", "guided_choice"),
        *("guided_grammar", "guided_whitespace_pattern"),
    )
    return {
        **{name: Refused(remedy=constraint) for name in constraints},
        "grammar": Refused(("",), constraint),
        "response_format": Refused(({"type": "text"},), constraint),
        "add_generation_prompt": Refused((True,)),
        "best_of": Refused((1,)),
        "chat_template_kwargs": Refused(({},)),
        "continue_final_message": _OFF,
        "echo": _OFF,
        "function_call": Refused(("none", "auto"), "use tools"),
        "functions": Refused(([],), "use tools"),
    }


def check_refused(body: bytes, table: Mapping[str, Refused]) -> None:
    """APIError 400 if a JSON object has a field of the table with an effect."""
    for name, raw in msgspec.json.decode(body, type=dict[str, msgspec.Raw]).items():
        if name in table:
            check_value(name, msgspec.json.decode(raw), table[name])


def check_value(name: str, value: Any, refused: Refused) -> None:
    """APIError 400 unless the value of a refused field has no effect."""
    if value is None or value in refused.accepted:
        return
    only = " or ".join(msgspec.json.encode(each).decode() for each in refused.accepted)
    rule = f"{name}: only {only} is supported" if only else f"{name} is not supported"
    raise APIError(400, f"{rule} but it is {shown(value, 40)}; {refused.remedy}", param=name)
