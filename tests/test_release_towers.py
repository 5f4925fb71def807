"""The traceable towers: equal to the model for every fusion, and as ONNX graphs."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from small_encoders import FUSIONS, SMALL, make_batch, make_encoder, make_frontend, randomize
from torch import nn
from torch.testing import assert_close

from clap.audio_encoder.base import AudioEncoder
from clap.audio_encoder.cnn14 import Cnn14
from clap.audio_encoder.timm_backbone import TimmBackbone
from clap.model import MLPProjection
from clap.published.frontends import TorchaudioLogMel, TransformersLogMel
from clap.release.onnx_export import trace
from clap.release.towers import AudioTower, TextTower
from clap.text_encoder import TextEncoder

# In samples; the window is 16,000. 16,001 has as many frames as the window, 16,300 one more.
BATCHES = ([5000, 16000, 16001, 16300, 40000], [3000, 500], [48000])
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
TRANSFORMERS = {
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 40, "eos_token_id": 2},
    "roberta": {**SIZES, "max_position_embeddings": 40},
    "bert": {**SIZES, "max_position_embeddings": 40},
}


def make_clap(encoder: nn.Module) -> SimpleNamespace:
    randomize(encoder)
    return SimpleNamespace(audio_encoder=encoder, audio_projection=MLPProjection(encoder.output_dim, 16).eval())


@torch.no_grad()
def embed(clap: SimpleNamespace, waveform: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    features = clap.audio_projection(clap.audio_encoder(waveform, lengths))
    return nn.functional.normalize(features, dim=-1)


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("cls", SMALL, ids=lambda cls: cls.__name__)
def test_audio_tower_equals_the_model(cls: type, fusion: str, one_thread: None):
    clap = make_clap(make_encoder(cls, fusion))
    tower = AudioTower(clap)
    for lengths in BATCHES:
        batch = make_batch(lengths)
        with torch.no_grad():
            assert_close(tower(*batch), embed(clap, *batch), atol=1e-6, rtol=0)


def test_windows_mean_replaces_the_fusion(one_thread: None):
    clap = make_clap(make_encoder(next(iter(SMALL)), "none"))
    one_window = AudioTower(clap)
    clap.audio_encoder.set_windows("mean")
    batch = make_batch(BATCHES[0])
    with torch.no_grad():
        assert_close(AudioTower(clap)(*batch), embed(clap, *batch), atol=1e-6, rtol=0)
        assert (one_window(*batch)[-1] - embed(clap, *batch)[-1]).abs().max() > 1e-3


def test_samples_beyond_the_length_are_ignored(one_thread: None):
    clap = make_clap(make_encoder(next(iter(SMALL)), "aff"))
    waveform, lengths = make_batch(BATCHES[0])
    noise = torch.where(torch.arange(waveform.shape[1]) < lengths[:, None], waveform, torch.randn(waveform.shape))
    with torch.no_grad():
        assert_close(AudioTower(clap)(noise, lengths), embed(clap, waveform, lengths), atol=1e-6, rtol=0)


def test_encoder_without_log_mel_is_refused():
    with pytest.raises(ValueError, match="AudioEncoder cannot be exported: it has no log-mel spectrogram"):
        AudioTower(SimpleNamespace(audio_encoder=AudioEncoder()))


@pytest.mark.slow
@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("cls", [*SMALL, TimmBackbone], ids=lambda cls: cls.__name__)
def test_audio_graph_equals_the_model(cls: type, fusion: str, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    if cls is TimmBackbone and fusion in ("daf", "aff", "iaff"):
        pytest.skip("TimmBackbone does not support fusion inside the encoder")
    if cls is TimmBackbone:
        encoder = TimmBackbone(name="test_vit", frontend=make_frontend(), fusion=FUSIONS[fusion]()).eval()
    else:
        encoder = make_encoder(cls, fusion)
    clap, example = make_clap(encoder), make_batch([40000, 12000, 16050])
    shapes = {"waveform": {0: "batch", 1: "samples"}, "lengths": {0: "batch"}}
    trace(AudioTower(clap), example, shapes, "audio_embedding", tmp_path / "audio.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "audio.onnx")
    for lengths in BATCHES:
        waveform, length = make_batch(lengths)
        (found,) = session.run(None, {"waveform": waveform.numpy(), "lengths": length.numpy()})
        np.testing.assert_allclose(found, embed(clap, waveform, length), atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("cls", [TransformersLogMel, TorchaudioLogMel])
def test_frontend_of_published_models_is_exported(cls: type, tmp_path):
    """In double precision, or with another Hann window, and an n_fft that is not a power of two."""
    onnxruntime = pytest.importorskip("onnxruntime")
    frontend = cls(16_000, window=1.0, n_fft=400, hop_length=160, n_mels=32, f_max=8000.0, int16=True)
    clap = make_clap(make_encoder(Cnn14, frontend=frontend))
    shapes = {"waveform": {0: "batch", 1: "samples"}, "lengths": {0: "batch"}}
    trace(AudioTower(clap), make_batch([40000, 12000, 16050]), shapes, "audio_embedding", tmp_path / "audio.onnx")
    waveform, length = make_batch(BATCHES[0])
    session = onnxruntime.InferenceSession(tmp_path / "audio.onnx")
    (found,) = session.run(None, {"waveform": waveform.numpy(), "lengths": length.numpy()})
    np.testing.assert_allclose(found, embed(clap, waveform, length), atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind, pooling",
    [(kind, pooling) for kind in TRANSFORMERS for pooling in ("first", "last", "mean", "pooler")],
)
def test_text_graph_equals_the_model(kind: str, pooling: str, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    if (kind, pooling) == ("gpt2", "pooler"):
        pooling = "last_nonzero"  # it has no pooler
    torch.manual_seed(0)
    sizes = {"model_type": kind, "vocab_size": 300, **TRANSFORMERS[kind]}
    encoder = TextEncoder(pretrained=False, tokenizer="unread", model=sizes, pooling=pooling, max_length=37).eval()
    clap = SimpleNamespace(text_encoder=encoder, text_projection=MLPProjection(encoder.output_dim, 16).eval())
    tower = TextTower(clap)
    shapes = {name: {0: "batch", 1: "tokens"} for name in ("token_ids", "token_mask")}
    trace(tower, make_tokens([7, 3, 12]), shapes, "text_embedding", tmp_path / "text.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "text.onnx")
    for lengths in ([5], [5, 5], [3, 37, 20, 8], [37]):
        ids, mask = make_tokens(lengths)
        (found,) = session.run(None, {"token_ids": ids.numpy(), "token_mask": mask.numpy()})
        with torch.no_grad():
            np.testing.assert_allclose(found, tower(ids, mask), atol=1e-5)


def make_tokens(lengths: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(sum(lengths))
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    ids = torch.randint(5, 300, mask.shape, generator=generator)
    return torch.where(mask, ids, 1), mask.long()
