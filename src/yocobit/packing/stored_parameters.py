"""The weight format of each parameter of a packed model, and the tensors that store it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from yocobit.config import ConfigError, ModelConfig
from yocobit.errors import shown
from yocobit.mixers import Parameter, Role, model_parameters
from yocobit.packing.file_format import TensorSpec
from yocobit.packing.formats import (
    F32,
    FORMATS,
    HEAD_FORMATS,
    INT8,
    TABLES,
    WeightFormat,
    formats_of,
    head_format,
    projection_format,
)


class StoredParameter(NamedTuple):
    """A parameter and the format that stores it."""

    format: WeightFormat
    shape: tuple[int, ...]
    role: Role


def stored_parameters(
    config: ModelConfig,
    weights: str | None = None,
    head: str | None = None,
    formats: Mapping[str, WeightFormat] | None = None,
) -> dict[str, StoredParameter]:
    """Return each parameter of a packed model with its format, in the order of the file.

    `weights` and `head` name formats. None is the model's default for the projections; for the
    head it is int8, or the format of dense projections. The embedding has the format of the head
    if that is "f16" or "f32", and int8 otherwise. A tied head has an entry only if its format
    differs from that of the embedding. `formats` replaces those of single parameters. ConfigError
    for unknown formats, those of other weights, and those that do not store the parameter.
    """
    possible = formats_of(config.weights)
    projection = possible[0] if weights is None else projection_format(weights)
    if projection not in possible:
        names = " or ".join(format.name for format in possible)
        raise ConfigError(
            f"weights must be {names} for a model with {config.weights} weights but is {weights!r}"
        )
    default = INT8 if projection.is_integer else projection
    head_stored = default if head is None else head_format(head)
    by_role: dict[Role, WeightFormat] = {
        "projection": projection,
        "embedding": _embedding(head_stored),
        "head": head_stored,
        "norm": F32,
        "bias": F32,
        "float": F32,
    }
    formats = formats or {}
    parameters = model_parameters(config)
    if config.tie_embeddings and head is None and "embedding.weight" in formats:
        by_role["head"] = formats["embedding.weight"]
    tables = [formats.get(f"{role}.weight", by_role[role]) for role in TABLES]
    if config.tie_embeddings and tables[0] is not tables[1]:
        parameters["head.weight"] = Parameter((config.vocab_size, config.d_model), "head")
    for name, format in formats.items():
        if name not in parameters:
            raise ConfigError(f"formats must name parameters of the model but has {shown(name)}")
        if (role := parameters[name].role) not in format.roles:
            storing = [each.name for each in FORMATS.values() if role in each.roles]
            raise ConfigError(
                f"format of '{name}' must be {' or '.join(storing)} but is {format.name}"
            )
    return {
        name: StoredParameter(
            formats.get(name, by_role[parameter.role]), parameter.shape, parameter.role
        )
        for name, parameter in parameters.items()
    }


def _embedding(head: WeightFormat) -> WeightFormat:
    """Return the format of the embedding in a model with that head."""
    return head if "embedding" in head.roles else INT8


def parameters_by_dtype(
    config: ModelConfig,
    dtypes: Mapping[str, str],
    formats: Mapping[str, WeightFormat] | None = None,
) -> dict[str, StoredParameter]:
    """Return the parameters with the formats that the dtypes of their tensors imply.

    `formats` are those of single parameters, as in stored_parameters.
    """
    formats = formats or {}

    def is_stored_in(name: str, format: WeightFormat) -> bool:
        return name in formats or dtypes.get(name) == format.dtype

    roles = {name: parameter.role for name, parameter in model_parameters(config).items()}
    projections = [name for name, role in roles.items() if role == "projection"]
    own = next((name for name in projections if name not in formats), projections[0])
    possible = formats_of(config.weights)
    weights = next((each.name for each in possible if is_stored_in(own, each)), None)
    head_name = "head.weight" if "head.weight" in dtypes else "embedding.weight"
    heads = (
        format.name
        for format in HEAD_FORMATS.values()
        if is_stored_in(head_name, format) and is_stored_in("embedding.weight", _embedding(format))
    )
    # A tied head without a tensor has the recorded format of the embedding.
    has_own_format = head_name == "head.weight" or head_name not in formats
    head = next(heads, None) if has_own_format or not config.tie_embeddings else None
    return stored_parameters(config, weights, head, formats)


def formats_to_record(
    config: ModelConfig, parameters: Mapping[str, StoredParameter]
) -> dict[str, str]:
    """Return the names of the formats that parameters_by_dtype cannot infer."""
    specs = tensors_of(parameters)
    found = parameters_by_dtype(config, {name: specs[name].dtype for name in parameters})
    return {
        name: stored.format.name for name, stored in parameters.items() if found.get(name) != stored
    }


def expected_tensors(
    config: ModelConfig, weights: str | None = None, head: str | None = None
) -> dict[str, TensorSpec]:
    """Return dtype and shape of every tensor in the file; arguments as in stored_parameters."""
    return tensors_of(stored_parameters(config, weights, head))


def tensors_of(parameters: Mapping[str, StoredParameter]) -> dict[str, TensorSpec]:
    """Return dtype and shape of the tensors that store the parameters, in their order."""
    tensors: dict[str, TensorSpec] = {}
    for name, stored in parameters.items():
        tensors |= stored.format.tensors(name, stored.shape)
    return tensors
