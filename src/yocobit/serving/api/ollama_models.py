"""The model in Ollama's API: GET api/tags, api/ps and api/version, POST api/show.

A name may end with the tag :latest. Requests that manage models are refused: `yocobit pull` and
`yocobit serve` do that.
"""

from __future__ import annotations

import datetime
import hashlib
from typing import Any, ClassVar

import msgspec
from msgspec import Struct

from yocobit.serving.api.call import Call, Reply
from yocobit.serving.api.protocol import Name
from yocobit.serving.api.served_model import ServedModel
from yocobit.serving.errors import APIError

TAG = ":latest"
VERSION = "0.12.11"  # of the API that is implemented: clients compare it with what they need
_NEVER = "9999-12-31T23:59:59Z"  # the served model is not unloaded


class ShowRequest(Struct, kw_only=True):
    """The body of api/show."""

    model: Name | None = None
    name: Name | None = None  # its earlier name
    verbose: bool | None = None


class ManagementRequest(Struct):
    """The body of a request that is refused: any object."""

    model: ClassVar[None] = None


async def tags(call: Call) -> Reply:
    return Reply({"models": [_describe(call.model, name) for name in call.model.names]})


async def loaded_models(call: Call) -> Reply:
    more = {
        "expires_at": _NEVER,
        "size_vram": 0,
        "context_length": call.model.settings.context,
    }
    return Reply({"models": [{**_describe(call.model, n), **more} for n in call.model.names]})


async def version(call: Call) -> Reply:
    return Reply({"version": VERSION})


def show(model: ServedModel, body: ShowRequest, client: str) -> bytes:
    """Return the description of a model as JSON."""
    name = body.model or body.name
    if not name:
        raise APIError(400, "model is missing; give its name", param="model")
    model.check_name(name)
    engine = model.engine
    template = engine.chat_template.source if model.has_chat_template else ""
    config = engine.config
    capabilities = ["completion", "embedding"]
    if "tools" in template:
        capabilities.append("tools")
    sampling = engine.sampling()
    parameters = {
        "temperature": sampling.temperature,
        "top_k": sampling.top_k,
        "top_p": sampling.top_p,
        "min_p": sampling.min_p,
        "repeat_penalty": sampling.repetition_penalty,
        "num_ctx": model.settings.context,
    }
    described = _describe(model, model.name)
    return msgspec.json.encode(
        {
            "modelfile": f"FROM {model.name}",
            "parameters": "\n".join(f"{name} {value}" for name, value in parameters.items()),
            "template": template,
            "details": described["details"],
            "model_info": {
                "general.architecture": "yocobit",
                "general.parameter_count": model.summary.parameters,
                "yocobit.context_length": model.settings.context,
                "yocobit.embedding_length": config.d_model,
                "yocobit.attention.head_count": config.n_heads,
                "yocobit.attention.head_count_kv": config.n_kv_heads,
                "yocobit.vocab_size": config.vocab_size,
            },
            "capabilities": capabilities,
            "modified_at": described["modified_at"],
        }
    )


def refuse_management(model: ServedModel, body: ManagementRequest, client: str) -> bytes:
    raise _manages_no_models()


async def refuse_deletion(call: Call) -> Reply:
    raise _manages_no_models()


def _manages_no_models() -> APIError:
    return APIError(
        400,
        "this server manages no models: import one with `yocobit pull` and serve it with `yocobit "
        "serve`",
    )


def _describe(model: ServedModel, name: str) -> dict[str, Any]:
    n, weights = model.summary.parameters, model.engine.config.weights
    size = f"{n / 1e9:.1f}B" if n >= 1e9 else f"{n / 1e6:.1f}M"
    changed_at = datetime.datetime.fromtimestamp(
        model.engine.model.file.stat().st_mtime, datetime.timezone.utc
    )
    return {
        "name": name + TAG,
        "model": name + TAG,
        "modified_at": changed_at.isoformat().replace("+00:00", "Z"),
        "size": model.summary.size_bytes,
        "digest": hashlib.sha256(model.identity.encode()).hexdigest(),
        "details": {
            "parent_model": "",
            "format": "safetensors",
            "family": "yocobit",
            "families": ["yocobit"],
            "parameter_size": size,
            "quantization_level": weights,
        },
    }
