"""Weights, gradients and optimizer state over several processes, by torch's FSDP2 or DDP.

A sharded parameter is a DTensor: each process stores some of its rows, and gathers all of them for
a forward or backward pass. A replicated one, or one of a single process, is an ordinary tensor.

Letters: N matrices   M output features   K input features
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
from torch import Tensor, nn

from yocobit.model import Decoder
from yocobit.training.config import Parallel

# torch.distributed.tensor takes half a second to import: not in a single process.
if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


def wrap(objective: nn.Module, model: Decoder, parallel: Parallel, n_processes: int) -> nn.Module:
    """Shard or replicate an objective and its model; gradients become means over processes.

    Everything that holds the model's parameters must be created after this.
    """
    if n_processes == 1:
        return objective
    if parallel == "ddp":
        return nn.parallel.DistributedDataParallel(objective, gradient_as_bucket_view=True)
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (n_processes,))
    for block in model.layers:
        fully_shard(block, mesh=mesh)
    fully_shard(objective, mesh=mesh)
    return objective


@contextmanager
def evaluation_module(objective: nn.Module, plain: nn.Module) -> Iterator[nn.Module]:
    """Yield the module for evaluation; all processes must call it the same number of times.

    It is the plain objective, neither wrapped nor compiled, unless its weights are sharded.
    """
    if not any(is_sharded(parameter) for parameter in plain.parameters()):
        yield plain
        return
    yield objective
    objective.reshard()  # type: ignore[operator]  # FSDP2 does this in a backward pass only


def backward_context(objective: nn.Module, is_last: bool) -> AbstractContextManager[None]:
    """Return the context of one backward pass of a step: DDP reduces gradients in the last."""
    if is_last or not isinstance(objective, nn.parallel.DistributedDataParallel):
        return nullcontext()
    return objective.no_sync()


def is_sharded(tensor: Tensor) -> TypeGuard[DTensor]:
    """Whether this process stores only a part of a tensor."""
    return hasattr(tensor, "full_tensor")


def full(tensor: Tensor) -> Tensor:
    """Return a tensor that may be sharded as a full tensor; all processes must call this."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor


def local(tensor: Tensor) -> Tensor:
    """Return a view of this process's part of a tensor; of all of it unless it is sharded."""
    return tensor.to_local() if is_sharded(tensor) else tensor


def shard_like(parameter: Tensor, tensor: Tensor) -> Tensor:
    """Shard a full tensor like a parameter; return a tensor of another shape unchanged."""
    if not is_sharded(parameter) or tensor.shape != parameter.shape:
        return tensor
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(
        tensor, parameter.device_mesh, parameter.placements, src_data_rank=None
    )


def map_full(function: Callable[[Tensor], Tensor], matrices: Sequence[DTensor]) -> list[DTensor]:
    """Apply a function of matrices (N, M, K) to sharded matrices (M, K), each in one process.

    The function must keep the shape; the results are sharded as the matrices are.
    """
    from torch.distributed.tensor import DTensor, Shard

    mesh, like = matrices[0].device_mesh, torch.empty(matrices[0].shape, device="meta")
    stack = torch.empty((len(matrices), *like.shape), device="meta")

    def sharded(local: Tensor, dim: int, like: Tensor) -> Any:
        return DTensor.from_local(
            local, mesh, [Shard(dim)], run_check=False, shape=like.shape, stride=like.stride()
        )

    rows = sharded(torch.stack([m.to_local() for m in matrices]), 1, stack)
    results = function(rows.redistribute(placements=[Shard(0)]).to_local())
    rows = sharded(results, 0, stack).redistribute(placements=[Shard(1)])
    return [sharded(local, 0, like) for local in rows.to_local()]


def gather_model(model: Decoder, is_main: bool) -> Decoder | None:
    """Return a model that the main process can run alone, None in the others."""
    if not is_sharded(model.embedding.weight):
        return model if is_main else None
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    weights = get_model_state_dict(model, options=options)
    if not is_main:
        return None
    with torch.device("meta"):
        full_model = Decoder(model.config)
    full_model.load_state_dict(weights, assign=True)
    return full_model


def save_parts(files: dict[Path, dict[str, Tensor]], is_main: bool) -> None:
    """Write safetensors files in one directory from all processes' parts of their tensors.

    Each process writes its parts, then the main process consolidates them, one tensor at a time: no
    process holds the full model.
    """
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
    from torch.distributed.checkpoint.state_dict_saver import save

    directory = next(iter(files)).parent / "parts"
    tensors = {name: tensor for part in files.values() for name, tensor in part.items()}
    indices = {name: i for i, part in enumerate(files.values(), start=1) for name in part}
    writer = HuggingFaceStorageWriter(
        str(directory), indices, save_distributed=True, enable_consolidation=True
    )
    try:
        save(tensors, storage_writer=writer)
    except CheckpointException as error:
        raise next(iter(error.failures.values()))[0] from error
    if is_main:
        for i, path in enumerate(files, start=1):
            (directory / f"model-{i:05d}-of-{len(files):05d}.safetensors").rename(path)
        shutil.rmtree(directory)
