"""Low-rank adapters: training, checkpoints with and without them, and their options."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from test_state import interrupt_after
from torch import nn
from torch.optim import AdamW

from clap import ClapTrainer, SymmetricCrossEntropyLoss
from clap.checkpoint import CONFIG, read_weights
from clap.config.lora_settings import read_lora
from clap.lora import adapted_layers, merge_weights
from clap.model import Clap
from clap.study.trained_model import open_clap
from clap.training.trainer_settings import TrainerSettings

LORA = ["lora.text_encoder={r: 2, dropout: 0.1}", "lora.audio_encoder={r: 3, target_modules: [qkv, proj]}"]


@pytest.fixture
def train(make_trainer: Callable, tiny_clap: Callable) -> Callable:
    """`train(folder, ...)` -> a trainer of a tiny model with adapters, after training, or interrupted after a step."""

    def run(
        folder: Path, *, stop_after: int | None = None, resume: Path | None = None, **options: object
    ) -> ClapTrainer:
        loaders = make_trainer().loaders.values()
        clap = tiny_clap(*LORA)
        optimizer = AdamW([p for p in clap.parameters() if p.requires_grad], lr=1e-2)
        settings = TrainerSettings(max_epochs=2, **options)
        trainer = ClapTrainer(*loaders, clap, optimizer, SymmetricCrossEntropyLoss(), settings=settings)
        if resume is not None:
            trainer.resume(resume)
        if stop_after is None:
            trainer.train_and_eval(folder)
        else:
            trainer.train_step = interrupt_after(trainer, stop_after)
            with pytest.raises(KeyboardInterrupt):
                trainer.fit(folder)
        return trainer

    return run


def embed(clap: nn.Module) -> torch.Tensor:
    clap.eval()
    with torch.no_grad():
        ids, mask = clap.tokenizer(["a dog barks", "rain"])
        return torch.cat(
            [clap.embed_text(ids, mask), clap.embed_audio(torch.ones(1, 9000).cumsum(1).sin(), torch.tensor([9000]))]
        )


def test_new_adapters_change_nothing_and_only_they_train(tiny_clap: Callable):
    plain, clap = tiny_clap(), tiny_clap(*LORA)
    torch.testing.assert_close(embed(clap), embed(plain), rtol=0, atol=0)
    for part in (clap.audio_encoder, clap.text_encoder):
        trained = [name for name, parameter in part.named_parameters() if parameter.requires_grad]
        assert trained and all(".lora_" in name for name in trained)
    assert all(parameter.requires_grad for parameter in clap.text_projection.parameters())
    names = adapted_layers(clap)
    assert {name.rpartition(".")[2] for name in names if name.startswith("audio_encoder")} == {"qkv", "proj"}


def test_gradients_reach_every_adapter(tiny_clap: Callable):
    clap = tiny_clap(*LORA)
    ids, mask = clap.tokenizer(["a dog barks", "rain"])
    audio, text, scale = clap(torch.randn(2, 9000), torch.tensor([9000, 8000]), ids, mask)
    (audio @ text.T * scale).square().sum().backward()
    layers = adapted_layers(clap)
    assert len(layers) > 4
    assert all(layer.lora_B["default"].weight.grad.any() for layer in layers.values())


def test_best_is_merged_and_last_is_not(train: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    trainer = train(tmp_path, ema_decay=0.5, keep_best=2)
    folder = tmp_path / "checkpoints"
    for name in sorted(path.name for path in folder.iterdir()):
        keys, has_adapters = read_weights(folder / name).keys(), name == "last"
        assert any("lora_" in key for key in keys) == has_adapters
        assert ("lora:" in (folder / name / CONFIG).read_text()) == has_adapters
        clap = Clap.from_ckpt(folder / name)
        assert not adapted_layers(clap) and all(p.requires_grad for p in clap.parameters())
    monkeypatch.setitem(sys.modules, "peft", None)  # which is not installed where a model is used
    best = Clap.from_ckpt(folder / "best")
    torch.testing.assert_close(embed(trainer.clap), embed(best), rtol=0, atol=0)  # of the numbers in metrics.json


def test_merged_model_equals_the_adapted_one(train: Callable, tmp_path: Path):
    trainer = train(tmp_path, stop_after=3)
    merged = Clap.from_ckpt(tmp_path / "checkpoints" / "last")
    assert any(layer.lora_B["default"].weight.any() for layer in adapted_layers(trainer.clap).values())
    torch.testing.assert_close(embed(trainer.clap), embed(merged))
    weights = merge_weights(trainer.clap, trainer.clap.state_dict())
    assert all(torch.equal(value, weights[name]) for name, value in merged.state_dict().items())


def test_run_resumes_exactly(train: Callable, tmp_path: Path):
    train(tmp_path / "whole")
    train(tmp_path / "stopped", stop_after=2)
    train(tmp_path / "stopped", resume=tmp_path / "stopped" / "checkpoints" / "last")
    for name in ("best", "last"):
        weights = (tmp_path / run / "checkpoints" / name / "model.safetensors" for run in ("whole", "stopped"))
        assert len({path.read_bytes() for path in weights}) == 1


def test_run_starts_from_a_checkpoint_with_new_adapters_or_none(train: Callable, tiny_config: Callable, tmp_path: Path):
    train(tmp_path)
    source = tmp_path / "checkpoints" / "last"
    expected = embed(Clap.from_ckpt(source))
    for overrides in ([], ["lora.text_encoder={r: 4}"]):
        config = tiny_config(*overrides, f"init_from={source}")
        clap = open_clap(config, resume_from=None, overrides=[])
        assert bool(adapted_layers(clap)) == bool(overrides)
        torch.testing.assert_close(embed(clap), expected, rtol=0, atol=0)


def test_model_with_adapters_is_not_exported(tiny_clap: Callable, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    caplog.set_level("INFO")
    tiny_clap(*LORA).save_pretrained(tmp_path / "model")
    assert "low-rank adapters" in caplog.text and not adapted_layers(Clap.from_ckpt(tmp_path / "model"))


def test_unknown_layers_are_refused(tiny_clap: Callable):
    with pytest.raises(ValueError, match=r"no linear layer has such a name; their names end in .*c_attn"):
        tiny_clap("lora.text_encoder={target_modules: [query]}")


def test_options_have_defaults_and_null_is_none():
    lora = {"text_encoder": {"r": 4}, "audio_encoder": None}
    assert read_lora(lora) == {"text_encoder": {"r": 4, "alpha": 16, "dropout": 0.0, "target_modules": None}}
    assert read_lora(None) == {}


@pytest.mark.parametrize(
    ("lora", "problem"),
    [
        ({"fusion": {}}, "lora.fusion: only audio_encoder and text_encoder"),
        ({"text_encoder": {"rank": 4}}, "lora.text_encoder.rank: there is no such key"),
        ({"text_encoder": {"r": 0}}, "lora.text_encoder.r=0 must be an integer, at least 1"),
        ({"text_encoder": {"alpha": True}}, "lora.text_encoder.alpha=True must be a number above 0"),
        ({"text_encoder": {"dropout": 1}}, "lora.text_encoder.dropout=1 must be at least 0 and below 1"),
        ({"text_encoder": {"target_modules": "query"}}, "target_modules=query must be null, for all linear layers, or"),
    ],
)
def test_wrong_option_is_named(lora: dict, problem: str):
    with pytest.raises(ValueError, match=problem):
        read_lora(lora)
