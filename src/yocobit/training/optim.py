"""Optimizers and their parameter groups.

Four groups, each with its own learning rate: the matrices of the blocks, the embedding, the head,
and the rest (norms and decay gates). Embedding and rest have no weight decay.

Letters: M output features   K input features
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from yocobit.errors import ConfigError
from yocobit.model import Decoder
from yocobit.model.bitlinear import BitLinear, uses_bfloat16_matmul
from yocobit.training.config import OptimConfig
from yocobit.training.sharding import is_sharded, map_full, shard_like

_MUON_STATE = ("momentum",)
_ADAM_STATE = ("step", "exp_avg", "exp_avg_sq")


class Muon(torch.optim.Optimizer):
    """Orthogonalised momentum (arXiv:2502.16982), for matrices only.

    W -= lr * (s O + weight_decay W),  O = orthogonalize(G + momentum B),  B = momentum B + G,
    s = 0.2 sqrt(max(M, K)), which gives a step the RMS of an Adam step. Matrices are batched by
    shape, and the precision is that of matmuls: torch.optim.Muon always computes in bfloat16, which
    most CPUs emulate. A parameter of a group with n_blocks = N stacks N matrices of equal shape by
    rows.
    """

    def __init__(self, params: Any, lr: float, momentum: float, weight_decay: float) -> None:
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "n_blocks": 1}
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        assert closure is None
        for group in self.param_groups:
            shapes: dict[torch.Size, list[Tensor]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    shapes[parameter.shape].append(parameter)
            n_blocks = group["n_blocks"]
            for (M, K), parameters in shapes.items():
                directions = [self._direction(p, group) for p in parameters]
                updates = _orthogonalize_all(directions, n_blocks)
                step_size = group["lr"] * 0.2 * max(M // n_blocks, K) ** 0.5
                for parameter, update in zip(parameters, updates, strict=True):
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
                    parameter.sub_(update, alpha=step_size)

    def _direction(self, parameter: Tensor, group: dict[str, Any]) -> Tensor:
        """Return the gradient with Nesterov momentum, (M, K)."""
        state = self.state[parameter]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(parameter)
        assert parameter.grad is not None
        buffer: Tensor = state["momentum"].mul_(group["momentum"]).add_(parameter.grad)
        direction: Tensor = parameter.grad + group["momentum"] * buffer
        return direction


def _orthogonalize_all(matrices: list[Tensor], n_blocks: int) -> Sequence[Tensor]:
    """Orthogonalise the blocks of matrices (M, K); each sharded matrix in one of the processes."""

    def orthogonalize_blocks(stack: Tensor) -> Tensor:  # (N, M, K)
        blocks = stack.unflatten(1, (n_blocks, -1)).flatten(0, 1)
        return orthogonalize(blocks).reshape(stack.shape)

    sharded = [matrix for matrix in matrices if is_sharded(matrix)]
    if sharded:
        return map_full(orthogonalize_blocks, sharded)
    return orthogonalize_blocks(torch.stack(matrices)).unbind()


def orthogonalize(matrices: Tensor, steps: int = 5) -> Tensor:
    """Bring the singular values of matrices (N, M, K) close to 1, by Newton-Schulz iterations.

    The quintic of Muon (Jordan et al., 2024): its coefficients trade exactness for a steep slope at
    0; singular values end between 0.7 and 1.2.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    is_tall = matrices.shape[-2] > matrices.shape[-1]
    dtype = torch.bfloat16 if uses_bfloat16_matmul(matrices) else matrices.dtype
    x = (matrices.mT if is_tall else matrices).to(dtype)
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp_min(1e-12)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    y: Tensor = (x.mT if is_tall else x).to(matrices.dtype)
    return y


class Optimizers:
    """The optimizers of a model, with learning rate and state of every parameter by name."""

    def __init__(self, model: Decoder, config: OptimConfig) -> None:
        self.config = config
        self.names: dict[Tensor, str] = {
            parameter: name for name, parameter in model.named_parameters()
        }
        matrices, groups = _groups(model, config)
        self.parts: list[torch.optim.Optimizer] = []
        if config.optimizer == "muon":
            self.parts.append(Muon(matrices, config.learning_rate, config.momentum, 0.0))
        else:
            groups = matrices + groups
        kind = torch.optim.Adam if config.optimizer == "adam" else torch.optim.AdamW
        betas = (config.betas[0], config.betas[1])
        self.parts.append(kind(groups, config.learning_rate, betas, config.eps, fused=True))

    def step(self, rate_factor: float, weight_decay_factor: float) -> None:
        """Update every parameter by its gradient."""
        for group in self._param_groups():
            group["lr"] = group["base_rate"] * rate_factor
            group["weight_decay"] = group["base_weight_decay"] * weight_decay_factor
        for part in self.parts:
            part.step()

    def clear_gradients(self) -> None:
        """Set every gradient to None."""
        for part in self.parts:
            part.zero_grad(set_to_none=True)

    def state(self) -> dict[str, Tensor]:
        """Return every state tensor under "parameter/key".

        No tensor is 0-dimensional: torch.distributed.checkpoint would write zeros.
        """
        return {
            f"{self.names[parameter]}/{key}": torch.atleast_1d(value)
            for part in self.parts
            for parameter, values in part.state.items()
            for key, value in values.items()
        }

    def load_state(
        self, tensors: dict[str, Tensor], source: str | Path = "the optimizer's state"
    ) -> None:
        """Restore the tensors that `state` returned; ConfigError names `source` if one differs."""
        if tensors:  # empty if all steps so far were skipped
            self._check(tensors, source)
        by_name: dict[str, dict[str, Tensor]] = defaultdict(dict)
        for name, tensor in tensors.items():
            parameter_name, _, key = name.rpartition("/")
            by_name[parameter_name][key] = tensor
        for part in self.parts:
            for group in part.param_groups:
                for parameter in group["params"]:
                    if state := by_name.get(self.names[parameter]):
                        part.state[parameter] = {
                            key: _restored(parameter, key, value) for key, value in state.items()
                        }

    def _check(self, tensors: dict[str, Tensor], source: str | Path) -> None:
        """Raise ConfigError unless tensors are the state of every parameter, in its shape."""
        expected = {
            f"{self.names[parameter]}/{key}": [1] if key == "step" else list(parameter.shape)
            for part in self.parts
            for group in part.param_groups
            for parameter in group["params"]
            for key in (_MUON_STATE if isinstance(part, Muon) else _ADAM_STATE)
        }
        shapes = {name: list(tensor.shape) for name, tensor in tensors.items()}
        for name in (*expected, *shapes):
            if expected.get(name) != shapes.get(name):
                raise ConfigError(
                    f"{source}: does not fit the model: '{name}' is {shapes.get(name, 'absent')} "
                    f"but must be {expected.get(name, 'absent')}; use an earlier checkpoint"
                )

    def _param_groups(self) -> Iterator[dict[str, Any]]:
        for part in self.parts:
            yield from part.param_groups


def _restored(parameter: Tensor, key: str, value: Tensor) -> Tensor:
    """Return an optimizer's state tensor from one that `Optimizers.state` returned."""
    value = value.reshape(()) if key == "step" else shard_like(parameter, value)
    return value.clone()  # in memory with torch's own alignment, as before the checkpoint


def _groups(
    model: Decoder, config: OptimConfig
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the groups of matrices, one for each number of blocks, and the other groups."""
    matrices: dict[int, list[Tensor]] = defaultdict(list)
    for module in model.modules():
        if isinstance(module, BitLinear):
            matrices[module.n_blocks].append(module.weight)
    embedding, head = model.embedding.weight, model.head.weight
    named: list[Tensor] = [embedding] if head is embedding else [embedding, head]
    grouped = {id(parameter) for parameter in (*chain(*matrices.values()), *named)}
    rest: list[Tensor] = [
        parameter for parameter in model.parameters() if id(parameter) not in grouped
    ]

    def group(parameters: list[Tensor], rate: float | None, decay: float) -> dict[str, Any]:
        return {
            "params": parameters,
            "base_rate": rate or config.learning_rate,
            "base_weight_decay": decay,
            "weight_decay": decay,
        }

    decay = config.weight_decay
    others = [
        group([embedding], config.embedding_learning_rate, 0.0),
        group(named[1:], config.head_learning_rate, decay),
        group(rest, None, 0.0),
    ]
    return [
        {**group(weights, config.matrix_learning_rate, decay), "n_blocks": n_blocks}
        for n_blocks, weights in matrices.items()
    ], [each for each in others if each["params"]]
