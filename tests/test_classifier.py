"""ClapAudioClassifier: its logits, its checkpoint, and its classes of files."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from torch.testing import assert_close

from clap import Clap, ClapAudioClassifier, load_model

NAMES = ["dog", "rain", "wind"]
WAVEFORM, LENGTHS = (
    0.1 * torch.randn(2, 32_000, generator=torch.Generator().manual_seed(0)),
    torch.tensor([32_000, 900]),
)


@pytest.fixture
def make(tiny_clap: Callable) -> Callable[..., ClapAudioClassifier]:
    return lambda **options: ClapAudioClassifier(tiny_clap(), NAMES, **options).eval()


@pytest.mark.parametrize("features", ["encoder", "projection"])
def test_logits_are_a_linear_layer_over_the_features(tiny_clap: Callable, features: str):
    clap = tiny_clap().eval()
    classifier = ClapAudioClassifier(clap, NAMES, features=features).eval()
    expected = clap.audio_encoder(WAVEFORM, LENGTHS)
    if features == "projection":
        expected = clap.audio_projection(expected)
    assert_close(classifier(WAVEFORM, LENGTHS), expected @ classifier.head.weight.T + classifier.head.bias)
    assert classifier(WAVEFORM, LENGTHS).shape == (2, 3)


def test_only_the_audio_tower_and_the_head_have_parameters(make: Callable):
    parts = {name.split(".")[0] for name, _ in make().named_parameters()}
    assert parts == {"audio_encoder", "head"}


@pytest.mark.parametrize("features", ["encoder", "projection"])
def test_checkpoint_restores_the_classifier(make: Callable, tmp_path: Path, features: str):
    classifier = make(features=features, multi_label=True)
    classifier.trained_on = {"clips": 3}
    classifier.save_pretrained(tmp_path / "saved")
    for again in (ClapAudioClassifier.from_ckpt(tmp_path / "saved"), load_model(tmp_path / "saved")):
        assert_close(again(WAVEFORM, LENGTHS), classifier(WAVEFORM, LENGTHS), rtol=0, atol=0)
        assert (again.class_names, again.multi_label, again.trained_on) == (NAMES, True, {"clips": 3})
    assert not (tmp_path / "saved" / "tokenizer").exists()


def test_each_class_reads_its_own_checkpoints_only(make: Callable, tiny_checkpoint: Path, tmp_path: Path):
    make().save_pretrained(tmp_path / "saved")
    with pytest.raises(ValueError, match="saved is of a ClapAudioClassifier, .* load it with ClapAudio"):
        Clap.from_ckpt(tmp_path / "saved")
    with pytest.raises(ValueError, match="is a Clap without a head; load it with Clap.from_ckpt"):
        ClapAudioClassifier.from_ckpt(tiny_checkpoint)
    assert isinstance(load_model(tiny_checkpoint), Clap)


@pytest.mark.parametrize(
    "change", [{"class_names": NAMES[:2]}, {"unknown": 1}, {"features": "text"}, {"features": "projection"}]
)
def test_damaged_checkpoint_is_refused(make: Callable, tmp_path: Path, change: dict):
    make().save_pretrained(tmp_path)
    path = tmp_path / "config.yaml"
    config = yaml.safe_load(path.read_text())
    config["classifier"] |= change
    path.write_text(yaml.safe_dump(config))
    with pytest.raises(ValueError, match=f"^{tmp_path}"):
        ClapAudioClassifier.from_ckpt(tmp_path)


@pytest.mark.parametrize("multi_label", [False, True])
def test_files_get_probabilities_of_the_classes(make: Callable, tones: list[Path], multi_label: bool):
    classifier = make(multi_label=multi_label)
    found = classifier.classify(tones[:3])
    assert found.shape == (3, 3)
    assert_close(found[1], classifier.classify(tones[1])[0], rtol=0, atol=1e-6)
    assert_close(found.sum(dim=1), torch.ones(3)) if not multi_label else None
    assert ((found > 0) & (found < 1)).all()


@pytest.mark.parametrize(
    ("names", "options", "message"),
    [
        (["dog", "dog"], {}, "give two or more names, each once"),
        (["dog"], {}, "give two or more names, each once"),
        (["dog", ""], {}, "class name 1 of 2"),
        (NAMES, {"features": "text"}, "classifier.features='text' is not one of encoder, projection"),
        (NAMES, {"dropout": 1.0}, "classifier.dropout=1.0 must be at least 0 and below 1"),
    ],
)
def test_wrong_option_is_refused(tiny_clap: Callable, names: list[str], options: dict, message: str):
    with pytest.raises(ValueError, match=message):
        ClapAudioClassifier(tiny_clap(), names, **options)


def test_text_encoder_cannot_be_frozen(make: Callable):
    with pytest.raises(ValueError, match="'text_encoder' is not one of audio_encoder, dropout, head"):
        make().freeze(["text_encoder"])
