"""The kinds of findings, and the limits beyond which a clip is faulty."""

from dataclasses import dataclass

FAULTS = {  # kind -> meaning, in the order of the report
    "count": "the number of listed clips differs from the published one",
    "missing": "the listed file does not exist",
    "lost": "named by a tar or its `shards.json`, and not usable",
    "unreadable": "cannot be decoded, or would be refused by training",
    "too short": "shorter than --shortest",
    "too long": "longer than --longest",
    "silent": "no 0.1 s reaches --silence",
    "clipped": "more samples at full scale than --clipping allows",
    "duplicate audio": "the same samples as an earlier clip of the split",
    "no caption": "the clip has no caption",
    "empty caption": "a caption without a letter or digit",
    "repeated caption": "a clip has a caption twice, ignoring case and punctuation",
    "shared caption": "several clips of a split have the same caption, except clips of one label",
}
FILE_FAULTS = ("missing", "unreadable")  # are looked for if audio is checked
SAMPLE_FAULTS = ("too short", "too long", "silent", "clipped", "duplicate audio")  # and the recording can be decoded
OVERLAPS = {  # kind -> meaning
    "recording": "cut from the same recording on YouTube or Freesound",
    "audio": "the same samples",
    "caption": "a caption with the same words, except clips of one label",
    "near-caption": "a caption with nearly the same words, by --similarity",
}


@dataclass(frozen=True)
class Limits:
    """Limits of faultless clips: seconds, dBFS, share of samples, Jaccard index of the words of two captions."""

    shortest: float = 0.3
    longest: float = 300.0
    silence: float = -60.0
    clipping: float = 0.001
    similarity: float = 0.8

    def __post_init__(self) -> None:
        if not 0 < self.similarity <= 1:
            raise ValueError(f"--similarity {self.similarity} is not in (0, 1]; set it above 0, at most 1")
        if not 0 <= self.clipping <= 1:
            raise ValueError(f"--clipping {self.clipping} is not in [0, 1]; set a share of samples")
