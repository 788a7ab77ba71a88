"""GET models, models/ID: the served model under each of its names.

OpenAI and Anthropic define these paths differently: clients of Anthropic's API receive its shape.
"""

from __future__ import annotations

import datetime
from typing import Annotated, Any

from msgspec import Meta, Struct

from yocobit.errors import shown
from yocobit.pretrained import ABOUT_TINY, PROMPTS_OF_TINY, TINY
from yocobit.serving.api.call import Call, Reply
from yocobit.serving.api.protocol import Name
from yocobit.serving.api.served_model import ServedModel
from yocobit.serving.errors import APIError


class ModelPage(Struct, kw_only=True):
    """The query of models in Anthropic's API; OpenAI's has none and lists all models."""

    limit: Annotated[int, Meta(ge=1, le=1000)] = 20
    after_id: Name | None = None
    before_id: Name | None = None


async def list_models(call: Call) -> Reply:
    model = call.model
    if call.is_anthropic:
        return Reply(_page(model, call.query))
    data = [_describe(model, name) for name in model.names]
    return Reply({"object": "list", "data": data})


async def get_model(call: Call) -> Reply:
    model, name = call.model, call.path_params["id"]
    model.check_name(name)
    return Reply((_describe_to_anthropic if call.is_anthropic else _describe)(model, name))


def _page(model: ServedModel, page: ModelPage) -> dict[str, Any]:
    """Return a page of the models after `after_id` and before `before_id`.

    It has the last of them if `before_id` is set, otherwise the first.
    """
    names = list(model.names)
    for field in ("after_id", "before_id"):
        name = getattr(page, field)
        if name is not None and name not in names:
            raise APIError(400, f"{field}: there is no model {shown(name)}", param=field)
    if page.after_id is not None:
        names = names[names.index(page.after_id) + 1 :]
    if page.before_id is not None:
        names = names[: names.index(page.before_id)] if page.before_id in names else []
    found = names[-page.limit :] if page.before_id is not None else names[: page.limit]
    return {
        "data": [_describe_to_anthropic(model, name) for name in found],
        "first_id": found[0] if found else None,
        "last_id": found[-1] if found else None,
        "has_more": len(found) < len(names),
    }


def _describe_to_anthropic(model: ServedModel, name: str) -> dict[str, Any]:
    changed_at = datetime.datetime.fromtimestamp(_changed_at(model), datetime.timezone.utc)
    return {
        "type": "model",
        "id": name,
        "display_name": name,
        "created_at": changed_at.isoformat().replace("+00:00", "Z"),
        "max_input_tokens": model.settings.context,
        "max_tokens": model.settings.context,
        "capabilities": None,  # an object of features of Anthropic's servers
        "line": None,
        "lifecycle": "active",
        "deprecated_at": None,
        "retires_at": None,
    }


def _changed_at(model: ServedModel) -> int:
    return int(model.engine.model.file.stat().st_mtime)


def _is_tiny(model: ServedModel) -> bool:
    """Whether it is the packaged model."""
    return model.engine.model.path.resolve() == TINY.resolve()


def _describe(model: ServedModel, name: str) -> dict[str, Any]:
    summary, settings = model.summary, model.settings
    sampling = model.engine.sampling()
    return {
        "id": name,
        "object": "model",
        "created": _changed_at(model),
        "owned_by": "yocobit",
        "active": True,
        "context_window": settings.context,
        "max_model_len": settings.context,  # vLLM's name
        "max_completion_tokens": settings.context,
        "yocobit": {
            "parameters": summary.parameters,
            "weights": model.engine.config.weights,
            "model_bytes": summary.size_bytes,
            "cache": settings.cache,
            "cache_bytes_per_token": summary.cache_bytes_per_token[settings.cache],
            "transformer_cache_bytes_per_token": summary.transformer_cache_bytes_per_token[
                settings.cache
            ],
            "state_bytes": summary.state_bytes[settings.cache],
            "sampling": {
                name: getattr(sampling, name)
                for name in ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
            },
            "has_chat_template": model.has_chat_template,
            **({"about": ABOUT_TINY, "prompts": PROMPTS_OF_TINY} if _is_tiny(model) else {}),
        },
    }
