"""Clips cut from videos of a local server, with yt-dlp and ffmpeg."""

from pathlib import Path

import numpy as np
import pytest
import soundfile
from download_server import FileServer

from clap.download import videos
from clap.download.videos import VideoError, cut_video

RATE = 8_000
SOUND = np.random.default_rng(0).integers(-9000, 9000, (30 * RATE, 2)).astype(np.int16)


@pytest.fixture
def server(file_server: FileServer) -> FileServer:
    soundfile.write(file_server.folder / "a.wav", SOUND, RATE)
    return file_server


def cut(
    server: FileServer, tmp_path: Path, name: str = "a.wav", *, start: float = 12.0, duration: float = 5.0
) -> float:
    return cut_video(
        f"{server.address}/{name}",
        tmp_path / "clips" / "a_12.flac",
        start=start,
        duration=duration,
        scratch=tmp_path / "scratch",
    )


def test_clip_is_cut_at_the_right_sample(server: FileServer, tmp_path: Path):
    assert cut(server, tmp_path) == 5.0
    clip, rate = soundfile.read(tmp_path / "clips" / "a_12.flac", dtype="int16")
    assert rate == RATE
    np.testing.assert_array_equal(clip, SOUND[12 * RATE : 17 * RATE])


def test_video_that_is_known_to_end_early_gives_a_shorter_clip(
    server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(videos, "find_stream", lambda address, cookies: {"url": address, "duration": 30})
    assert cut(server, tmp_path, start=27.0) == 3.0


def test_lost_connection_still_gives_the_whole_clip(server: FileServer, tmp_path: Path):
    server.faults["a.wav"] = [("none", None), ("none", None), ("cut", 9000)]  # the first request is from yt-dlp
    assert cut(server, tmp_path) == 5.0
    clip, _ = soundfile.read(tmp_path / "clips" / "a_12.flac", dtype="int16")
    np.testing.assert_array_equal(clip, SOUND[12 * RATE : 17 * RATE])


def test_clip_past_the_end_of_a_video_is_gone(server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(videos, "find_stream", lambda address, cookies: {"url": address, "duration": 30})
    with pytest.raises(VideoError, match="ends before the clip begins") as caught:
        cut(server, tmp_path, start=31.0)
    assert caught.value.gone


@pytest.mark.parametrize(
    ("name", "start", "message", "gone"),
    [
        ("b.wav", 12.0, "404", True),
        ("a.wav", 31.0, "no audio", False),
        ("page.wav", 12.0, "Unsupported URL", False),
        ("half.wav", 12.0, "received only 2.0 s", False),
    ],
)
def test_bad_video_does_not_write_a_clip(
    server: FileServer, tmp_path: Path, name: str, start: float, message: str, gone: bool
):
    whole = (server.folder / "a.wav").read_bytes()
    (server.folder / "half.wav").write_bytes(whole[: 44 + 14 * RATE * 4])  # its header announces 30 s
    (server.folder / "page.wav").write_text("<html>log in</html>" * 100)
    with pytest.raises(VideoError, match=message) as caught:
        cut(server, tmp_path, name, start=start)
    assert caught.value.gone == gone and not (tmp_path / "clips").exists()


@pytest.mark.parametrize(
    ("reason", "gone"),
    [
        ("Video unavailable. This video is private", True),
        ("This video has been removed by the uploader", True),
        ("Video unavailable. This content isn't available, try again later. The session has been rate-limited", False),
        ("Sign in to confirm you're not a bot", False),
        ("HTTP Error 503: Service Unavailable", False),
    ],
)
def test_message_says_whether_a_video_is_gone(reason: str, gone: bool):
    assert videos.is_gone(reason) == gone


def test_page_that_names_a_local_file_is_refused(server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    soundfile.write(tmp_path / "private.wav", SOUND, RATE)
    (server.folder / "list.m3u8").write_text(f"#EXTM3U\n#EXTINF:30,\nfile://{tmp_path}/private.wav\n#EXT-X-ENDLIST\n")
    for url in (f"file:{tmp_path}/private.wav", f"concat:{tmp_path}/private.wav", f"{server.address}/list.m3u8"):
        monkeypatch.setattr(videos, "find_stream", lambda address, cookies, url=url: {"url": url})
        with pytest.raises(VideoError):
            cut(server, tmp_path)
