"""Text encoders that do not fit into the memory of one device: FSDP2 (Zhao et al. 2023) shards them over the ranks.

Each rank keeps a part of every weight, gradient and moment, as a DTensor. Checkpoints hold the whole tensors.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils._pytree import tree_map

from clap.audio_model import AudioModel
from clap.process_group import world_size
from clap.processes import check_parallel
from clap.training.parallel import synchronize_batch_norm
from clap.training.trainer_settings import TrainerSettings


def distribute_model(clap: AudioModel, settings: TrainerSettings) -> None:
    """Apply `trainer.sync_batchnorm` and `trainer.parallel=fsdp`, before the optimizer is built.

    Raises:
        ValueError: there is no process group to shard over, or the batch norms cannot be synchronised.
    """
    if settings.sync_batchnorm:
        synchronize_batch_norm(clap)
    if settings.parallel == "fsdp":
        shard_text_encoder(clap)


def shard_text_encoder(clap: AudioModel) -> None:
    """Shard the text encoder over the ranks, layer by layer; before the optimizer is built.

    Raises:
        ValueError: there is no process group, or no text encoder.
    """
    check_parallel("fsdp", world_size())
    if clap.text_encoder is None:
        raise ValueError("trainer.parallel=fsdp shards the text encoder, and a classifier has none; set it to ddp")
    mesh = init_device_mesh(clap.device.type, (world_size(),))
    stacks = [module for module in clap.text_encoder.modules() if isinstance(module, nn.ModuleList)]
    for layer in max(stacks, key=count_parameters, default=()):
        fully_shard(layer, mesh=mesh)
    fully_shard(clap.text_encoder, mesh=mesh)


def count_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def is_sharded(tensor: Tensor | None) -> bool:
    return isinstance(tensor, DTensor)


def gather_full(state: Any) -> Any:
    """A state with whole tensors in place of sharded ones; collective."""
    return tree_map(lambda value: value.full_tensor() if is_sharded(value) else value, state)


def shard_like(value: Tensor, other: Tensor) -> Tensor:
    """This rank's part of a whole tensor, sharded as another one; the tensor itself if that is not sharded."""
    return distribute_tensor(value, other.device_mesh, other.placements) if is_sharded(other) else value


def load_weights(module: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """`module.load_state_dict` with whole tensors, also where parameters are sharded."""
    own = module.state_dict()
    module.load_state_dict({name: shard_like(value, own.get(name)) for name, value in weights.items()})


def total_norm(gradients: Iterable[Tensor]) -> Tensor:
    """The norm of the gradients of the whole model ()."""
    gradients = list(gradients)
    own = [gradient.to_local() for gradient in gradients if is_sharded(gradient)]
    norm = nn.utils.get_total_norm([gradient for gradient in gradients if not is_sharded(gradient)])
    if not own:
        return norm
    square = nn.utils.get_total_norm(own).square()
    dist.all_reduce(square)
    return (square + norm.square()).sqrt()


def clip_gradients(parameters: Iterable[nn.Parameter], max_norm: float, norm: Tensor) -> None:
    """Scale the gradients so that their norm, which is `norm`, is at most `max_norm`."""
    parameters = list(parameters)
    nn.utils.clip_grads_with_norm_([p for p in parameters if not is_sharded(p)], max_norm, norm)
    for parameter in filter(is_sharded, parameters):
        if parameter.grad is not None:
            parameter.grad.to_local().mul_((max_norm / (norm + 1e-6)).clamp(max=1.0))
