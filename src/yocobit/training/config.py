"""TrainConfig: the configuration of a training run, read from a TOML file and validated.

One frozen dataclass per TOML section. Paths in a file are relative to that file, paths in an
override to the working directory; loading makes both absolute.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from msgspec import Meta

from yocobit.config import PRESETS, ModelConfig, preset
from yocobit.data.config import PYTHON_STDLIB, DataConfig
from yocobit.errors import ConfigError, shown
from yocobit.packing import checkpoints
from yocobit.reading import parse_toml, read_toml
from yocobit.settings import (
    Count,
    Fraction,
    Natural,
    NotNegative,
    Positive,
    PositiveFraction,
    Settings,
)

Optimizer = Literal["adam", "adamw", "muon"]
ScheduleKind = Literal["step", "linear", "cosine", "wsd", "two_stage"]
Parallel = Literal["fsdp", "ddp"]
Precision = Literal["float32", "bfloat16"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimConfig(Settings):
    """[optim]: the optimizer, its learning rates, and the batch of a step."""

    optimizer: Optimizer = "adamw"  # "muon": the matrices of the blocks by Muon, the rest by AdamW
    learning_rate: Positive = 1e-3  # of all parameters without a rate of their own
    matrix_learning_rate: Positive | None = None  # of the matrices of the blocks
    embedding_learning_rate: Positive | None = None  # of the embedding
    head_learning_rate: Positive | None = None  # of the head
    betas: tuple[float, ...] = (0.9, 0.95)  # of Adam and AdamW
    eps: Positive = 1e-8  # of Adam and AdamW
    weight_decay: NotNegative = 0.1  # of the matrices of the blocks and the head
    momentum: Annotated[float, Meta(ge=0, lt=1)] = 0.95  # of Muon
    grad_clip: NotNegative = 1.0  # gradients above this norm are scaled down to it; 0: off
    z_loss: NotNegative = 0.0  # times (log sum exp logits)^2 per token, added to the loss
    # Of a mixture of experts: times the load-balancing loss, added to the loss per token.
    router_aux_loss_coef: NotNegative = 0.01
    spike_factor: float = 10.0  # skip steps with a gradient norm above this many medians; 0: off
    max_skips: Count = 10  # skipped steps in a row that end the run
    # All windows of a step are read before it.
    batch_size: Annotated[int, Meta(ge=1, le=1 << 20)] = 8  # windows per forward pass
    accumulation: Annotated[int, Meta(ge=1, le=1 << 20)] = 1  # forward passes per step

    def __post_init__(self) -> None:
        super().__post_init__()
        are_two = len(self.betas) == 2 and all(0 <= beta < 1 for beta in self.betas)
        self.require(are_two, "betas", "must be two numbers of at least 0 and below 1")
        is_factor = self.spike_factor == 0 or self.spike_factor > 1
        self.require(is_factor, "spike_factor", "must be 0 or above 1")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScheduleConfig(Settings):
    """[schedule]: learning rates over the run; yocobit.training.schedule has the formulas."""

    kind: ScheduleKind = "linear"  # shape of the decay after warm-up
    warmup_steps: Natural = 0  # steps of linear warm-up
    min_ratio: Fraction = 0.0  # learning rate at the end, as a share of its peak
    decay_fraction: PositiveFraction = 0.2  # "wsd": the last part of the run, where the rate decays
    step_size: Count = 1000  # "step": steps between two multiplications by gamma
    gamma: Fraction = 0.5  # "step": factor
    # "two_stage": rate at the start of the second half, as a share of its peak.
    second_ratio: Fraction = 1 / 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig(Settings):
    """[run]: duration, evaluations, samples, checkpoints, seed and hardware settings."""

    steps: Count | None = None  # length of the run; instead of minutes
    # Wall-clock length, data preparation included; instead of steps.
    minutes: Positive | None = None
    eval_every: Count = 100  # steps between evaluations
    eval_tokens: Count | None = None  # tokens of each evaluation but the last; all if absent
    sample_every: Natural = 0  # steps between samples of text; 0: never
    sample_tokens: Count = 64  # length of a sample
    prompt: str = ""  # of samples
    checkpoint_every: Count = 100  # steps between checkpoints
    keep: Count = 2  # newest checkpoints kept, in addition to the best
    tensorboard: bool = False  # also write events to RUN/tensorboard
    seed: Natural = 0  # of initialisation and of the order of the data
    # Per process; one per CPU, divided among processes, if absent. At most that of --threads.
    threads: Annotated[int, Meta(ge=1, le=1024)] | None = None
    parallel: Parallel = "fsdp"  # how processes share a model
    precision: Precision | None = None  # of dense matmuls; bfloat16 where that is faster, if absent
    compile: bool = False  # use torch.compile
    recompute: bool = False  # activation checkpointing: less memory, more time

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.steps is None) == (self.minutes is None):
            raise ConfigError("give either steps or minutes")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DistillConfig(Settings):
    """[distill]: knowledge distillation; yocobit.training.loss has the formula.

    The run uses the teacher's tokenizer unless [data] specifies one.
    """

    teacher: str  # a run, a checkpoint, or a transformers directory
    weight: PositiveFraction = 0.5  # of the divergence; cross-entropy has the rest
    temperature: Annotated[float, Meta(gt=0, le=1000)] = 1.0  # of both softmaxes


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """All settings of a run. `model.vocab_size` is replaced by that of the tokenizer."""

    model: ModelConfig
    data: DataConfig
    optim: OptimConfig = dataclasses.field(default_factory=OptimConfig)
    schedule: ScheduleConfig = dataclasses.field(default_factory=ScheduleConfig)
    run: RunConfig
    distill: DistillConfig | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the sections as JSON values, the argument of `from_dict`."""
        sections = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {
            name: _plain(dataclasses.asdict(section))
            for name, section in sections.items()
            if section is not None
        }

    @classmethod
    def from_dict(cls, sections: dict[str, Any], source: str) -> TrainConfig:
        """Make a config from the sections of a TOML or JSON file named `source`."""
        sections = _with_recipe(sections, source)
        known: dict[str, type[Settings] | None] = {
            "model": None,  # made below: [data] determines its vocabulary
            "data": DataConfig,
            "optim": OptimConfig,
            "schedule": ScheduleConfig,
            "run": RunConfig,
            "distill": DistillConfig,
        }
        for name, fields in sections.items():
            if name not in known:
                raise ConfigError(f"{source}: unknown section '{name}'; known: {', '.join(known)}")
            if not isinstance(fields, dict):
                raise ConfigError(f"{source}: '{name}' must be a section but is {shown(fields)}")
        made: dict[str, Any] = {
            name: section.from_dict(sections.get(name, {}), f"{source} [{name}]")
            for name, section in known.items()
            if section is not None and (name != "distill" or name in sections)
        }
        if "model" not in sections:
            raise ConfigError(
                f"{source}: has no section [model]; add one, with a preset ({', '.join(PRESETS)}) "
                "or all sizes, or use the model of a run or checkpoint with --init"
            )
        model = _model(dict(sections["model"]), made["data"], f"{source} [model]")
        return cls(model=model, **made)


def load(path: Path, overrides: Sequence[str] = (), init: Path | None = None) -> TrainConfig:
    """Read a TOML file and apply overrides such as "optim.learning_rate=0.01" on top.

    A run that starts from the run, checkpoint or packed model `init` uses its tokenizer, and its
    model if the file has no [model].
    """
    try:
        sections = read_toml(path)
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise ConfigError(f"{path}: is a directory; name a TOML file") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from None
    _resolve_paths(sections, path.resolve().parent)
    return complete(sections, overrides, init, str(path))


def complete(
    sections: dict[str, Any], overrides: Sequence[str], init: Path | None, source: str
) -> TrainConfig:
    """Apply overrides and what a run inherits from `init` to the sections of `source`."""
    for override in overrides:
        section, name, value = _parse_override(override)
        fields = sections.setdefault(section, {})
        if not isinstance(fields, dict):
            raise ConfigError(f"{source}: '{section}' must be a section but is {shown(fields)}")
        fields[name] = value
        _drop_alternative(fields, section, name)
    _resolve_paths(sections, Path.cwd())
    if init is not None:
        _inherit(checkpoints.find_initial(init), sections)
    return TrainConfig.from_dict(sections, source)


def _inherit(source: Path, sections: dict[str, Any]) -> None:
    """Use the tokenizer of a checkpoint or packed model, and its model without a [model]."""
    data = sections.get("data")
    if isinstance(data, dict) and "tokenizer" not in data:
        data["tokenizer"] = str(source.resolve() / checkpoints.TOKENIZER)
        _drop_alternative(data, "data", "tokenizer")
    if "model" not in sections:
        sections["model"] = ModelConfig.from_json(source / checkpoints.CONFIG).to_dict()


_PATHS = (("data", "train"), ("data", "valid"), ("data", "tokenizer"), ("distill", "teacher"))

_ALTERNATIVES = {
    ("run", "steps"): "minutes",
    ("run", "minutes"): "steps",
    ("data", "valid"): "valid_every",
    ("data", "valid_every"): "valid",
    ("data", "vocab_size"): "tokenizer",
    ("data", "tokenizer"): "vocab_size",
}

# Settings selected by optim.recipe; those in the file take precedence.
RECIPES: dict[str, dict[str, dict[str, Any]]] = {
    # BitNet b1.58 of 700M parameters: "The Era of 1-bit LLMs: Training Tips, Code and FAQ".
    "bitnet": {
        "optim": {
            "optimizer": "adamw",
            "learning_rate": 1.5e-3,
            "betas": [0.9, 0.95],
            "weight_decay": 0.1,
        },
        # Each half is a part of a line to zero: from 1.5e-3 and, without weight decay, from 1e-3.
        "schedule": {"kind": "two_stage", "warmup_steps": 375, "second_ratio": 1 / 3},
    },
}


def _with_recipe(sections: dict[str, Any], source: str) -> dict[str, Any]:
    """Return sections with the settings of optim.recipe as defaults."""
    optim = sections.get("optim")
    if not isinstance(optim, dict) or "recipe" not in optim:
        return sections
    optim = dict(optim)
    name = optim.pop("recipe")
    if not isinstance(name, str) or name not in RECIPES:
        known = ", ".join(RECIPES)
        raise ConfigError(f"{source} [optim]: recipe must be one of {known} but is {name!r}")
    merged = {**sections, "optim": optim}
    for section, fields in RECIPES[name].items():
        if isinstance(own := merged.get(section, {}), dict):
            merged[section] = {**fields, **own}
    return merged


def _drop_alternative(fields: dict[str, Any], section: str, name: str) -> None:
    """Remove the alternative of an override: run.steps replaces the run.minutes of the file."""
    if (section, name) in _ALTERNATIVES:
        fields.pop(_ALTERNATIVES[section, name], None)


def _parse_override(override: str) -> tuple[str, str, Any]:
    """Split "section.key=value"; value is TOML, and a bare word is a string."""
    key, equals, value = override.partition("=")
    section, dot, name = key.strip().partition(".")
    if not (equals and dot and section and name):
        raise ConfigError(f"override must look like section.key=value but is {override!r}")
    try:
        return section, name, parse_toml(f"value = {value}", override)["value"]
    except ConfigError:
        return section, name, value.strip()


def _resolve_paths(sections: dict[str, Any], directory: Path) -> None:
    """Make the paths of [data] and [distill] absolute; validation rejects wrong types later."""

    def resolve(value: Any) -> Any:
        if not isinstance(value, str) or value in ("", PYTHON_STDLIB):
            return value
        return str(directory / os.path.expanduser(value))

    def resolve_item(item: Any) -> Any:
        if isinstance(item, dict) and "path" in item:
            return {**item, "path": resolve(item["path"])}
        return resolve(item)

    for section, name in _PATHS:
        fields = sections.get(section)
        if not isinstance(fields, dict) or name not in fields:
            continue
        value = fields[name]
        is_list = isinstance(value, list)
        fields[name] = [resolve_item(item) for item in value] if is_list else resolve(value)


def _model(fields: dict[str, Any], data: DataConfig, source: str) -> ModelConfig:
    """Make the model of [model]: the fields of a preset, overridden by those of the section."""
    name = fields.pop("preset", None)
    base = preset(name).to_dict() if name is not None else {}
    if data.vocab_size is not None:
        fields["vocab_size"] = data.vocab_size
    elif data.tokenizer is not None:
        fields.setdefault("vocab_size", 1)  # until the tokenizer is read
    elif name is None and "vocab_size" not in fields:
        raise ConfigError(f"{source}: give data.vocab_size, data.tokenizer or a preset")
    return ModelConfig.from_dict({**base, **fields}, source)


def _plain(value: Any) -> Any:
    """Return a value with lists for tuples and without None, as TOML and JSON need them."""
    if isinstance(value, dict):
        return {name: _plain(field) for name, field in value.items() if field is not None}
    return [_plain(item) for item in value] if isinstance(value, tuple) else value
