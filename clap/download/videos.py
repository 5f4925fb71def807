"""Cuts clips from the audio track of videos, with yt-dlp and ffmpeg."""

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

from clap.config.secrets import hide_secrets

TIMEOUT = 300.0  # seconds for one clip
TOLERANCE = 0.5  # seconds; a clip may be this much shorter than requested
RECONNECT = ("-reconnect", "1", "-reconnect_streamed", "1", "-reconnect_delay_max", "4")  # ffmpeg options
PROTOCOLS = ("-protocol_whitelist", "http,https,tcp,tls,crypto,httpproxy")  # a page must not name local files
UNAVAILABLE = (  # messages of yt-dlp for permanently unavailable videos
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
TEMPORARY = ("try again", "rate-limited", "sign in", "not a bot")  # with one of these, the failure is temporary


class VideoError(ValueError):
    """A clip cannot be cut from a video.

    Args:
        gone: whether the video is permanently unavailable, so that a retry is useless.
    """

    def __init__(self, reason: str, *, gone: bool) -> None:
        super().__init__(reason)
        self.gone = gone


def find_ffmpeg() -> str:
    """Path of the installed ffmpeg, or of the one in the package imageio-ffmpeg."""
    if found := shutil.which("ffmpeg"):
        return found
    return imageio_ffmpeg.get_ffmpeg_exe()


def cut_video(
    address: str, path: Path, *, start: float, duration: float, scratch: Path, cookies: str | None = None
) -> float:
    """Write a section of a video's audio as 16-bit FLAC at its own sample rate; returns its duration in seconds.

    Args:
        start, duration: seconds; the clip is shorter if the video is known to end earlier.
        scratch: folder for incomplete files, on the same file system.
        cookies: text of a cookies file in Netscape format, for servers that require a login.

    Raises:
        VideoError: the video is unavailable, has no audio, ends before `start`, or was received incompletely.
    """
    stream = find_stream(address, cookies)
    wanted = min(duration, (stream.get("duration") or math.inf) - start)
    if wanted <= 0:
        raise VideoError("ends before the clip begins", gone=True)
    scratch.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=scratch) as folder:  # one per call: after a kill, ffmpeg keeps writing
        part = Path(folder) / path.name
        run_ffmpeg(stream, part, start=start, duration=duration)
        seconds = decoded_duration(part)
        if seconds < wanted - TOLERANCE:  # truncated, or past the end of a video of unknown duration
            raise VideoError(f"received only {seconds:.1f} s", gone=False)
        path.parent.mkdir(parents=True, exist_ok=True)
        os.replace(part, path)
    return seconds


def find_stream(address: str, cookies: str | None) -> dict:
    """What yt-dlp reports about the best audio stream of a video: url, http_headers, duration."""
    options = {"quiet": True, "no_warnings": True, "noprogress": True, "logger": SilentLogger()}
    options |= {"format": "bestaudio/best", "socket_timeout": 30, "noplaylist": True}
    if cookies is not None:  # a copy, because yt-dlp writes to the file
        options["cookiefile"] = io.StringIO(cookies)
    try:
        with yt_dlp.YoutubeDL(options) as finder:
            stream = finder.extract_info(address, download=False)
    except yt_dlp.utils.YoutubeDLError as error:
        reason = last_line(str(error)).removeprefix("ERROR: ").partition(" (caused by")[0]
        reason = re.sub(
            r"^\[[^]]*\] \S+: |: https?://\S+", "", reason
        )  # without id and address, so that equal reasons are counted together
        raise VideoError(reason, gone=is_gone(reason)) from None
    if "url" not in stream:
        raise VideoError("the page has no single recording", gone=False)
    return stream


def is_gone(reason: str) -> bool:
    """Whether a message of yt-dlp means that the video is permanently unavailable."""
    text = reason.lower()
    return any(words in text for words in UNAVAILABLE) and not any(words in text for words in TEMPORARY)


def run_ffmpeg(stream: dict, part: Path, *, start: float, duration: float) -> None:
    """Decode a section of a stream into a file."""
    headers = "".join(f"{name}: {text}\r\n" for name, text in (stream.get("http_headers") or {}).items())
    command = [find_ffmpeg(), "-nostdin", "-y", "-loglevel", "error", *RECONNECT, *PROTOCOLS]
    command += ["-headers", headers]
    command += ["-ss", f"{start:g}", "-t", f"{duration:g}", "-i", stream["url"], "-map", "0:a:0", "-sample_fmt", "s16"]
    command += ["-map_metadata", "-1", "-bitexact", f"file:{part}"]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, errors="replace", timeout=TIMEOUT)
    except subprocess.TimeoutExpired:
        raise VideoError(f"no audio within {TIMEOUT:g} s", gone=False) from None
    except subprocess.CalledProcessError as error:
        raise VideoError(f"ffmpeg: {hide_secrets(last_line(error.stderr))}", gone=False) from None


def decoded_duration(path: Path) -> float:
    """Duration in seconds of the decoded samples, whatever the header claims."""
    try:
        waveform, rate = soundfile.read(path)
    except soundfile.LibsndfileError as error:
        raise VideoError(f"no audio ({error.error_string})", gone=False) from None
    return len(waveform) / rate


class SilentLogger:
    """Discards the messages of yt-dlp, which are also in its exceptions."""

    def debug(self, message: str) -> None: ...

    warning = error = debug


def last_line(text: str) -> str:
    return (text.strip().splitlines() or ["no message"])[-1]
