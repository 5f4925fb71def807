"""Model FLOPs of a training, and their share of the device's peak (Chowdhery et al. 2022, appendix B)."""

import logging

import torch

from clap.dataset.loader import Batch
from clap.model import Clap
from clap.process_group import world_size
from clap.training.acceleration import matmul_precision
from clap.training.cost import measure_gemm_rate, step_flops
from clap.training.sharding import is_sharded
from clap.training.trainer_settings import TrainerSettings

log = logging.getLogger(__name__)


class Utilization:
    """Counts the FLOPs of a clip in a training step once, for the shape of the first batch.

    Activations that are computed twice count once, and so does a clip with gradient caching; cached encoders do not.

    Attributes:
        peak: FLOP/s of matrix products on the devices of all processes; None: not measured.
        shape: padded seconds and tokens of the first batch.
    """

    def __init__(self, clap: Clap, settings: TrainerSettings) -> None:
        self.clap, self.settings = clap, settings
        self.peak: float | None = None
        self.shape: tuple[float, int] | None = None
        self.counted: dict[tuple[str, ...], int | None] = {}  # by the frozen parts

    def measure_peak(self) -> None:
        """Measure the peak, before training: on a GPU the matrices need up to 1 GB."""
        peak = measure_peak(self.clap.device, precision=self.settings.precision, tf32=self.settings.tf32)
        self.peak = world_size() * peak

    def add(self, batch: Batch) -> None:
        """Keep the shape of the first batch."""
        if self.shape is None and len(batch):
            self.shape = batch.samples.shape[1] / self.clap.sample_rate, batch.token_ids.shape[1]

    def read(self, clips_per_second: float) -> dict[str, float]:
        """TFLOP/s of the model at a speed, over all processes, and their share of the peak."""
        if (flops := self.count_flops()) is None:
            return {}
        rate = flops * clips_per_second
        share = {} if self.peak is None else {"share_of_peak": rate / self.peak}
        return {"tflops_per_second": rate / 1e12, **share}

    def count_flops(self) -> int | None:
        """FLOPs of a clip in a training step; None if they cannot be counted, as of a sharded model."""
        frozen = tuple(self.clap.frozen)
        if frozen not in self.counted and self.shape is not None:
            self.counted[frozen] = self.try_to_count(*self.shape)
        return self.counted.get(frozen)

    def try_to_count(self, duration: float, num_tokens: int) -> int | None:
        if any(map(is_sharded, self.clap.parameters())):
            return None
        try:
            skipped = self.clap.frozen if self.settings.cache_frozen else []
            return step_flops(self.clap, batch_size=1, duration=duration, num_tokens=num_tokens, skipped=skipped)
        except (RuntimeError, TypeError) as error:  # a module reads values on the meta device
            log.warning("the FLOPs of this model are not logged: it cannot run on the meta device (%s)", error)
            return None


def measure_peak(device: torch.device, *, precision: str, tf32: bool) -> float:
    """FLOP/s of matrix products on a device with the settings of a training, in a fifth of a second."""
    with matmul_precision(device, tf32=tf32):
        peak = measure_gemm_rate(device, precision, seconds=0.1)
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return peak
