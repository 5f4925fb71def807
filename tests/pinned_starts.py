"""Fixes the random starts of the views of clips longer than the window, as chosen by the published code."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from unittest import mock

from clap.audio_encoder.base import LogMelEncoder
from clap.fusion import GlobalAndLocal


@contextmanager
def pinned_starts(encoder: LogMelEncoder, starts: int | Sequence[int]) -> Iterator[None]:
    """Cut the views of longer clips at these starts.

    Args:
        starts: first sample of the window (the last possible one where a clip is too short for it), or, for a fused
            encoder, first frames of the three local views.
    """
    if isinstance(encoder.fusion, GlobalAndLocal):
        pinned = {"choose_starts": lambda total, num_frames: starts}
    else:
        pinned = {"choose_starts": lambda spare: spare.clamp(max=starts)}
    with mock.patch.multiple(encoder.fusion, **pinned), mock.patch.object(type(encoder), "whole_clip", True):
        yield
