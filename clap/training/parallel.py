"""One training step of several processes: the step that all take, embeddings of all ranks, averaged gradients.

Each rank encodes its part of the global batch. The embeddings are gathered with their gradients, so that N processes
have the loss and, after averaging, the gradients of one process with the whole batch.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import pad
from torch.nn.parallel import DistributedDataParallel

from clap.audio_encoder.base import LogMelEncoder
from clap.audio_model import AudioModel
from clap.dataset.loader import Batch
from clap.process_group import gather_numbers, is_distributed, rank, world_size

SILENT_SAMPLES = 1000


@dataclass
class GlobalStep:
    """What all ranks know of a step before they take it, so that none waits for another that does not take part.

    Attributes:
        rows: number of clips of each rank.
        samples: of all clips.
        problems: number of clips that were skipped.
        stop: a rank has received a signal.
        elapsed: for each interval, whether its minutes are over by the clock of rank 0.
    """

    rows: list[int]
    samples: int
    problems: int
    stop: bool
    elapsed: list[bool]

    @classmethod
    def agree(cls, batch: Batch, *, stop: bool, elapsed: Iterable[bool] = ()) -> "GlobalStep":
        """Exchange the numbers of each rank's part of the batch; collective, without waiting for the device."""
        facts = gather_numbers([len(batch), int(batch.lengths.sum()), len(batch.problems), stop, *elapsed])
        rows, samples, problems, stops = facts[:, :4].T
        return cls(rows.tolist(), int(samples.sum()), int(problems.sum()), bool(stops.any()), facts[0, 4:].tolist())


class GatherRows(torch.autograd.Function):
    """Rows (rows of this rank, dim) of each rank -> rows of all ranks (total, dim), in the order of the ranks.

    The gradient of a row is the sum of its gradients on all ranks.
    """

    @staticmethod
    def forward(ctx: Any, own: Tensor, rows: list[int]) -> Tensor:
        ctx.rows = rows
        padded = pad(own, (0, 0, 0, max(rows) - len(own))).contiguous()  # the ranks exchange tensors of one shape
        parts = [torch.empty_like(padded) for _ in rows]
        dist.all_gather(parts, padded)
        return torch.cat([part[:count] for part, count in zip(parts, rows, strict=True)])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        gradient = gradient.contiguous()
        dist.all_reduce(gradient)
        return gradient.split(ctx.rows)[rank()], None


def encode_rows(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """Embeddings (rows, embed_dim) of audio and text in float32, and the logit scale (), of this rank's rows.

    A rank without rows encodes a silent clip and drops its embeddings: all ranks run the model equally often.
    """
    if len(batch):
        tokens = (batch.token_ids, batch.token_mask)
        audio, text, logit_scale = model(batch.waveform, batch.lengths, *tokens, batch.features)
        return audio.float(), text.float(), logit_scale
    silence = torch.zeros(1, SILENT_SAMPLES, device=batch.waveform.device)
    token = torch.zeros(1, 1, dtype=torch.long, device=silence.device)
    with without_statistics(model):
        audio, text, logit_scale = model(silence, torch.tensor([SILENT_SAMPLES]), token, token == 0)
    return audio[:0].float(), text[:0].float(), logit_scale


def without_statistics(model: nn.Module) -> AbstractContextManager:
    """A silent clip that passes inside does not change the statistics of batch norms."""
    is_synced = any(isinstance(module, nn.SyncBatchNorm) for module in model.modules())  # all ranks must run these
    return nullcontext() if is_synced else frozen_batch_norm(model)


def seed_rank(*numbers: int) -> None:
    """Give each rank random numbers of its own, drawn from `numbers` and its rank."""
    seeds = np.random.SeedSequence([*numbers, rank()]).generate_state(1, np.uint64)
    torch.manual_seed(int(seeds[0]) >> 1)  # a signed number


def global_loss(
    criterion: nn.Module, audio: Tensor, text: Tensor, logit_scale: Tensor, clip_ids: Tensor, rows: list[int]
) -> Tensor:
    """The loss of the global batch, or this rank's share of it (`gather: local`), whose mean over ranks is the loss.

    Args:
        audio, text: embeddings of this rank (rows of this rank, embed_dim). clip_ids: (rows of this rank,).
        rows: number of clips of each rank.
    """
    if not is_distributed():
        return criterion(audio, text, logit_scale, clip_ids)
    pairs = GatherRows.apply(torch.cat([audio, text], dim=1), rows)  # at once: all ranks exchange in the same order
    all_audio, all_text = pairs.split(audio.shape[1], dim=1)
    all_ids = GatherRows.apply(clip_ids[:, None], rows)[:, 0]
    if getattr(criterion, "gather", "full") == "full":
        return criterion(all_audio, all_text, logit_scale, all_ids)
    if not len(audio):  # the other ranks expect its gradients
        return 0.0 * (all_audio.sum() + all_text.sum() + logit_scale)
    loss = criterion(audio, text, logit_scale, clip_ids, all_audio=all_audio, all_text=all_text, all_clip_ids=all_ids)
    return loss * (len(audio) * len(rows) / sum(rows))  # ranks with more clips weigh more


def synchronize_batch_norm(clap: AudioModel) -> None:
    """Let batch norms use the statistics of the global batch, before the optimizer is built.

    Raises:
        ValueError: the fusion has batch norms that a rank without long clips does not run, for which the others would
            wait; or the model is on a CPU, where PyTorch has no SyncBatchNorm.
    """
    if is_distributed():
        if isinstance(clap.audio_encoder, LogMelEncoder) and clap.audio_encoder.fusion.merge:
            raise ValueError(
                "trainer.sync_batchnorm=true, but this fusion has batch norms that run only for clips longer than the "
                "window; set fusion to none, mean or channel_map, or trainer.sync_batchnorm=false"
            )
        if clap.device.type == "cpu":
            raise ValueError("trainer.sync_batchnorm=true needs GPUs; set trainer.sync_batchnorm=false")
        nn.SyncBatchNorm.convert_sync_batchnorm(clap)


def wrap_model(clap: AudioModel) -> nn.Module:
    """The model with gradients that are averaged over the ranks in its backward pass; itself for one process."""
    if not is_distributed():
        return clap
    # A parameter may be unused on one rank only, as the fusion's is without a long clip. Batch statistics are
    # averaged by `average_statistics`, also where ranks run the model unequally often.
    options = {"find_unused_parameters": True, "broadcast_buffers": False, "gradient_as_bucket_view": True}
    return DistributedDataParallel(clap, **options)  # with device_ids it would move the lengths, which the host reads


def without_averaging(model: nn.Module) -> AbstractContextManager:
    """Backward passes inside only add up the gradients of this rank."""
    return model.no_sync() if isinstance(model, DistributedDataParallel) else nullcontext()


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Average the gradients of parameters that the wrapped model does not have, as those of the loss."""
    parameters = [parameter for parameter in parameters if parameter.requires_grad] if is_distributed() else []
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    average_in_place([parameter.grad for parameter in parameters])


def average_statistics(model: nn.Module) -> None:
    """Average the running statistics of batch norms in training mode over the ranks."""
    norms = [module for module in model.modules() if is_tracking(module)] if is_distributed() else []
    average_in_place([buffer for norm in norms for buffer in (norm.running_mean, norm.running_var)])


def average_in_place(tensors: Sequence[Tensor]) -> None:
    """Replace float32 tensors by their means over the ranks, in one exchange."""
    if tensors:
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        dist.all_reduce(flat)
        means = (flat / world_size()).split([tensor.numel() for tensor in tensors])
        for tensor, mean in zip(tensors, means, strict=True):
            tensor.copy_(mean.view_as(tensor))


def is_tracking(module: nn.Module) -> bool:
    """Whether a module is a batch norm that updates its running statistics."""
    return isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training and module.track_running_stats


@contextmanager
def frozen_batch_norm(model: nn.Module) -> Iterator[None]:
    """Batch norms normalise by their running statistics, and do not update them."""
    norms = [module for module in model.modules() if is_tracking(module)]
    for norm in norms:
        norm.eval()
    try:
        yield
    finally:
        for norm in norms:
            norm.train()
