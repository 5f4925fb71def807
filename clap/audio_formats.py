"""Suffixes of recordings: what the decoder reads, and known kinds that must be converted first."""

import shlex
from pathlib import Path

from clap.member import Member

# By format of soundfile.available_formats(), except RAW, which has no header, MAT4 and MAT5, which usually hold other
# data, and XI, which cannot be read in parts.
SUFFIXES = {
    "AIFF": (".aif", ".aifc", ".aiff"),
    "AU": (".au", ".snd"),
    "AVR": (".avr",),
    "CAF": (".caf",),
    "FLAC": (".flac",),
    "HTK": (".htk",),
    "IRCAM": (".sf",),
    "MP3": (".mp1", ".mp2", ".mp3"),
    "MPC2K": (".mpc",),
    "NIST": (".nist", ".sph"),
    "OGG": (".oga", ".ogg", ".opus"),
    "PAF": (".paf",),
    "PVF": (".pvf",),
    "RF64": (".rf64",),
    "SD2": (".sd2",),
    "SDS": (".sds",),
    "SVX": (".8svx", ".iff", ".svx"),
    "VOC": (".voc",),
    "W64": (".w64",),
    "WAV": (".bwf", ".wav", ".wave"),
    "WAVEX": (".wav",),
    "WVE": (".wve",),
}
AUDIO_SUFFIXES = tuple(sorted({suffix for suffixes in SUFFIXES.values() for suffix in suffixes}))
CONVERTIBLE_SUFFIXES = (
    ".3gp", ".aac", ".ac3", ".amr", ".ape", ".m4a", ".m4b", ".mka", ".mkv", ".mov", ".mp4", ".ra", ".spx", ".tta",
    ".weba", ".webm", ".wma", ".wv",
)  # fmt: skip


def explain_undecodable(path: Path | Member) -> str:
    """What is wrong with a file that cannot be decoded, or how to convert it."""
    if path.suffix.lower() in CONVERTIBLE_SUFFIXES:
        return f"convert it with `{shlex.join(['ffmpeg', '-i', path.name, f'{path.stem}.flac'])}`"
    return "damaged, or not WAV, FLAC, OGG, Opus, MP3"
