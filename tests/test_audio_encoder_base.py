"""The contract of audio encoders, tested with an encoder on waveforms that has neither frontend nor fusion."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from conftest import CAPTIONS, make_tone
from planted import plant_module
from torch.testing import assert_close

from clap.config.augmentation_settings import AugmentationSettings
from clap.dataset.clips import ClapDataset
from clap.evaluation.retrieved_clips import retrieve_clips
from clap.evaluation.run_plots import plot_run
from clap.loss import SymmetricCrossEntropyLoss
from clap.model import Clap
from clap.training.cost import forward_flops

pytestmark = pytest.mark.usefixtures("one_thread")

WAVEFORM_ENCODER = """
from torch import Tensor, nn
from torch.nn import functional as F

from clap.audio_encoder.base import AudioEncoder


class WaveformEncoder(AudioEncoder):
    def __init__(self, *, sample_rate: int, window: float, width: int) -> None:
        super().__init__()
        self.sample_rate, self.window, self.output_dim = sample_rate, window, width
        self.conv1 = nn.Conv1d(1, width, kernel_size=400, stride=160)
        self.conv2 = nn.Conv1d(width, width, kernel_size=4, stride=2)

    def forward(self, waveform: Tensor, lengths: Tensor) -> Tensor:
        x = F.pad(waveform, (0, round(self.window * self.sample_rate) - waveform.shape[1]))[:, None]
        x = F.gelu(self.conv1(x))  # (batch, width, time / 160)
        return F.gelu(self.conv2(x)).mean(dim=2)
"""
NODE = {"_target_": "clap.waveform_encoder.WaveformEncoder", "sample_rate": 16_000, "window": 1.0, "width": 8}


@pytest.fixture
def config(tmp_path: Path, tiny_config: Callable[..., dict]) -> Iterator[dict]:
    with plant_module(tmp_path, "waveform_encoder", WAVEFORM_ENCODER):
        yield tiny_config() | {"audio_encoder": NODE}


@pytest.fixture
def clap(config: dict) -> Clap:
    torch.manual_seed(0)
    clap = Clap.from_config(config)
    clap.tokenizer.train(list(CAPTIONS))
    return clap


def test_waveform_encoder_trains(clap: Clap) -> None:
    waveform = torch.stack([torch.from_numpy(make_tone(150.0 * 1.5**i, 1.0, seed=i)) for i in range(8)])
    tokens, criterion = clap.tokenizer(list(CAPTIONS)), SymmetricCrossEntropyLoss()
    optimizer = torch.optim.Adam(clap.parameters(), lr=3e-3)
    losses = []
    for _ in range(30):
        loss = criterion(*clap(waveform, torch.full((8,), 16_000), *tokens), torch.arange(8))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert clap.audio_encoder.conv1.weight.grad.any() and losses[-1] < 0.9 * losses[0]


def test_waveform_encoder_embeds_the_middle_window_of_files(clap: Clap, tones: list[Path]) -> None:
    assert (clap.sample_rate, clap.window) == (16_000, 1.0)
    embeddings = clap.get_audio_embeddings(tones, batch_size=3)
    middle = clap.get_audio_embeddings(make_tone(1600.0, 4.0, seed=7)[24_000:40_000], 16_000)
    assert_close(embeddings[7:], middle, atol=1e-6, rtol=0)
    assert_close(embeddings[:1], clap.get_audio_embeddings(tones[0]), atol=1e-6, rtol=0)


def test_waveform_encoder_is_saved_and_loaded(clap: Clap, tones: list[Path], tmp_path: Path) -> None:
    clap.save_pretrained(tmp_path / "saved")
    again = Clap.from_ckpt(tmp_path / "saved")
    assert torch.equal(again.get_audio_embeddings(tones), clap.get_audio_embeddings(tones))


def test_waveform_encoder_starts_from_the_weights_of_a_checkpoint(clap: Clap, config: dict, tmp_path: Path) -> None:
    clap.save_pretrained(tmp_path / "saved")
    node = NODE | {"pretrained": str(tmp_path / "saved"), "name": None}
    again = Clap.from_config(config | {"audio_encoder": node})
    assert_close(again.audio_encoder.state_dict(), clap.audio_encoder.state_dict(), atol=0, rtol=0)


def test_fusion_is_refused_for_an_encoder_without_fusion(config: dict, tiny_config: Callable[..., dict]) -> None:
    for fusion in ("mean", "aff"):
        with pytest.raises(ValueError, match="WaveformEncoder does not support fusion; set fusion=none"):
            Clap.from_config(config | {"fusion": tiny_config(f"fusion={fusion}")["fusion"]})


def test_windows_for_an_encoder_of_one_window_are_refused(clap: Clap) -> None:
    clap.set_windows(None)
    with pytest.raises(ValueError, match="windows=mean: WaveformEncoder has no windows to average; set windows=null"):
        clap.set_windows("mean")
    assert clap.windows is None


@pytest.mark.parametrize("option", ["frame_out", "patch_out"])
def test_encoder_without_frames_and_patches_is_refused_by_name(clap: Clap, option: str) -> None:
    clap.augment(AugmentationSettings(gain=6.0))
    with pytest.raises(ValueError, match=f"WaveformEncoder .* set augmentation.{option}=0"):
        clap.augment(AugmentationSettings(**{option: 0.5}))


def test_dataset_reads_the_rate_of_the_encoder(config: dict) -> None:
    assert ClapDataset(config=config).sample_rate == 16_000


def test_dataset_needs_a_rate(config: dict) -> None:
    node = {key: value for key, value in NODE.items() if key != "sample_rate"}
    with pytest.raises(ValueError, match="audio_encoder has no sample_rate; set audio_encoder.sample_rate"):
        ClapDataset(config=config | {"audio_encoder": node})


def test_cost_counts_the_layers_of_a_waveform_encoder(clap: Clap) -> None:
    before = forward_flops(clap)
    clap.audio_encoder.conv1.weight.data = clap.audio_encoder.conv1.weight.data.repeat(2, 1, 1)
    clap.audio_encoder.conv2.weight.data = clap.audio_encoder.conv2.weight.data.repeat(1, 2, 1)
    clap.audio_encoder.conv1.bias.data = clap.audio_encoder.conv1.bias.data.repeat(2)
    assert forward_flops(clap) - before == 2 * 8 * 400 * 98 + 2 * 8 * 8 * 4 * 48


def test_run_of_a_waveform_encoder_has_no_log_mel_plot(clap: Clap, config: dict, tmp_path: Path) -> None:
    dataset = ClapDataset(config=config | {"dataset": config["dataset"] | {"max_clips": 4}}, kind="val", window=1.0)
    (tmp_path / "metrics.jsonl").touch()
    plot_run(tmp_path, clap, retrieve_clips(clap, dataset))
    names = sorted(path.name for path in (tmp_path / "plots").iterdir())
    assert names == ["quality.png", "similarity.png", "training.png"]
