"""Gradient caching (Gao et al. 2021, section 3.2): the loss of a large batch with the memory of a small one.

The batch is encoded twice in chunks: first without gradients, for the loss and its gradients at the embeddings, then
chunk by chunk with them. The gradients are those of the whole batch. Gradient accumulation would change the loss: each
chunk would only be compared with itself.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn

from clap.dataset.loader import Batch
from clap.training.parallel import frozen_batch_norm, is_tracking, without_averaging

Encode = Callable[[nn.Module, Batch], tuple[Tensor, Tensor, Tensor]]


class GradientCache:
    """Loss and gradients of a batch, encoded in chunks of at most `size` rows.

    Args:
        encode: model, batch -> embeddings (rows, embed_dim) of audio and text, logit scale ().
        norm: `frozen`: batch norms use their running statistics and do not update them. `micro`: they normalise by each
            chunk, and the first pass updates them.
    """

    def __init__(self, encode: Encode, *, size: int, norm: str) -> None:
        self.encode, self.size, self.norm = encode, size, norm

    def forward(
        self,
        model: nn.Module,
        batch: Batch,
        loss: Callable[[Tensor, Tensor, Tensor], Tensor],
        parameters: list[nn.Parameter],
        *,
        rows: list[int],
        scaler: torch.amp.GradScaler,
    ) -> tuple[Tensor, Callable[[], None]]:
        """The loss of a batch, and a function that adds its gradients to those of the model and of the loss.

        Args:
            model: as `wrap_model` returns it.
            loss: audio, text (rows, embed_dim), logit scale () -> loss ().
            parameters: of the loss.
            rows: number of clips of each rank; all ranks run the model equally often, with empty chunks if need be.
        """
        number = -(-max(rows) // self.size)
        sizes = [min(self.size, max(len(batch) - start * self.size, 0)) for start in range(number)]
        chunks, states, parts = batch.split(sizes), [], []
        module = getattr(model, "module", model)  # the first pass has no gradients to average
        with torch.no_grad(), self.normalising(module, first=True):
            for chunk in chunks:
                states.append(read_random_state(batch.waveform.device))
                parts.append(self.encode(module, chunk))
        after = read_random_state(batch.waveform.device)
        audio, text = (torch.cat([part[i] for part in parts]).requires_grad_() for i in (0, 1))
        logit_scale = parts[0][2].detach().requires_grad_()
        value = loss(audio, text, logit_scale)
        inputs = [audio, text, logit_scale, *parameters]
        found = torch.autograd.grad(scaler.scale(value), inputs, materialize_grads=True)
        audio_grad, text_grad, scale_grad, *own = found

        def backward() -> None:
            for parameter, gradient in zip(parameters, own, strict=True):
                parameter.grad = gradient
            gradients = zip(chunks, states, audio_grad.split(sizes), text_grad.split(sizes), strict=True)
            with self.normalising(module, first=False):
                for position, (chunk, state, *chunk_grads) in enumerate(gradients, start=1):
                    write_random_state(state)
                    is_last = position == number
                    with nullcontext() if is_last else without_averaging(model):
                        *embeddings, scale = self.encode(model, chunk)
                        total = sum((x * gradient).sum() for x, gradient in zip(embeddings, chunk_grads, strict=True))
                        (total + scale * scale_grad if is_last else total).backward()
            write_random_state(after)

        return value.detach(), backward

    @contextmanager
    def normalising(self, model: nn.Module, *, first: bool) -> Iterator[None]:
        """Batch norms as `norm` says: their running statistics are updated at most once."""
        if self.norm == "frozen":
            with frozen_batch_norm(model):
                yield
            return
        norms = [] if first else [module for module in model.modules() if is_tracking(module)]
        for module in norms:
            module.track_running_stats = False
        try:
            yield
        finally:
            for module in norms:
                module.track_running_stats = True


def read_random_state(device: torch.device) -> tuple[Tensor, Tensor | None]:
    """PyTorch's random states on the CPU and on a GPU."""
    return torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None


def write_random_state(state: tuple[Tensor, Tensor | None]) -> None:
    """Set the random states of `read_random_state` on the CPU and the current GPU."""
    torch.set_rng_state(state[0])
    if state[1] is not None:
        torch.cuda.set_rng_state(state[1])
