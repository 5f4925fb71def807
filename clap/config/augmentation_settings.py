"""The options `augmentation.*` of conf/augmentation/. This module does not import torch."""

from dataclasses import dataclass, fields

SHARES = ("polarity", "mix")  # probabilities
DROPPED = ("frame_out", "patch_out")  # some must remain
RANGES = ("gain", "shift", "mix_level")


@dataclass(frozen=True)
class AugmentationSettings:
    """Random changes of the clips of training; all are off by default. docs/augmentation.md has the papers.

    Args:
        gain: dB, largest change of a clip's level, up or down.
        polarity: probability that a clip's polarity is inverted.
        shift: seconds, largest rotation of a clip in time, to either side.
        mix: probability that a clip is mixed with another one of its batch; their captions are joined.
        mix_level: dB, largest difference in level between two mixed clips.
        frame_out: share of the log-mel's frames that are dropped.
        patch_out: share of the patches that are dropped, of a vision transformer.

    Raises:
        ValueError: an option is out of range.
    """

    gain: float = 0.0
    polarity: float = 0.0
    shift: float = 0.0
    mix: float = 0.0
    mix_level: float = 5.0
    frame_out: float = 0.0
    patch_out: float = 0.0

    def __post_init__(self) -> None:
        allowed = {
            "at least 0 and finite": (RANGES, lambda value: 0 <= value < float("inf")),
            "a probability from 0 to 1": (SHARES, lambda value: 0 <= value <= 1),
            "a share from 0 to below 1": (DROPPED, lambda value: 0 <= value < 1),
        }
        for text, (names, is_valid) in allowed.items():
            for name in names:
                if not is_valid(value := getattr(self, name)):
                    raise ValueError(f"augmentation.{name}={value} must be {text}")

    def describe(self) -> str:
        """The options that are on, for the log: `gain 6, mix 0.5`; empty for none."""
        names = [f.name for f in fields(self) if getattr(self, f.name) and (f.name != "mix_level" or self.mix)]
        return ", ".join(f"{name} {getattr(self, name):g}" for name in names)

    @property
    def changes_waveforms(self) -> bool:
        """Whether an audio encoder receives other waveforms in each epoch."""
        return any((self.gain, self.polarity, self.shift, self.mix))
