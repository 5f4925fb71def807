"""Log-mel spectrograms with quirks of published code, for equal outputs; new models use LogMelSpectrogram."""

import torch
from torch import Tensor

from clap.audio import LogMelSpectrogram


class TorchaudioLogMel(LogMelSpectrogram):
    """Hann window computed in float32, as in torchaudio: LAION-CLAP's fused models and Custom-CLAP.

    The difference is visible only in near-silent bins.
    """

    def make_window(self) -> Tensor:
        return torch.hann_window(self.n_fft)


class TransformersLogMel(LogMelSpectrogram):
    """Spectrum in double precision, as in transformers' ClapFeatureExtractor; differs only in near-silent bins."""

    dtype = torch.float64


class MSClap2023LogMel(LogMelSpectrogram):
    """Mel filters for 32 kHz applied at 44.1 kHz: the code of MS-CLAP 2023 builds them from its AudioSet settings."""

    filter_rate = 32_000
