"""Compares the speed of parts of a training step with references: python experiments/benchmarks/towers.py

Prints one table with milliseconds and their ratio: medians of interleaved runs in one process on random input. Ratios
transfer to other machines, milliseconds do not.
"""

import statistics
import time
from collections.abc import Callable

import librosa
import torch
import torchaudio
from torch import nn
from transformers import ClapAudioConfig
from transformers.models.clap.modeling_clap import ClapAudioModel

from clap.audio import LogMelSpectrogram
from clap.config.build import build
from clap.config.compose import compose_config
from clap.fusion import GlobalAndLocal

RUNS = 7
BATCH = 8


def compare(name: str, own: Callable[[], object], reference: Callable[[], object], *, versus: str) -> None:
    """Time both alternately and print a row."""
    times: dict[Callable, list[float]] = {own: [], reference: []}
    for call in times:
        call()
    for _ in range(RUNS):
        for call, found in times.items():
            start = time.perf_counter()
            call()
            found.append(1000 * (time.perf_counter() - start))
    mine, other = (statistics.median(found) for found in times.values())
    print(f"{name:<28}{mine:>9.1f}{other:>12.1f}{other / mine:>8.2f}  {versus}")


def compare_frontends() -> None:
    waveform = torch.randn(BATCH, 320_000)
    own = LogMelSpectrogram(32_000, window=10.0, hop_length=320)
    mel = torchaudio.transforms.MelSpectrogram(
        32_000, n_fft=1024, hop_length=320, n_mels=64, f_min=50.0, f_max=14_000.0, norm="slaney", mel_scale="slaney"
    )
    to_db = torchaudio.transforms.AmplitudeToDB(top_db=None)
    compare("log-mel", lambda: own(waveform), lambda: to_db(mel(waveform)), versus="torchaudio MelSpectrogram")
    arrays = waveform.numpy()
    settings = {"sr": 32_000, "n_fft": 1024, "hop_length": 320, "n_mels": 64, "fmin": 50.0, "fmax": 14_000.0}
    compare(
        "log-mel",
        lambda: own(waveform),
        lambda: librosa.power_to_db(librosa.feature.melspectrogram(y=arrays, **settings), top_db=None),
        versus="librosa melspectrogram",
    )


def compare_htsat(*, longer: int) -> None:
    """HTS-AT tiny with aff from log-mel to embedding, against the audio tower of transformers with the same sizes."""
    node = compose_config(["audio_encoder=htsat_tiny", "fusion=aff"])
    encoder = build(node["audio_encoder"], nn.Module, fusion=build(node["fusion"], GlobalAndLocal)).eval()
    reference = ClapAudioModel(ClapAudioConfig(enable_fusion=True)).eval()
    views = torch.randn(BATCH, 4, encoder.frontend.num_frames, 64)
    is_longer = torch.arange(BATCH) < longer
    with torch.inference_mode():
        compare(
            f"HTS-AT tiny, {longer} of {BATCH} longer",
            lambda: encoder.encode(encoder.bn0(views.transpose(1, 3)).transpose(1, 3), is_longer),
            lambda: reference(input_features=views, is_longer=is_longer[:, None]),
            versus="transformers ClapAudioModel",
        )


def compare_padding() -> None:
    """RoBERTa base on captions padded to the longest of the batch, against padding to 77 tokens."""
    node = compose_config(["text_encoder=roberta", "text_encoder.pretrained=false"])
    encoder = build(node["text_encoder"], nn.Module)
    ids = torch.randint(5, 50_000, (BATCH, 77))
    mask = torch.arange(77).expand(BATCH, 77) < 16
    compare(
        "RoBERTa, 16-token captions",
        lambda: encoder(ids[:, :16], mask[:, :16]).sum().backward(),
        lambda: encoder(ids, mask).sum().backward(),
        versus="padded to 77 tokens, forward and backward",
    )


if __name__ == "__main__":
    torch.manual_seed(0)
    print(f"{'':<28}{'clap, ms':>9}{'reference':>12}{'ratio':>8}")
    compare_frontends()
    compare_htsat(longer=0)
    compare_htsat(longer=BATCH)
    compare_padding()
