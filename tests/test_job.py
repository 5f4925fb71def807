"""Names of the jobs of a sweep."""

import pytest

from clap.study.job import name_job

NAMES = {
    "groups by their options": ({"audio_encoder": "htsat_nano", "text_encoder": "gpt2_nano"}, "htsat_nano-gpt2_nano"),
    "seed as a number": ({"audio_encoder": "htsat_nano", "seed": "0"}, "htsat_nano-s0"),
    "keys by their last part": ({"optimizer.lr": "0.001", "seed": "1"}, "lr=0.001-s1"),
    "other seeds are keys": ({"dataset.seed": "1"}, "seed=1"),
    "nothing differs": ({}, "job"),
}


@pytest.mark.parametrize(("levels", "name"), NAMES.values(), ids=NAMES)
def test_job_is_named_by_its_levels(levels: dict[str, str], name: str):
    assert name_job(levels, groups=("audio_encoder", "text_encoder")) == name
