"""Checkpoints and configs of version 0.1, written before modules moved, load."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.testing import assert_close

from clap import Clap
from clap.audio import LogMelSpectrogram
from clap.config import read_config
from clap.config.build import build
from clap.evaluation.evaluator import Evaluator
from clap.published import frontends

DATA = Path(__file__).parent / "data"
CHECKPOINT = DATA / "checkpoint_0.1"
FRONTEND = {"sample_rate": 16000, "window": 0.1, "hop_length": 160, "f_max": 8000.0, "n_mels": 32}
QUIRKS = {  # removed argument: (class with this behaviour, all arguments)
    "float32_hann": (frontends.TorchaudioLogMel, {"float32_hann": True, "mel_scale": "htk"}),
    "float64": (frontends.TransformersLogMel, {"float64": True}),
    "bank_rate": (frontends.MSClap2023LogMel, {"bank_rate": 32000, "sample_rate": 44100}),
}


@pytest.fixture(scope="module")
def outputs() -> dict[str, Tensor]:
    """Outputs of version 0.1."""
    return load_file(DATA / "checkpoint_0.1_outputs.safetensors")


def make_waveform() -> np.ndarray:
    return np.random.default_rng(0).normal(size=40_000).astype(np.float32) / 10


def test_checkpoint_gives_the_same_embeddings(outputs: dict[str, Tensor]) -> None:
    clap, waveform = Clap.from_ckpt(CHECKPOINT), make_waveform()
    audio = clap.get_audio_embeddings([waveform, waveform[:9000]], 16000)
    assert_close(audio, outputs["audio"], rtol=0, atol=1e-5)
    assert_close(clap.get_text_embeddings(["a dog barks", "rain on a roof"]), outputs["text"], rtol=0, atol=1e-6)


def test_evaluators_of_a_checkpoint_are_built() -> None:
    nodes = read_config(CHECKPOINT / "config.yaml")["evaluation"]
    assert [type(build(node, Evaluator)).__name__ for node in nodes.values()] == ["Retrieval"]


@pytest.mark.parametrize("quirk", QUIRKS)
def test_removed_log_mel_argument_selects_a_class(outputs: dict[str, Tensor], quirk: str) -> None:
    cls, arguments = QUIRKS[quirk]
    defaults = {"float32_hann": False, "float64": False, "bank_rate": None}
    node = {"_target_": "clap.audio.LogMelSpectrogram", **FRONTEND, **defaults, **arguments}
    frontend = build(node, nn.Module)
    assert type(frontend) is cls
    log_mel = frontend(torch.from_numpy(make_waveform()[None, :4000]))[0]
    assert_close(log_mel, outputs[f"log_mel/{quirk}"], rtol=0, atol=1e-3)  # dB


def test_old_arguments_at_their_defaults_are_the_plain_log_mel() -> None:
    defaults = {"float32_hann": False, "float64": False, "bank_rate": None}
    node = {"_target_": "clap.audio.LogMelSpectrogram", **FRONTEND, **defaults}
    assert type(build(node, nn.Module)) is LogMelSpectrogram


@pytest.mark.parametrize("target", ["clap.evaluation.Retrieval.system", "clap.evaluation.os", "evaluation.Retrieval"])
def test_old_names_do_not_allow_other_targets(target: str) -> None:
    with pytest.raises(ValueError, match="is refused"):
        build({"_target_": target}, Evaluator)
