"""Clap: building, saving, freezing, initialisation from a checkpoint; embeddings do not depend on the batch."""

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr
import torch
import yaml
from conftest import CAPTIONS, CONF, TINY, make_tone
from torch.testing import assert_close

from clap.checkpoint import CONFIG, WEIGHTS
from clap.config.build import build
from clap.device import choose_device
from clap.loss import SymmetricCrossEntropyLoss
from clap.model import MAX_LOGIT_SCALE, Clap
from clap.parts import build_audio_encoder
from clap.waveform import AudioError


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


def test_weights_of_other_sizes_are_refused(clap, tmp_path):
    clap.save(tmp_path)
    config = yaml.safe_load((tmp_path / CONFIG).read_text())
    (tmp_path / CONFIG).write_text(yaml.safe_dump(config | {"embed_dim": 8}))
    with pytest.raises(ValueError, match="weights do not match its config") as error:
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


# Audio embeddings


@pytest.fixture(params=["none", "mean", "aff"])
def fused(request, tiny_clap) -> Clap:
    return tiny_clap(f"fusion={request.param}")


def test_embedding_does_not_depend_on_the_batch(fused, tones):
    together = fused.get_audio_embeddings(tones)
    last_first = fused.get_audio_embeddings(tones[::-1], batch_size=3).flip(0)
    alone = torch.cat([fused.get_audio_embeddings([path]) for path in tones])
    assert_close(together, alone, atol=1e-6, rtol=0)
    assert_close(last_first, alone, atol=1e-6, rtol=0)


def test_embedding_is_the_same_in_training_mode(fused, tones):
    in_evaluation = fused.eval().get_audio_embeddings(tones)
    assert_close(fused.train().get_audio_embeddings(tones), in_evaluation, atol=0, rtol=0)
    assert fused.training


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("sample_rate", [8_000, 16_000, 44_100])
def test_array_gives_the_embedding_of_its_file(clap, tmp_path, sample_rate, channels):
    rows = [make_tone(300.0 * (i + 1), 2.5, sample_rate=sample_rate, seed=i) for i in range(channels)]
    waveform = np.stack(rows)
    soundfile.write(tmp_path / "a.wav", waveform.T, sample_rate, subtype="FLOAT")
    from_array = clap.get_audio_embeddings([waveform], sample_rate)
    assert_close(from_array, clap.get_audio_embeddings([tmp_path / "a.wav"]), atol=1e-6, rtol=0)


def test_resampled_array_gives_a_close_embedding(clap):
    waveform = make_tone(300.0, 1.0, sample_rate=48_000)
    low = soxr.resample(waveform, 48_000, 16_000)
    assert_close(clap.get_audio_embeddings([waveform], 48_000), clap.get_audio_embeddings([low], 16_000))


def test_batch_array_is_its_rows(clap):
    waveforms = np.stack([make_tone(300.0, 1.0), make_tone(600.0, 1.0)])
    rows = clap.get_audio_embeddings(list(waveforms), 16_000)
    assert_close(clap.get_audio_embeddings(waveforms, 16_000), rows)
    assert_close(clap.get_audio_embeddings(torch.from_numpy(waveforms), 16_000), rows)


def test_waveforms_may_differ_in_length(clap):
    embeddings = clap.get_audio_embeddings([make_tone(300.0, 0.3), make_tone(300.0, 3.0)], 16_000)
    assert embeddings.shape == (2, 16)


def test_one_path_and_one_waveform_are_one_clip(clap, tones):
    assert clap.get_audio_embeddings(str(tones[0])).shape == (1, 16)
    assert clap.get_audio_embeddings(make_tone(300.0, 1.0), 16_000).shape == (1, 16)


def test_empty_input_gives_no_rows(clap):
    assert clap.get_audio_embeddings([]).shape == (0, 16)
    assert clap.get_text_embeddings([]).shape == (0, 16)


def test_waveform_needs_its_rate(clap):
    with pytest.raises(ValueError, match="waveforms need sample_rate"):
        clap.get_audio_embeddings([make_tone(300.0, 1.0)])


@pytest.mark.parametrize(
    ("waveform", "message"),
    [
        (np.zeros(16_000, dtype=np.int16), "waveform 0 has dtype torch.int16; give floats"),
        (np.zeros((16_000, 2), dtype=np.float32), r"waveform 0 has shape \(16000, 2\); give .*channels, samples"),
        (np.zeros(0, dtype=np.float32), r"has shape \(0,\)"),
        (np.full(16_000, np.nan), "contains NaN"),
    ],
)
def test_invalid_waveform_is_named(clap, waveform, message):
    with pytest.raises(AudioError, match=message):
        clap.get_audio_embeddings([waveform], 16_000)


def test_rows_are_in_the_order_given(fused, tones):
    shuffled = [tones[i] for i in (3, 0, 7, 5, 1, 6, 2, 4)]
    alone = torch.cat([fused.get_audio_embeddings(path) for path in shuffled])
    assert_close(fused.get_audio_embeddings(shuffled, batch_size=3), alone, atol=1e-6, rtol=0)


def test_batches_group_clips_of_similar_length(tiny_clap, tones, monkeypatch):
    clap = tiny_clap("fusion=mean")
    seen = []
    embed_audio = clap.embed_audio
    monkeypatch.setattr(clap, "embed_audio", lambda *args: seen.append(args[1].tolist()) or embed_audio(*args))
    clap.get_audio_embeddings([tones[i] for i in (3, 0, 7, 5, 1, 6, 2, 4)], batch_size=4)
    assert seen == [[64_000, 56_000, 48_000, 40_000], [32_000, 24_000, 16_000, 8_000]]


def test_iterator_of_files_is_accepted(clap, tones):
    assert torch.equal(clap.get_audio_embeddings(iter(tones)), clap.get_audio_embeddings(tones))


def test_many_files_have_a_progress_bar(clap, tones, capfd):
    clap.get_audio_embeddings(tones, batch_size=4)
    assert capfd.readouterr().err == ""
    clap.get_audio_embeddings(tones, batch_size=3)
    captured = capfd.readouterr()
    assert "8/8" in captured.err and captured.out == ""
    clap.get_audio_embeddings(tones, batch_size=3, progress=False)
    assert capfd.readouterr().err == ""


def test_embed_each_yields_positions_and_errors(clap, tones, tmp_path):
    rows = dict(clap.embed_each([tones[0], tmp_path / "absent.wav", tones[1]]))
    assert isinstance(rows[1], AudioError) and "absent.wav" in str(rows[1])
    assert_close(torch.stack([rows[0], rows[2]]), clap.get_audio_embeddings(tones[:2]), atol=1e-6, rtol=0)


def test_gradients_are_on_between_clips(clap, tones):
    assert all(torch.is_grad_enabled() for _ in clap.embed_each(tones))


def test_invalid_file_is_named(clap, tmp_path):
    with pytest.raises(AudioError, match="absent.wav: no such audio file"):
        clap.get_audio_embeddings([tmp_path / "absent.wav"])


def test_embeddings_can_be_trained_on(clap, tones):
    probe = torch.nn.Linear(16, 2)
    probe(clap.get_audio_embeddings(tones)).sum().backward()
    assert probe.weight.grad.abs().sum() > 0


def test_mean_of_windows_overrides_the_fusion(tiny_clap, tones):
    clap, mean = tiny_clap(), tiny_clap("fusion=mean")
    clap.set_windows("mean")
    assert_close(clap.get_audio_embeddings(tones), mean.get_audio_embeddings(tones))


def test_unknown_windows_are_refused(clap):
    with pytest.raises(ValueError, match="windows='all' is not mean or null"):
        clap.set_windows("all")


# Text embeddings and similarity


def test_embeddings_have_unit_norm(clap, tones):
    for embedding in (clap.get_text_embeddings(CAPTIONS), clap.get_audio_embeddings(tones)):
        assert_close(embedding.norm(dim=1), torch.ones(8))


def test_caption_does_not_depend_on_its_batch(clap):
    alone = torch.cat([clap.get_text_embeddings([caption]) for caption in CAPTIONS])
    assert_close(clap.get_text_embeddings(CAPTIONS, batch_size=3), alone, atol=1e-6, rtol=0)


def test_similarity_is_scaled(clap):
    audio, text = torch.eye(2), torch.eye(2)
    assert_close(clap.compute_similarity(audio, text), torch.eye(2) / 0.07, rtol=1e-4, atol=0)


def test_audio_alone_needs_no_tokenizer(saved, tones, tmp_path):
    clap = Clap.from_ckpt(saved, settings={"text_encoder.tokenizer": str(tmp_path / "absent")})
    assert clap.get_audio_embeddings(tones[:1]).shape == (1, 16)
    with pytest.raises(FileNotFoundError, match="no tokenizer .*absent"):
        clap.get_text_embeddings(["a dog"])


def test_text_without_text_encoder_is_refused(clap):
    bare = Clap(clap.audio_encoder, None, clap.audio_projection, None)
    with pytest.raises(ValueError, match="no text encoder"):
        bare.get_text_embeddings(["a dog"])


# Classification by prompts


def test_probabilities_are_those_of_the_scaled_similarity(clap, tones):
    prompts = [f"this is a sound of {label}." for label in ("a dog", "rain")]
    logits = clap.compute_similarity(clap.get_audio_embeddings(tones), clap.get_text_embeddings(prompts))
    assert_close(clap.classify(tones, ["a dog", "rain"]), logits.softmax(dim=1))


def test_templates_are_averaged(clap, tones):
    templates = ["the sound of {}", "{}"]
    mean = clap.get_text_embeddings(["the sound of rain", "rain", "the sound of {a}", "{a}"]).view(2, 2, 16).mean(dim=1)
    mean = mean / mean.norm(dim=1, keepdim=True)
    expected = clap.compute_similarity(clap.get_audio_embeddings(tones), mean).softmax(dim=1)
    assert_close(clap.classify(tones, ["rain", "{a}"], templates), expected)


def test_waveforms_are_classified(clap):
    waveforms = [make_tone(300.0, 0.3), make_tone(300.0, 3.0)]
    probabilities = clap.classify(waveforms, ["a dog", "rain", "wind"], sample_rate=16_000)
    assert probabilities.shape == (2, 3)
    assert_close(probabilities.sum(dim=1), torch.ones(2))


@pytest.mark.parametrize(
    ("labels", "template", "message"),
    [
        ([], "{}", "labels=.* one or more"),
        (["a dog", " "], "{}", "not blank"),
        (["a dog", "rain", "a dog"], "{}", "label 'a dog' is given twice"),
        ("a dog", "{}", "labels='a dog' is a string"),
        (["a dog"], "a sound", "template='a sound': each needs {}"),
        (["a dog"], [], "each needs {}"),
        (["a dog"], ["{}", "a sound"], "each needs {}"),
    ],
    ids=["none", "blank", "twice", "text", "unfilled", "no template", "one unfilled"],
)
def test_invalid_labels_and_templates_are_refused(clap, tones, labels, template, message):
    with pytest.raises(ValueError, match=message):
        clap.classify(tones, labels, template)


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
