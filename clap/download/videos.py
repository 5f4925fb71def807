"""A few seconds of a video's sound: found by yt-dlp, cut and decoded by ffmpeg."""

import io
import math
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import imageio_ffmpeg
import soundfile
import yt_dlp

TIMEOUT = 300.0  # seconds for one clip
TOLERANCE = 0.5  # seconds that a clip may be shorter than its video allows
RECONNECT = ("-reconnect", "1", "-reconnect_streamed", "1", "-reconnect_delay_max", "4")  # after a cut, in ffmpeg
UNAVAILABLE = (  # what yt-dlp says of a video that will not come back
    "video unavailable",
    "private video",
    "has been removed",
    "been terminated",
    "no longer available",
    "not available in your country",
    "members-only",
    "http error 404",
    "http error 410",
)
TEMPORARY = ("try again", "rate-limited", "sign in", "not a bot")  # that it says of videos which will, beside the above


class VideoError(ValueError):
    """A video without the wanted seconds.

    Args:
        gone: it will not come back, so that asking again is of no use.
    """

    def __init__(self, reason: str, *, gone: bool) -> None:
        super().__init__(reason)
        self.gone = gone


def find_ffmpeg() -> str:
    """The ffmpeg of the machine, or that of the package imageio-ffmpeg."""
    if found := shutil.which("ffmpeg"):
        return found
    return imageio_ffmpeg.get_ffmpeg_exe()


def cut_video(
    address: str, path: Path, *, start: float, duration: float, scratch: Path, cookies: str | None = None
) -> float:
    """Write the sound of a part of a video as 16-bit FLAC, at its own rate, and return its seconds.

    Args:
        start, duration: seconds; a video that is known to end earlier gives a shorter clip.
        scratch: folder on the same disk for what is not yet whole.
        cookies: text of a file in Netscape's format, for a server that wants to know who asks.

    Raises:
        VideoError: there is no such video, no sound in it, it ends before `start`, or less arrived than it has.
    """
    stream = find_stream(address, cookies)
    wanted = min(duration, (stream.get("duration") or math.inf) - start)
    if wanted <= 0:
        raise VideoError("ends before the clip begins", gone=True)
    scratch.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=scratch) as folder:  # of this call alone: a kill leaves its ffmpeg writing
        part = Path(folder) / path.name
        run_ffmpeg(stream, part, start=start, duration=duration)
        seconds = decoded_duration(part)
        if seconds < wanted - TOLERANCE:  # cut off, or its end, which a server that tells no duration cannot say
            raise VideoError(f"only {seconds:.1f} s arrived", gone=False)
        path.parent.mkdir(parents=True, exist_ok=True)
        os.replace(part, path)
    return seconds


def find_stream(address: str, cookies: str | None) -> dict:
    """Address, headers and seconds of a video's best sound, as yt-dlp finds them."""
    options = {"quiet": True, "no_warnings": True, "noprogress": True, "logger": SilentLogger()}
    options |= {"format": "bestaudio/best", "socket_timeout": 30, "noplaylist": True}
    if cookies is not None:  # a copy, for yt-dlp writes back what it was given
        options["cookiefile"] = io.StringIO(cookies)
    try:
        with yt_dlp.YoutubeDL(options) as finder:
            stream = finder.extract_info(address, download=False)
    except yt_dlp.utils.YoutubeDLError as error:
        reason = last_line(str(error)).removeprefix("ERROR: ").partition(" (caused by")[0]
        reason = re.sub(r"^\[[^]]*\] \S+: |: https?://\S+", "", reason)  # so that clips with one reason are counted
        raise VideoError(reason, gone=is_gone(reason)) from None
    if "url" not in stream:
        raise VideoError("the page holds no single recording", gone=False)
    return stream


def is_gone(reason: str) -> bool:
    """Will a video not come back, by what yt-dlp says of it?"""
    text = reason.lower()
    return any(words in text for words in UNAVAILABLE) and not any(words in text for words in TEMPORARY)


def run_ffmpeg(stream: dict, part: Path, *, start: float, duration: float) -> None:
    """Decode a part of a stream into a file."""
    headers = "".join(f"{name}: {text}\r\n" for name, text in (stream.get("http_headers") or {}).items())
    command = [find_ffmpeg(), "-nostdin", "-y", "-loglevel", "error", *RECONNECT, "-headers", headers]
    command += ["-ss", f"{start:g}", "-t", f"{duration:g}", "-i", stream["url"], "-map", "0:a:0", "-sample_fmt", "s16"]
    command += ["-map_metadata", "-1", "-bitexact", f"file:{part}"]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, errors="replace", timeout=TIMEOUT)
    except subprocess.TimeoutExpired:
        raise VideoError(f"no sound within {TIMEOUT:g} s", gone=False) from None
    except subprocess.CalledProcessError as error:
        raise VideoError(f"ffmpeg: {last_line(error.stderr)}", gone=False) from None


def decoded_duration(path: Path) -> float:
    """Seconds of a recording that really can be decoded."""
    try:
        waveform, rate = soundfile.read(path)
    except soundfile.LibsndfileError as error:
        raise VideoError(f"no sound ({error.error_string})", gone=False) from None
    return len(waveform) / rate


class SilentLogger:
    """yt-dlp's own messages come back in its exceptions."""

    def debug(self, message: str) -> None: ...

    warning = error = debug


def last_line(text: str) -> str:
    return (text.strip().splitlines() or ["no reason given"])[-1]
