"""Names of the jobs of a sweep."""

import pytest

from clap.study.job import job_levels, name_job, name_source

NAMES = {
    "groups by their options": ({"audio_encoder": "htsat_nano", "text_encoder": "gpt2_nano"}, "htsat_nano-gpt2_nano"),
    "seed as a number": ({"audio_encoder": "htsat_nano", "seed": "0"}, "htsat_nano-s0"),
    "fold as a number": ({"audio_encoder": "htsat_nano", "dataset.test_fold": "3", "seed": "0"}, "htsat_nano-fold3-s0"),
    "keys by their last part": ({"optimizer.lr": "0.001", "seed": "1"}, "lr=0.001-s1"),
    "other seeds are keys": ({"dataset.seed": "1"}, "seed=1"),
    "nothing differs": ({}, "job"),
}


@pytest.mark.parametrize(("levels", "name"), NAMES.values(), ids=NAMES)
def test_job_is_named_by_its_levels(levels: dict[str, str], name: str):
    assert name_job(levels, groups=("audio_encoder", "text_encoder")) == name


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("outputs/train/2026-01-31/10-20-30", "2026-01-31_10-20-30"),
        ("outputs/train/2026-01-31/10-20-30/checkpoints/best", "2026-01-31_10-20-30"),
        ("models/630k-best.pt", "630k"),
        ("laion/clap-htsat-unfused", "clap-htsat-unfused"),
        ("laion/larger_clap/model.safetensors", "larger_clap"),
        ("https://zenodo.org/records/1/files/Cnn14_mAP%3D0.431.pth?download=1", "Cnn14_mAP=0.431"),
        ("runs/mine/huggingface/", "mine"),
    ],
)
def test_short_name_of_a_checkpoint(source: str, name: str):
    assert name_source(source) == name


def test_levels_end_with_fold_and_seed():
    assert list(job_levels(["seed=0", "dataset.test_fold=1", "optimizer.lr=1"])) == [
        "optimizer.lr", "dataset.test_fold", "seed",
    ]  # fmt: skip


def test_swept_init_from_is_named_by_its_checkpoints():
    levels = {"init_from": "models/630k-best.pt", "seed": "0"}
    assert name_job(levels, groups=()) == "from-630k-s0"
