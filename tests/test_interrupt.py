"""The first Ctrl-C or SIGTERM is recorded; the second raises KeyboardInterrupt."""

import os
import signal

import pytest

from clap.training.interrupt import stop_on_signal


def test_second_signal_stops_at_once():
    with pytest.raises(KeyboardInterrupt), stop_on_signal() as received:
        os.kill(os.getpid(), signal.SIGINT)
        assert received == [signal.SIGINT]
        os.kill(os.getpid(), signal.SIGINT)
