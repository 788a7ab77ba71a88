"""The report of an import: warnings, and one line about the packed model."""

from __future__ import annotations

import math
from collections.abc import Collection

from yocobit.costs.traffic import decode_bytes
from yocobit.importers.checkpoint import Checkpoint
from yocobit.packing.file_format import CHAT_TEMPLATE, TOKENIZER
from yocobit.packing.formats import F32, TABLES, WeightFormat
from yocobit.packing.reader import PackedModel
from yocobit.packing.scales import PerGroup, PerRow, PerTensor
from yocobit.packing.stored_parameters import tensors_of


def warnings_of(checkpoint: Checkpoint, model: PackedModel) -> list[str]:
    """Return how the packed model differs from the published one, one line each."""
    warnings = list(checkpoint.warnings)
    if not (model.path / TOKENIZER).exists():
        warnings.append(
            f"{checkpoint.path}: holds no {TOKENIZER}, so the model accepts token ids only; import "
            "it again with --tokenizer and a directory that holds one"
        )
    elif not (model.path / CHAT_TEMPLATE).exists():
        warnings.append(
            f"{checkpoint.path}: holds no chat template, so the model continues texts (generate, "
            "completions) but has no chat; for one, name a model that was tuned for chats, or "
            "import it again with --tokenizer and a directory that holds a template"
        )
    return warnings


def describe_import(checkpoint: Checkpoint, model: PackedModel) -> str:
    """Return one line: source type, formats and their scales, bits per weight, memory traffic."""
    projections = {n: p for n, p in model.parameters.items() if p.role == "projection"}
    formats = dict.fromkeys(_with_scale(stored.format) for stored in projections.values())
    n_weights = sum(math.prod(stored.shape) for stored in projections.values())
    size = sum(spec.size_bytes for spec in tensors_of(projections).values())
    return (
        f"imported from {checkpoint.source_type}; projections in {' and '.join(formats)}, "
        f"{8 * size / n_weights:.2f} bits per weight{_half_size(checkpoint, formats)}; "
        f"head in {model.head_format.name}; "
        f"{_rounded_tables(model)}"
        f"{decode_bytes(model, 'f32', 0, 1, 1):,} bytes per token; "
        "`yocobit plan MODEL` predicts its speed"
    )


def _half_size(checkpoint: Checkpoint, formats: Collection[str]) -> str:
    """Return the option that halves float32 projections of a dense model with smaller weights."""
    is_small = checkpoint.config.weights == "dense" and not checkpoint.source_type.endswith("F32")
    if not is_small or F32.name not in formats:
        return ""
    return " (--weights f16 of `yocobit pull` or `import` rounds them to half of that)"


def _rounded_tables(model: PackedModel) -> str:
    """Return the part of the line about an embedding and a head that were rounded."""
    stored = {role: model.parameters.get(f"{role}.weight") for role in TABLES}
    rounded = [
        f"{role} rounded to {parameter.format.name}"
        for role, parameter in stored.items()
        if parameter and parameter.format.is_integer and parameter.format.quantize is not None
    ]
    return f"{', '.join(rounded)} (--head f16 or f32 keeps floats); " if rounded else ""


def _with_scale(format: WeightFormat) -> str:
    if format.scale is None:
        return format.name
    return f"{format.name} with one scale per {unit_of(format.scale)}"


def unit_of(granularity: PerTensor | PerRow | PerGroup) -> str:
    """Return the name of the weights that share a scale."""
    if isinstance(granularity, PerGroup):
        return f"group of {granularity.columns} columns"
    return "row" if isinstance(granularity, PerRow) else "matrix"
