"""The models endpoint: what a server has, under each of its names."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request as HTTPRequest
from starlette.responses import Response

from yocobit.serving.exchange import json_response
from yocobit.serving.service import Service


async def models(request: HTTPRequest) -> Response:
    service = request.app.state.server.ready()
    names = dict.fromkeys((service.name, *service.settings.alias))
    return json_response({"object": "list", "data": [_describe(service, name) for name in names]})


async def model(request: HTTPRequest) -> Response:
    service: Service = request.app.state.server.ready()
    name = request.path_params["name"]
    service.check_model(name)
    return json_response(_describe(service, name))


def _describe(service: Service, name: str) -> dict[str, Any]:
    summary, settings = service.summary, service.settings
    sampling = service.engine.sampling()
    return {
        "id": name,
        "object": "model",
        "created": int(service.engine.model.file.stat().st_mtime),
        "owned_by": "yocobit",
        "active": True,
        "context_window": settings.context,
        "max_completion_tokens": settings.context,
        "yocobit": {
            "parameters": summary.parameters,
            "weights": service.engine.config.weights,
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
            "has_chat_template": service.has_chat_template,
        },
    }
