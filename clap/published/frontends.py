"""Log-mel spectrograms with quirks of published code, kept for equal outputs; new models use LogMelSpectrogram."""

import torch
from torch import Tensor

from clap.audio import LogMelSpectrogram


class TorchaudioLogMel(LogMelSpectrogram):
    """The Hann window as torchaudio sums it in float32: LAION-CLAP's fused models and Custom-CLAP.

    The difference shows in near-silent bins only.
    """

    def make_window(self) -> Tensor:
        return torch.hann_window(self.n_fft)


class TransformersLogMel(LogMelSpectrogram):
    """The spectrum in double precision, as in transformers' ClapFeatureExtractor; it shows in near-silent bins."""

    dtype = torch.float64


class MSClap2023LogMel(LogMelSpectrogram):
    """Filters for 32 kHz on recordings at 44.1 kHz: MS-CLAP 2023 gives its wrapper the audio settings of AudioSet."""

    filter_rate = 32_000
