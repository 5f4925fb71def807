"""Inference of Clap: embeddings that do not depend on the batch, similarity, classification by prompts."""

import sys

import numpy as np
import pytest
import soundfile
import soxr
import torch
from conftest import CAPTIONS, make_tone
from torch.testing import assert_close

from clap.model import Clap
from clap.waveform import AudioError


@pytest.fixture(scope="module")
def clap(tiny_clap) -> Clap:
    return tiny_clap()


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
        (np.zeros(16_000, dtype=np.int16), "waveform 0 has dtype int16; give floats"),
        (torch.zeros(16_000, dtype=torch.int32), "has dtype torch.int32; give floats"),
        (np.zeros(16_000, dtype=complex), "has dtype complex128; give floats"),
        (np.linspace(-20_000.0, 20_000.0, 16_000), "samples up to 2e.04, full scale is 1; divide int16 samples"),
        (np.zeros((), dtype=np.float32), r"has shape \(\)"),
        (np.full((2, 16_000), np.inf), "contains NaN or infinite"),
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


def test_many_files_have_a_progress_bar_on_a_terminal(clap, tones, capfd, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
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


def test_audio_alone_needs_no_tokenizer(clap, tones, tmp_path):
    clap.save(tmp_path)
    clap = Clap.from_ckpt(tmp_path, settings={"text_encoder.tokenizer": str(tmp_path / "absent")})
    assert clap.get_audio_embeddings(tones[:1]).shape == (1, 16)
    with pytest.raises(FileNotFoundError, match="no tokenizer .*absent"):
        clap.get_text_embeddings(["a dog"])


def test_text_without_text_encoder_is_refused(clap):
    bare = Clap(clap.audio_encoder, None, clap.audio_projection, None)
    with pytest.raises(ValueError, match="no text encoder"):
        bare.get_text_embeddings(["a dog"])


# Classification by prompts


def test_probabilities_are_those_of_the_scaled_similarity(clap, tones):
    prompts = [f"the sound of {label}" for label in ("a dog", "rain")]
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
        (["a dog", " "], "{}", "label 1 of 2 is blank"),
        (["a dog", None], "{}", "label 1 of 2 is None, of type NoneType"),
        (["a dog"], ["{}", 3], "template 1 of 2 is 3, of type int"),
        (["a dog", "rain", "a dog"], "{}", "label 'a dog' is given twice"),
        ("a dog", "{}", "labels='a dog' is a string"),
        (["a dog"], "a sound", r"templates=\['a sound'\]: each needs {} for the label; set template"),
        (["a dog"], [], "each needs {}"),
        (["a dog"], ["{}", "a sound"], "each needs {}"),
    ],
    ids=["none", "blank", "not text", "number", "twice", "text", "unfilled", "no template", "one unfilled"],
)
def test_invalid_labels_and_templates_are_refused(clap, tones, labels, template, message):
    with pytest.raises(ValueError, match=message):
        clap.classify(tones, labels, template)


def test_wrong_caption_is_named_by_its_position_in_all_batches(clap):
    with pytest.raises(ValueError, match="^caption 5 of 6 is None"):
        clap.get_text_embeddings([*["a dog"] * 5, None], batch_size=2)
