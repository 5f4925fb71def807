"""Names, colors and descriptions of training runs in MLflow."""

import json
from pathlib import Path

import pytest

from clap.study.run_description import describe_model, find_index, name_run

FACTORS = {
    "audio_encoder": "htsat_nano", "text_encoder": "gpt2_nano", "fusion": "none",
    "loss": "sigmoid", "dataset": "esc50", "seed": "0",
}  # fmt: skip


@pytest.mark.parametrize(
    ("levels", "init_from", "name"),
    [
        ({}, None, "htsat_nano-gpt2_nano-esc50-s0"),
        ({}, "models/630k-best.pt", "htsat_nano-gpt2_nano-esc50-from-630k-s0"),
        ({"audio_encoder": "htsat_nano", "seed": "0"}, None, "htsat_nano-gpt2_nano-esc50-s0"),
        ({"optimizer.lr": "0.001", "loss": "sigmoid"}, None, "htsat_nano-gpt2_nano-esc50-lr=0.001-sigmoid-s0"),
        ({"init_from": "models/630k-best.pt"}, "models/630k-best.pt", "htsat_nano-gpt2_nano-esc50-from-630k-s0"),
    ],
)
def test_run_is_named_by_model_data_start_and_swept_keys(levels: dict[str, str], init_from: str | None, name: str):
    assert name_run(FACTORS, levels, groups=("loss", "audio_encoder"), init_from=init_from) == name


def test_fusion_is_in_the_name_unless_it_is_the_default():
    assert name_run(FACTORS | {"fusion": "iaff"}, {}, groups=(), init_from=None) == "htsat_nano-gpt2_nano-iaff-esc50-s0"


def test_description_states_model_data_and_initial_weights():
    what = "Trains **htsat_nano** and **gpt2_nano** on **esc50** from {}: fusion none, loss sigmoid, seed 0."
    assert describe_model(FACTORS, {"init_from": None}) == what.format("random weights")
    assert describe_model(FACTORS, {"init_from": "a/b"}) == what.format("`a/b`")
    pretrained = {"audio_encoder.pretrained": "Cnn14.pth", "text_encoder.pretrained": True}
    assert describe_model(FACTORS, pretrained) == what.format("pretrained audio_encoder `Cnn14.pth` and text_encoder")


def test_configuration_keeps_its_index_for_all_seeds_and_folds(tmp_path: Path):
    listed = [{"loss": "nce", "fusion": "none"}, {"loss": "sigmoid", "fusion": "none"}]
    (tmp_path / "sweep.json").write_text(json.dumps({"study": "a", "configurations": listed}))
    assert find_index(tmp_path, {"fusion": "none", "loss": "sigmoid", "seed": "3", "dataset.test_fold": "2"}) == 1
    assert find_index(tmp_path, {"loss": "other", "fusion": "none", "seed": "0"}) == 2  # of a search
    assert find_index(tmp_path, {"loss": "other", "fusion": "none", "seed": "1"}) == 2
    assert json.loads((tmp_path / "sweep.json").read_text())["study"] == "a"
