"""Switches of the trainer that change speed and memory, and results at most by rounding."""

import logging
import shutil
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from small_encoders import make_batch, make_encoder, make_frontend
from torch import Tensor, nn
from torch.nn import functional as F
from torch.testing import assert_close

from clap.audio_encoder.base import AudioEncoder
from clap.audio_encoder.cnn14 import Cnn14
from clap.audio_encoder.htsat import HTSAT
from clap.audio_encoder.timm_backbone import TimmBackbone
from clap.model import Clap
from clap.text_encoder import TextEncoder
from clap.training.acceleration import LENGTH_STEP, prepare
from clap.training.precision import make_autocast
from clap.training.trainer_settings import TrainerSettings

CAPTIONS = ["a dog barks", "rain", "a long caption of many words about wind, rain, a dog and two cats in a tree!"]
RANDOM = {Cnn14: {"dropout": 0.2, "last_dropout": 0.5}, HTSAT: {"drop_path": 0.5}}
LENGTHS = [16000, 9000, 24000, 12000]


def take_gradients(module: nn.Module, *inputs: Tensor) -> tuple[dict[str, Tensor], int]:
    """Gradients and buffers of a training step with fixed random numbers, and the number of kept activations."""
    kept = []
    torch.manual_seed(2)
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor.numel()) or tensor, lambda x: x):
        loss = module.train()(*inputs).square().sum()
    loss.backward()
    return {name: p.grad for name, p in module.named_parameters()} | dict(module.named_buffers()), sum(kept)


def compare_checkpointed(make: Callable[[], nn.Module], *inputs: Tensor) -> None:
    plain, checkpointed = make(), make()
    checkpointed.checkpoint_activations()
    (expected, kept), (found, fewer) = take_gradients(plain, *inputs), take_gradients(checkpointed, *inputs)
    assert_close(found, expected, rtol=0, atol=0)
    assert fewer < 0.8 * kept


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-6), ("bf16", 2e-2)])
def test_fused_attention_has_the_same_gradients(precision: str, tolerance: float, monkeypatch: pytest.MonkeyPatch):
    attend, calls = F.scaled_dot_product_attention, []
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda *a, **b: calls.append(a) or attend(*a, **b))
    gradients = []
    for fused in (False, True):
        clap = nn.Module()
        clap.audio_encoder, clap.frozen = make_encoder(HTSAT, "iaff"), ()
        prepare(clap, TrainerSettings(fused_attention=fused, channels_last=False))
        with make_autocast(precision, torch.device("cpu"))[0]:
            found, _ = take_gradients(clap.audio_encoder, *make_batch(LENGTHS))
        gradients.append({name: found[name] for name, _ in clap.audio_encoder.named_parameters()})
        assert len(calls) == (4 if fused else 0)  # of the blocks
    largest = max(float(gradient.abs().max()) for gradient in gradients[0].values())
    assert_close(*gradients, rtol=0, atol=tolerance * largest)


@pytest.mark.parametrize("cls", [Cnn14, HTSAT])
@pytest.mark.parametrize("fusion", ["none", "iaff"])
def test_checkpointed_audio_encoder_keeps_less_for_the_same_gradients(cls: type[AudioEncoder], fusion: str):
    compare_checkpointed(lambda: make_encoder(cls, fusion, **RANDOM[cls]), *make_batch(LENGTHS))


def make_text_encoder(model_type: str = "roberta", **options: object) -> TextEncoder:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    model = {"model_type": model_type, "vocab_size": 300, **sizes}
    encoder = TextEncoder(pretrained=False, tokenizer="train", model=model, **options)
    encoder.tokenizer.train(CAPTIONS)
    return encoder


def test_checkpointed_text_encoder_keeps_less_for_the_same_gradients():
    compare_checkpointed(make_text_encoder, *make_text_encoder().tokenize(CAPTIONS))


def test_batch_statistics_are_not_updated_twice():
    encoder = TimmBackbone(name="resnet10t", frontend=make_frontend())
    with pytest.raises(ValueError, match="audio_encoder.name=resnet10t twice a step; set it to false"):
        encoder.checkpoint_activations()
    with pytest.raises(ValueError, match="AudioEncoder has no activation checkpointing; set trainer.activation_check"):
        AudioEncoder().checkpoint_activations()


@pytest.mark.parametrize("pooling", ["first", "last", "mean", "pooler"])
def test_padding_of_captions_changes_nothing(pooling: str):
    encoder = make_text_encoder(pooling=pooling).eval()
    ids, mask = encoder.tokenize(CAPTIONS)
    expected = encoder(ids, mask)
    encoder.length_step = LENGTH_STEP
    assert encoder.pad_to_step(ids, mask)[0].shape[1] % LENGTH_STEP == 0 < ids.shape[1] % LENGTH_STEP
    assert_close(encoder(ids, mask), expected, rtol=1e-6, atol=1e-6)


def test_padding_ends_at_the_longest_caption():
    encoder = make_text_encoder(max_length=20)
    encoder.length_step = LENGTH_STEP
    ids = torch.zeros(1, 17, dtype=torch.long)
    assert encoder.pad_to_step(ids, ids == 0)[0].shape[1] == 20


def test_log_mel_is_float32_under_autocast():
    dtypes = []

    class Spy(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func: Callable, types: object, args: tuple = (), kwargs: dict | None = None):
            dtypes.extend(x.dtype for x in args if isinstance(x, Tensor) and func.overloadpacket.__name__ in PRODUCTS)
            return func(*args, **(kwargs or {}))

    frontend, waveform = make_frontend(), torch.randn(1, 16000)
    with make_autocast("bf16", torch.device("cpu"))[0], Spy():
        log_mel = frontend(waveform)
    assert set(dtypes) == {torch.float32}
    assert_close(log_mel, frontend(waveform), rtol=0, atol=0)


PRODUCTS = ("mm", "bmm", "addmm", "matmul")


def test_channels_last_is_a_layout_only(tiny_clap: Callable):
    plain, other = make_encoder(Cnn14), make_encoder(Cnn14)
    clap = tiny_clap()
    clap.audio_encoder = other
    prepare(clap, TrainerSettings(channels_last=True))
    weight = other.conv_block2.conv1.weight
    assert weight.is_contiguous(memory_format=torch.channels_last)
    batch = make_batch(LENGTHS)
    assert_close(take_gradients(other, *batch)[0], take_gradients(plain, *batch)[0], rtol=1e-3, atol=1e-3)
    assert weight.grad.stride() == weight.stride()


def test_switches_are_off_on_a_cpu(tiny_clap: Callable):
    clap = tiny_clap()
    before = deepcopy(clap)
    prepare(clap, TrainerSettings())
    for (name, tensor), other in zip(clap.state_dict().items(), before.state_dict().values(), strict=True):
        assert tensor.stride() == other.stride(), name
    assert clap.text_encoder.length_step is None
    assert all(module._compiled_call_impl is None for module in clap.modules())


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler, g++ is not installed")
@pytest.mark.slow
def test_compiled_training_saves_the_checkpoints_of_any_run(
    make_trainer: Callable, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    plain, compiled = make_trainer(epochs=1), make_trainer(epochs=1, compile=True)
    results = [trainer.train_and_eval(tmp_path / name) for trainer, name in ((plain, "plain"), (compiled, "compiled"))]
    assert results[0].keys() == results[1].keys()
    found, expected = (trainer.clap.state_dict() for trainer in (compiled, plain))
    assert found.keys() == expected.keys()
    loaded = Clap.from_ckpt(tmp_path / "compiled")
    assert_close(loaded.get_text_embeddings(CAPTIONS), compiled.clap.get_text_embeddings(CAPTIONS), rtol=0, atol=1e-5)
    resumed = make_trainer(epochs=2, compile=True)
    resumed.resume(tmp_path / "compiled" / "checkpoints" / "last")
    resumed.fit(tmp_path / "compiled")
    assert "recompile_limit" not in caplog.text
    assert resumed.step == 4


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler, g++ is not installed")
@pytest.mark.slow
def test_compiled_text_encoder_has_few_lengths(tiny_clap: Callable, caplog: pytest.LogCaptureFixture):
    clap = tiny_clap()
    prepare(clap, TrainerSettings(compile=True))
    with caplog.at_level(logging.WARNING), torch.no_grad():
        torch._dynamo.reset()  # code that an earlier test has compiled
        torch._dynamo.utils.counters.clear()
        for tokens in range(3, 60):
            ids = torch.zeros(2, tokens, dtype=torch.long)
            clap.eval().embed_text(ids, ids == 0)
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert 0 < graphs <= 2 * 4  # with and without padding: 16, 32, 48 and 64 tokens
    assert "recompile_limit" not in caplog.text
