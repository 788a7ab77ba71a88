"""GET models, models/ID: the served model under each of its names."""

from __future__ import annotations

from typing import Any

from yocobit.pretrained import ABOUT_TINY, PROMPTS_OF_TINY, TINY
from yocobit.serving.api.call import Call, Reply
from yocobit.serving.api.served_model import ServedModel


async def list_models(call: Call) -> Reply:
    model = call.model
    data = [_describe(model, name) for name in model.names]
    return Reply({"object": "list", "data": data})


async def get_model(call: Call) -> Reply:
    model, name = call.model, call.path_params["id"]
    model.check_name(name)
    return Reply(_describe(model, name))


def _is_tiny(model: ServedModel) -> bool:
    """Whether it is the packaged model."""
    return model.engine.model.path.resolve() == TINY.resolve()


def _describe(model: ServedModel, name: str) -> dict[str, Any]:
    summary, settings = model.summary, model.settings
    sampling = model.engine.sampling()
    return {
        "id": name,
        "object": "model",
        "created": int(model.engine.model.file.stat().st_mtime),
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
