"""Weights, gradients and optimizer state over many processes, by torch's FSDP2 or DDP.

Sharded, a parameter is a DTensor: each process has some of its rows, and all of it only while a
forward or backward pass needs it. Replicated, and in one process, it is a tensor as ever.

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

# torch.distributed.tensor takes half a second to import: only where there are many processes.
if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


def wrap(objective: nn.Module, model: Decoder, parallel: Parallel, n_processes: int) -> nn.Module:
    """Spread an objective, which holds a model, over processes; gradients become their means.

    What has the model's parameters must be made after this.
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
def evaluation(objective: nn.Module, plain: nn.Module) -> Iterator[nn.Module]:
    """Give what evaluates; all processes must call it as often.

    That is the plain objective, neither wrapped nor compiled, unless its weights are sharded.
    """
    if not any(is_sharded(parameter) for parameter in plain.parameters()):
        yield plain
        return
    yield objective
    objective.reshard()  # type: ignore[operator]  # FSDP2 leaves that to a backward pass


def backward_context(objective: nn.Module, is_last: bool) -> AbstractContextManager[None]:
    """Return the context of one of a step's backward passes: DDP needs to reduce in the last."""
    if is_last or not isinstance(objective, nn.parallel.DistributedDataParallel):
        return nullcontext()
    return objective.no_sync()


def is_sharded(tensor: Tensor) -> TypeGuard[DTensor]:
    return hasattr(tensor, "full_tensor")


def whole(tensor: Tensor) -> Tensor:
    """Return all of a tensor that may be sharded; every process must ask for it."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor


def local(tensor: Tensor) -> Tensor:
    """Return this process's part of a tensor that may be sharded, as a view."""
    return tensor.to_local() if is_sharded(tensor) else tensor


def shard_like(parameter: Tensor, tensor: Tensor) -> Tensor:
    """Return this process's part of a whole tensor, if it has the shape of a sharded parameter."""
    if not is_sharded(parameter) or tensor.shape != parameter.shape:
        return tensor
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(
        tensor, parameter.device_mesh, parameter.placements, src_data_rank=None
    )


def map_whole(function: Callable[[Tensor], Tensor], matrices: Sequence[DTensor]) -> list[DTensor]:
    """Apply a function of matrices (N, M, K) to sharded matrices (M, K), each whole in one process.

    The function returns the shape it gets; what is returned is sharded as the matrices are.
    """
    from torch.distributed.tensor import DTensor, Shard

    mesh, like = matrices[0].device_mesh, torch.empty(matrices[0].shape, device="meta")
    stack = torch.empty((len(matrices), *like.shape), device="meta")

    def sharded(local: Tensor, dim: int, like: Tensor) -> Any:
        return DTensor.from_local(
            local, mesh, [Shard(dim)], run_check=False, shape=like.shape, stride=like.stride()
        )

    rows = sharded(torch.stack([m.to_local() for m in matrices]), 1, stack)
    mine = function(rows.redistribute(placements=[Shard(0)]).to_local())
    rows = sharded(mine, 0, stack).redistribute(placements=[Shard(1)])
    return [sharded(local, 0, like) for local in rows.to_local()]


def gather_model(model: Decoder, is_first: bool) -> Decoder | None:
    """Return a model that the first process can run alone, and None in the others."""
    if not is_sharded(model.embedding.weight):
        return model if is_first else None
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    weights = get_model_state_dict(model, options=options)
    if not is_first:
        return None
    with torch.device("meta"):
        whole_model = Decoder(model.config)
    whole_model.load_state_dict(weights, assign=True)
    return whole_model


def save_parts(files: dict[Path, dict[str, Tensor]], is_first: bool) -> None:
    """Write safetensors files in one directory from all processes' parts of their tensors.

    Each process writes its parts, then the first one puts them together, one tensor at a time: no
    process ever holds a whole model.
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
    if is_first:
        for i, path in enumerate(files, start=1):
            (directory / f"model-{i:05d}-of-{len(files):05d}.safetensors").rename(path)
        shutil.rmtree(directory)
