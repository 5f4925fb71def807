"""Clap: building, saving, training, freezing, initialisation from a checkpoint."""

import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from conftest import CAPTIONS, CONF, TINY, make_tone
from torch.testing import assert_close

from clap.checkpoint import CONFIG, WEIGHTS
from clap.config.build import build
from clap.config.saved import read_saved_yaml
from clap.device import choose_device
from clap.loss import SymmetricCrossEntropyLoss
from clap.model import MAX_LOGIT_SCALE, Clap
from clap.parts import build_audio_encoder


@pytest.fixture(scope="module")
def clap(tiny_clap) -> Clap:
    return tiny_clap()


@pytest.fixture(scope="module")
def saved(clap, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    clap.save(folder)
    return folder


def overfit(clap: Clap, steps: int) -> float:
    """Loss on eight pairs after some steps."""
    waveform = torch.stack([torch.from_numpy(make_tone(150.0 * 1.5**i, 1.0, seed=i)) for i in range(8)])
    tokens = clap.text_encoder.tokenizer(list(CAPTIONS))
    optimizer = torch.optim.Adam(clap.parameters(), lr=3e-3)
    criterion = SymmetricCrossEntropyLoss()
    clap.train()
    for _ in range(steps):
        loss = criterion(*clap(waveform, torch.full((8,), 16_000), *tokens), torch.arange(8))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return loss.item()


# Building


def test_config_keyword_is_from_config(tiny_config):
    torch.manual_seed(1)
    first = Clap.from_config(tiny_config())
    torch.manual_seed(1)
    second = Clap(config=tiny_config())
    assert_close(first.state_dict(), second.state_dict())


def test_encoders_are_initialised_before_the_projections(tiny_config):
    config = tiny_config()
    torch.manual_seed(0)
    clap = Clap.from_config(config)
    torch.manual_seed(0)
    build_audio_encoder(config["audio_encoder"], config["fusion"])
    assert same(build(config["text_encoder"], torch.nn.Module), clap.text_encoder)


def test_from_config_reads_the_output_of_cfg_job(tmp_path):
    command = [sys.executable, CONF.parent / "train.py", "--cfg", "job", "--resolve", *TINY]
    printed = subprocess.run(command, capture_output=True, text=True, check=True, cwd=CONF.parent).stdout
    path = tmp_path / "run.yaml"
    path.write_text(printed)
    assert Clap.from_config(path).embed_dim == 16


def test_config_without_a_part_names_it(tiny_config):
    config = {key: value for key, value in tiny_config().items() if key != "fusion"}
    with pytest.raises(ValueError, match="the config has no fusion; give a composed one"):
        Clap.from_config(config)


def test_embed_dim_below_one_is_refused(tiny_config):
    with pytest.raises(ValueError, match="embed_dim=0 is not 1 or more"):
        Clap.from_config(tiny_config("embed_dim=0"))


def test_logit_scale_starts_at_the_value_of_the_loss(tiny_clap):
    assert tiny_clap("loss=sigmoid").logit_scale.exp().item() == pytest.approx(10.0)


def test_device_cuda_is_refused_without_one(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="device=cuda, but PyTorch finds no GPU"):
        choose_device("cuda")


# Checkpoints


def test_saved_model_gives_identical_embeddings(clap, saved, tones):
    again = Clap.from_ckpt(saved)
    assert torch.equal(again.get_audio_embeddings(tones), clap.get_audio_embeddings(tones))
    assert torch.equal(again.get_text_embeddings(CAPTIONS), clap.get_text_embeddings(CAPTIONS))


def test_from_ckpt_is_in_evaluation_mode(saved):
    assert not any(module.training for module in Clap.from_ckpt(saved).modules())


def test_weights_that_share_memory_are_saved(clap, tiny_clap, tmp_path):
    twin = tiny_clap()
    twin.text_projection.linear2.weight = twin.audio_projection.linear2.weight
    twin.save(tmp_path)
    assert_close(Clap.from_ckpt(tmp_path).text_projection.linear2.weight, twin.audio_projection.linear2.weight)


def test_model_without_config_is_not_saved(clap, tmp_path):
    bare = Clap(clap.audio_encoder, clap.text_encoder, clap.audio_projection, clap.text_projection)
    with pytest.raises(ValueError, match="no config to save"):
        bare.save(tmp_path)


def test_saved_config_has_no_aliases(clap, tmp_path):
    shared = [1, 2]
    clap.save(tmp_path, extra={"dataset": {"a": shared, "b": shared}})
    assert read_saved_yaml(tmp_path / CONFIG)["dataset"] == {"a": [1, 2], "b": [1, 2]}


def test_weights_of_other_sizes_are_refused(clap, tmp_path):
    clap.save(tmp_path)
    config = yaml.safe_load((tmp_path / CONFIG).read_text())
    (tmp_path / CONFIG).write_text(yaml.safe_dump(config | {"embed_dim": 8}))
    with pytest.raises(ValueError, match="tensors do not match the model that they describe") as error:
        Clap.from_ckpt(tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("target", ["os.system", "clap.audio.torch.load", "subprocess.Popen"])
def test_checkpoint_config_cannot_name_foreign_code(clap, tmp_path, target):
    clap.save(tmp_path)
    config = yaml.safe_load((tmp_path / CONFIG).read_text())
    config["fusion"] = {"_target_": target, "command": f"touch {tmp_path / 'ran'}"}
    (tmp_path / CONFIG).write_text(yaml.safe_dump(config))
    with pytest.raises(ValueError, match="is refused"):
        Clap.from_ckpt(tmp_path)
    assert not (tmp_path / "ran").exists()


def test_checkpoint_without_config_lists_its_files(tmp_path):
    (tmp_path / WEIGHTS).touch()
    with pytest.raises(FileNotFoundError, match="config.yaml is missing.*the folder holds model.safetensors"):
        Clap.from_ckpt(tmp_path)


# Training


def test_few_steps_overfit_eight_pairs(tiny_clap):
    assert overfit(tiny_clap(), 30) < 0.1


def test_gradients_reach_every_parameter(tiny_clap):
    clap = tiny_clap()
    overfit(clap, 1)
    assert [name for name, p in clap.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


def test_frozen_part_gets_no_gradient_and_keeps_its_mode(tiny_clap):
    clap = tiny_clap()
    clap.freeze(["audio_encoder"])
    assert not clap.audio_encoder.training
    before = {name: value.clone() for name, value in clap.audio_encoder.state_dict().items()}
    overfit(clap, 2)
    assert not clap.audio_encoder.training and clap.text_encoder.training
    assert all(p.grad is None for p in clap.audio_encoder.parameters())
    assert_close(clap.audio_encoder.state_dict(), before, atol=0, rtol=0)


def test_unknown_frozen_part_lists_the_parts(tiny_clap):
    with pytest.raises(ValueError, match="'encoder' is not one of audio_encoder, text_encoder"):
        tiny_clap().freeze(["encoder"])


def test_logit_scale_is_clamped(tiny_clap):
    clap = tiny_clap()
    clap.logit_scale.data.fill_(math.log(500))
    clap.clamp_logit_scale()
    assert clap.logit_scale.exp().item() == pytest.approx(MAX_LOGIT_SCALE)


# Starting from a checkpoint


def same(first: torch.nn.Module, second: torch.nn.Module) -> bool:
    pairs = zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def test_init_from_gives_the_same_model(clap, saved, tiny_config, tones):
    config = tiny_config("audio_encoder.embed_dim=32", "embed_dim=8")
    again = Clap.init_from(saved, config).eval()
    assert torch.equal(again.get_audio_embeddings(tones), clap.get_audio_embeddings(tones))
    assert torch.equal(again.get_text_embeddings(CAPTIONS), clap.get_text_embeddings(CAPTIONS))


def test_init_from_initialises_a_named_encoder(clap, saved, tiny_config):
    config = tiny_config("text_encoder.model.n_layer=2")
    new = Clap.init_from(saved, config, overrides=["text_encoder=gpt2_nano", "text_encoder.model.n_layer=2"])
    assert len(new.text_encoder.transformer.h) == 2 and new.text_encoder.tokenizer.needs_training
    assert same(new.audio_encoder, clap.audio_encoder) and same(new.audio_projection, clap.audio_projection)
    assert not same(new.text_projection, clap.text_projection)


def test_init_from_keeps_the_encoder_under_a_new_fusion(clap, saved, tiny_config):
    new = Clap.init_from(saved, tiny_config("fusion=aff"), overrides=["fusion=aff"])
    assert type(new.audio_encoder.fusion).__name__ == "GlobalAndLocal"
    assert same(new.audio_encoder.trunk.layers, clap.audio_encoder.trunk.layers)
    assert same(new.text_encoder, clap.text_encoder)


def test_init_from_refuses_an_override_without_effect(saved, tiny_config):
    with pytest.raises(ValueError, match="audio_encoder.depths has no effect.*add audio_encoder="):
        Clap.init_from(saved, tiny_config(), overrides=["audio_encoder.depths=[1,1,2]"])


def test_init_from_with_another_width_has_new_projections(clap, saved, tiny_config):
    new = Clap.init_from(saved, tiny_config("embed_dim=8"), overrides=["embed_dim=8"])
    assert new.get_text_embeddings(["a dog"]).shape == (1, 8)
    assert same(new.audio_encoder, clap.audio_encoder)


def test_init_from_with_a_new_loss_has_its_scale(saved, tiny_config):
    new = Clap.init_from(saved, tiny_config("loss=sigmoid"), overrides=["loss=sigmoid"])
    assert new.logit_scale.exp().item() == pytest.approx(10.0)


def test_init_from_saves_a_model_that_loads(saved, tiny_config, tmp_path, tones):
    new = Clap.init_from(saved, tiny_config("fusion=daf"), overrides=["fusion=daf"]).eval()
    new.save(tmp_path)
    assert torch.equal(Clap.from_ckpt(tmp_path).get_audio_embeddings(tones), new.get_audio_embeddings(tones))
