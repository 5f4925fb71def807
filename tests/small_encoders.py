"""Small audio encoders on the log-mel with every fusion, and batches for them."""

import functools

import torch
from torch import Tensor, nn

from clap.audio import LogMelSpectrogram
from clap.audio_encoder.base import LogMelEncoder
from clap.audio_encoder.cnn14 import Cnn14
from clap.audio_encoder.htsat import HTSAT
from clap.fusion import AFF, DAF, IAFF, GlobalAndLocal, MeanOfWindows, OneWindow

RATE = 16000
FUSIONS = {
    "none": OneWindow,
    "mean": MeanOfWindows,
    "daf": functools.partial(GlobalAndLocal, DAF),
    "aff": functools.partial(GlobalAndLocal, AFF),
    "iaff": functools.partial(GlobalAndLocal, IAFF),
    "channel_map": GlobalAndLocal,
}
SMALL = {
    HTSAT: {
        "embed_dim": 8,
        "depths": [2, 2],
        "num_heads": [2, 2],
        "image_size": 64,
        "window_size": 4,
        "drop_path": 0.0,
    },
    Cnn14: {"width": 4, "dropout": 0.0, "last_dropout": 0.0},
}


def make_frontend(**arguments: object) -> LogMelSpectrogram:
    small = {"window": 1.0, "n_fft": 512, "hop_length": 160, "n_mels": 32, "f_max": 8000.0}
    return LogMelSpectrogram(**{"sample_rate": RATE, **small, **arguments})


def make_encoder(cls: type[LogMelEncoder], fusion: str = "none", **arguments: object) -> LogMelEncoder:
    torch.manual_seed(0)
    return cls(**{**SMALL[cls], "frontend": make_frontend(), "fusion": FUSIONS[fusion](), **arguments}).eval()


def make_batch(lengths: list[int], seed: int = 0) -> tuple[Tensor, Tensor]:
    """Waveform (batch, samples) of noise, zero beyond its lengths (batch,)."""
    generator = torch.Generator().manual_seed(seed)
    waveforms = [0.1 * torch.randn(length, generator=generator) for length in lengths]
    return nn.utils.rnn.pad_sequence(waveforms, batch_first=True), torch.tensor(lengths)


def randomize(module: nn.Module) -> None:
    """Set every weight and running statistic so that no operation is an identity."""
    generator = torch.Generator().manual_seed(1)
    for name, value in module.state_dict().items():
        if value.is_floating_point():
            noise = 0.1 * torch.randn(value.shape, generator=generator)
            value.copy_(1 + noise.abs() if name.endswith(("var", "norm.weight")) else 2 * noise)
