"""The options of augmentation: ranges, and what they change."""

import pytest

from clap.config.augmentation_settings import AugmentationSettings


@pytest.mark.parametrize(
    ("option", "value", "allowed"),
    [
        ("gain", -1.0, "at least 0 and finite"),
        ("shift", float("inf"), "at least 0 and finite"),
        ("mix", 1.1, "a probability from 0 to 1"),
        ("frame_out", 1.0, "a share from 0 to below 1"),
        ("polarity", float("nan"), "a probability from 0 to 1"),
    ],
)
def test_option_out_of_range_is_refused(option: str, value: float, allowed: str):
    with pytest.raises(ValueError, match=f"augmentation.{option}={value} must be {allowed}"):
        AugmentationSettings(**{option: value})


def test_description_names_what_is_on():
    assert AugmentationSettings().describe() == ""
    assert AugmentationSettings(gain=6.0, frame_out=0.25).describe() == "gain 6, frame_out 0.25"
    assert AugmentationSettings(mix=0.5).describe() == "mix 0.5, mix_level 5"


def test_settings_state_what_they_change():
    off, frames = AugmentationSettings(), AugmentationSettings(frame_out=0.5)
    gain, mix = AugmentationSettings(gain=6.0), AugmentationSettings(mix=0.5)
    assert [settings.changes_waveforms for settings in (off, frames, gain, mix)] == [False, False, True, True]
