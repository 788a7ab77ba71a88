"""Golden vectors (tests/golden/README.md), read under the parameter names of this project.

`cases` lists them and `load` reads one; `model_config` and `state_dict` convert a whole model for
yocobit.model.Decoder.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.numpy import load_file

from yocobit.config import ModelConfig

KERNEL = "gated_retention_"
MODULE = "gate_retention_module"
MODEL = "yoco_model_"


@dataclass(frozen=True)
class Case:
    """One golden file: its tensors under their stored names, and its JSON."""

    name: str
    tensors: dict[str, np.ndarray]
    info: dict[str, Any]

    def __getitem__(self, name: str) -> torch.Tensor:
        """Return one tensor, in float64 if it is a float."""
        tensor = torch.from_numpy(self.tensors[name])
        return tensor.double() if tensor.is_floating_point() else tensor

    def __contains__(self, name: str) -> bool:
        return name in self.tensors


def cases(directory: Path, prefix: str, holding: str = "") -> list[Path]:
    """List the cases whose names start with `prefix` and that hold a tensor named `holding`."""
    paths = sorted(directory.glob(f"{prefix}*.safetensors"))
    return [path for path in paths if not holding or holding in _names(path)]


def load(path: Path) -> Case:
    """Read a case from its .safetensors file and the .json file next to it."""
    info = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    return Case(path.stem, load_file(path), info)


def model_config(case: Case) -> ModelConfig:
    """Return the config of a whole-model case."""
    arguments = case.info["args"]
    window = arguments["sliding_window"]
    mixer = "retention" if window is None else "window"
    half = arguments["n_layers"] // 2
    return ModelConfig(
        vocab_size=arguments["vocab_size"],
        d_model=arguments["dim"],
        layers=(mixer,) * half + ("cross",) * half,
        d_ff=arguments["hidden_dim"],
        n_heads=arguments["n_attn_heads"],
        n_kv_heads=arguments["n_attn_kv_heads"],
        n_self_heads=arguments["n_self_heads"],
        n_self_kv_heads=arguments["n_self_heads"],  # its sliding window shares no K/V heads
        window=1 if window is None else window,
        weights="dense",
        sub_norm=False,
        rope_theta=arguments["rope_theta"],
        norm_eps=arguments["norm_eps"],
    )


def state_dict(case: Case) -> dict[str, torch.Tensor]:
    """Return the float32 weights of a whole-model case under the parameter names of Decoder."""
    return _renamed(case, "weight.")


def gradients(case: Case) -> dict[str, torch.Tensor]:
    """Return the float64 gradients of a case under the parameter names of Decoder."""
    return _renamed(case, "grad.")


def mixer_config(case: Case) -> ModelConfig:
    """Return a config whose retention layer has the shape of the module case."""
    d_model = case.tensors["x"].shape[-1]
    n_heads = case.tensors["weight.gt_proj.weight"].shape[0]
    return ModelConfig(
        vocab_size=1,
        d_model=d_model,
        layers=("retention",),
        d_ff=8,
        n_heads=n_heads,
        n_kv_heads=n_heads,
        n_self_heads=n_heads,
        n_self_kv_heads=n_heads,
        weights="dense",
        sub_norm=False,
    )


def mixer_state_dict(case: Case) -> dict[str, torch.Tensor]:
    """Return the weights of the module case under the parameter names of GatedRetention."""
    return _renamed(case, "weight.")


def cut(case: Case) -> int | None:
    """Return the number of positions before `state_at_cut` of a kernel case; None without one."""
    if "state_at_cut" not in case:
        return None
    found = re.search(r"first (\d+) steps", case.info["convention"]["state_at_cut"])
    assert found, case.name
    return int(found[1])


def _names(path: Path) -> set[str]:
    with safe_open(path, framework="numpy") as file:
        return set(file.keys())


def _renamed(case: Case, kind: str) -> dict[str, torch.Tensor]:
    half = case.info["args"]["n_layers"] // 2 if "args" in case.info else 0
    return {
        _our_name(name.removeprefix(kind), half): torch.from_numpy(tensor)
        for name, tensor in case.tensors.items()
        if name.startswith(kind)
    }


def _our_name(theirs: str, n_self_layers: int) -> str:
    """Convert a parameter's name; cross-decoder layers are numbered after the self-decoder's."""
    name = re.sub(r"^self_decoder\.", "", theirs)
    name = re.sub(
        r"^cross_decoder\.layers\.(\d+)", lambda m: f"layers.{int(m[1]) + n_self_layers}", name
    )
    for pattern, ours in _RENAMED:
        name = re.sub(pattern, ours, name)
    return name


_RENAMED = (
    (r"^embed_tokens\b", "embedding"),
    (r"^output_projection\b", "head"),
    (r"^layer_norm\b", "norm"),
    (r"^cross_decoder\.kv_layer_norm\b", "shared_kv.norm"),
    (r"^cross_decoder\.([kv]_proj)\b", r"shared_kv.\1"),
    (r"\bmixer_layer_norm\b", "mixer_norm"),
    (r"\bfinal_layer_norm\b", "ffn_norm"),
    (r"\bgt_proj\b", "decay_proj"),
    (r"\bffn\.gate\b", "ffn.up_proj"),
    (r"\bffn\.fc1\b", "ffn.gate_proj"),
    (r"\bffn\.fc2\b", "ffn.down_proj"),
)
