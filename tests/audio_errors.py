"""What the decoder says of a recording that it refuses."""

from pathlib import Path

import pytest

from clap.containers import AudioError
from clap.waveform import load_waveform


def error_message(path: Path, sample_rate: int = 16000, **arguments: object) -> str:
    """The AudioError message of a file, without its path."""
    with pytest.raises(AudioError) as raised:
        load_waveform(path, sample_rate, **arguments)
    name, _, reason = str(raised.value).partition(": ")
    assert name == str(path)
    return reason
