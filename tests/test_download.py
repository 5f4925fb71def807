"""Index files, archives and clips cut from videos, downloaded from a local server."""

import functools
import shutil
import subprocess
import zipfile
from pathlib import Path

import numpy as np
import pytest
import soundfile
from conftest import make_tone
from download_server import FileServer
from mirrors import CLOTHO, RATE, START, VIDEOS, compose_addresses, download, read_files, serve_audiocaps, serve_clotho
from replicas import write_fsd50k

from clap.__main__ import main
from clap.dataset.registry import find_corpus
from clap.download.run import download_corpus


@pytest.fixture
def clotho(file_server: FileServer) -> dict[str, object]:
    return serve_clotho(file_server)


@pytest.fixture
def audiocaps(file_server: FileServer) -> dict[str, object]:
    return serve_audiocaps(file_server)


def test_clotho_is_downloaded_completely(clotho: dict, file_server: FileServer, tmp_path: Path):
    result = download("clotho", tmp_path / "data", clotho)
    assert result.clips == {"train": (4, 4, 3839), "val": (2, 2, 1045), "test": (2, 2, 1045)}
    assert not result.failures and not result.missing
    served = {f"clotho_{kind}_{split}.csv" for kind in ("captions", "metadata") for split in CLOTHO}
    clips = {f"{split}/{split} no. {i}.wav" for split, count in CLOTHO.items() for i in range(count)}
    assert read_files(tmp_path / "data" / "clotho").keys() == served | clips


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_bytes(b"half")], ids=["absent", "half"])
def test_only_the_archive_of_a_missing_clip_is_downloaded_again(
    clotho: dict, file_server: FileServer, tmp_path: Path, damage: object
):
    download("clotho", tmp_path, clotho)
    whole, before = read_files(tmp_path / "clotho"), len(file_server.requests)
    damage(tmp_path / "clotho" / "validation" / "validation no. 1.wav")
    download("clotho", tmp_path, clotho)
    assert [name for name, _ in file_server.requests[before:]] == ["clotho_audio_validation.7z"]
    assert read_files(tmp_path / "clotho") == whole


def test_existing_index_is_never_rewritten(clotho: dict, tmp_path: Path):
    download("clotho", tmp_path, clotho, splits=["test"])
    path = tmp_path / "clotho" / "clotho_captions_evaluation.csv"
    path.write_text(path.read_text().replace("caption 0", "a better caption"))
    download("clotho", tmp_path, clotho)
    assert "a better caption" in path.read_text()


def test_only_requested_splits_are_downloaded(clotho: dict, file_server: FileServer, tmp_path: Path):
    result = download("clotho", tmp_path, clotho, splits=["test"])
    assert result.clips.keys() == {"test"}
    assert {name.rpartition("_")[2].partition(".")[0] for name, _ in file_server.requests} == {"evaluation"}


def test_manually_unpacked_clips_are_kept(clotho: dict, file_server: FileServer, tmp_path: Path):
    download("clotho", tmp_path, clotho)
    (tmp_path / "clotho" / "download.jsonl").unlink()
    before = len(file_server.requests)
    download("clotho", tmp_path, clotho)
    assert len(file_server.requests) == before


def test_file_with_wrong_checksum_does_not_stop_the_others(clotho: dict, tmp_path: Path):
    checked = clotho | {"files.audio_validation.checksum": f"md5:{'0' * 32}"}
    result = download("clotho", tmp_path, checked)
    assert [failure.partition(": ")[0].rpartition("/")[2] for failure in result.failures] == [
        "clotho_audio_validation.7z"
    ]
    assert result.clips["train"][0] == 4 and result.clips["val"][0] == 0
    assert not (tmp_path / "clotho" / "validation").exists()
    assert "missing: 2 clips" in str(result)


def test_web_page_instead_of_an_archive_is_deleted(clotho: dict, file_server: FileServer, tmp_path: Path):
    file_server.faults["clotho_audio_evaluation.7z"] = [("other", None)]
    result = download("clotho", tmp_path, clotho)
    assert "audio_evaluation is damaged or not a 7z archive" in result.failures[0]
    assert not download("clotho", tmp_path, clotho).failures


def test_clip_that_is_not_in_the_archive_is_not_requested_again(clotho: dict, file_server: FileServer, tmp_path: Path):
    with (file_server.folder / "clotho_captions_evaluation.csv").open("a") as file:
        file.write("lost.wav,a,b,c,d,e\n")
    result = download("clotho", tmp_path, clotho)
    assert result.clips["test"][:2] == (2, 3) and not result.failures
    assert dict(result.missing) == {"not in audio_evaluation": 1}
    before = len(file_server.requests)
    assert download("clotho", tmp_path, clotho).missing == result.missing and len(file_server.requests) == before
    download("clotho", tmp_path, clotho, again=True)
    assert len(file_server.requests) == before + 1


def test_wrong_mirror_marks_no_clip_as_gone(clotho: dict, file_server: FileServer, tmp_path: Path):
    wrong = f"{file_server.address}/clotho_audio_validation.7z"
    result = download("clotho", tmp_path, clotho | {"files.audio_evaluation.address": wrong}, splits=["test"])
    assert "audio_evaluation" not in str(result.missing) and "holds none of its 2 listed clips" in result.failures[0]
    assert not (tmp_path / "clotho" / "evaluation").exists()
    assert download("clotho", tmp_path, clotho, splits=["test"]).clips["test"][:2] == (2, 2)


def test_clip_edited_by_the_user_is_kept_when_another_is_restored(clotho: dict, tmp_path: Path):
    download("clotho", tmp_path, clotho, splits=["test"])
    first, second = (tmp_path / "clotho" / "evaluation" / f"evaluation no. {i}.wav" for i in range(2))
    (tmp_path / "clotho" / "download.jsonl").unlink()
    soundfile.write(first, make_tone(900.0, 1.0, sample_rate=RATE), RATE)
    edited = first.read_bytes()
    second.unlink()
    download("clotho", tmp_path, clotho, splits=["test"])
    assert first.read_bytes() == edited and second.exists()


def test_download_of_another_split_keeps_partial_files(clotho: dict, file_server: FileServer, tmp_path: Path):
    file_server.faults["clotho_audio_development.7z"] = [("cut", 70_000), *[("status", 404)] * 9]
    assert download("clotho", tmp_path, clotho, splits=["train"]).failures
    download("clotho", tmp_path, clotho, splits=["test"])
    assert (tmp_path / "clotho" / ".download" / "audio_development.part").stat().st_size == 65_536


def test_password_of_a_mirror_is_not_recorded(clotho: dict, file_server: FileServer, tmp_path: Path):
    server = file_server.address.replace("://", "://me:hunter2@")
    file_server.faults["clotho_metadata_evaluation.csv"] = [("status", 404)]
    result = download("clotho", tmp_path, clotho | {"server": server}, splits=["test"])
    assert result.clips["test"][:2] == (2, 2) and "http://***@" in str(result)
    recorded = (tmp_path / "clotho" / "download.jsonl").read_text()
    assert "http://***@" in recorded and "hunter2" not in recorded + str(result)


def test_file_above_the_size_limit_is_not_downloaded(clotho: dict, tmp_path: Path):
    result = download("clotho", tmp_path, clotho | {"max_gigabytes": 1e-6}, splits=["test"])
    assert any(
        "not downloaded (larger than 1e-06 GB); if it is the published file, raise" in f for f in result.failures
    )


def test_archive_does_not_write_the_manifest(clotho: dict, file_server: FileServer, tmp_path: Path):
    with zipfile.ZipFile(file_server.folder / "all.zip", "w") as file:
        for name in ("download.jsonl", ".download/a.wav", "audio/a.wav"):
            file.writestr(name, b"{}")
    corpus = {"files.all.address": f"{file_server.address}/all.zip", "files.all.contents": None}
    download("esc50", tmp_path, corpus)
    assert read_files(tmp_path / "esc50") == {"audio/a.wav": b"{}"}
    assert "audio/a.wav" in (tmp_path / "esc50" / "download.jsonl").read_text()


def test_web_page_instead_of_metadata_keeps_the_captions(clotho: dict, file_server: FileServer, tmp_path: Path):
    file_server.faults["clotho_metadata_evaluation.csv"] = [("other", None)]
    result = download("clotho", tmp_path, clotho, splits=["test"])
    assert len(result.failures) == 1 and "clotho_metadata_evaluation.csv: not an index" in result.failures[0]
    assert not download("clotho", tmp_path, clotho, splits=["test"]).failures


def test_corpus_in_a_single_archive_is_unpacked_into_its_folder(file_server: FileServer, tmp_path: Path):
    main(["synthesize", str(tmp_path / "made"), "--layout", "esc50", "--num-clips", "5", "--max-duration", "5"])
    (tmp_path / "made" / "ESC-50").mkdir()
    for name in ("audio", "meta"):
        shutil.move(tmp_path / "made" / name, tmp_path / "made" / "ESC-50")
    shutil.make_archive(str(file_server.folder / "master"), "zip", tmp_path / "made")
    overrides = {"files.all.address": f"{file_server.address}/master.zip"}
    refused = download("esc50", tmp_path / "data", overrides)
    assert "its meta/esc50.csv is not the published file, whose checksum is md5:54a0" in refused.failures[0]
    overrides["files.all.contents"] = None  # five of 2,000 clips
    result = download("esc50", tmp_path / "data", overrides)
    assert result.clips["test"][:2] == (1, 1) and not result.failures
    assert read_files(tmp_path / "data" / "esc50") == read_files(tmp_path / "made" / "ESC-50")


@pytest.mark.skipif(shutil.which("zip") is None, reason="the program zip is not installed")
def test_parts_of_a_split_archive_are_joined(file_server: FileServer, tmp_path: Path):
    made = write_fsd50k(tmp_path / "made", seconds=4.0)
    settings = compose_addresses("fsd50k", [f"server={file_server.address}"])
    for remote in settings["files"].values():
        name = remote["to"].strip("/")
        split = ["-s", "64k"] if "parts" in remote else []
        subprocess.run(["zip", "-q", "-r", *split, str(file_server.folder / f"{name}.zip"), name], cwd=made, check=True)
        parts = {path.suffix[1:]: "" for path in file_server.folder.glob(f"{name}.z[0-9]*")}
        remote.update({"checksum": "", "parts": parts})
    result = download_corpus("fsd50k", tmp_path, settings, functools.partial(find_corpus, "fsd50k"))
    assert len(parts) > 1 and not result.failures
    assert read_files(tmp_path / "fsd50k") == read_files(made)


def test_archive_of_the_index_is_requested_first(file_server: FileServer, tmp_path: Path):
    settings = compose_addresses("fsd50k", [f"server={file_server.address}"])
    result = download_corpus("fsd50k", tmp_path, settings, functools.partial(find_corpus, "fsd50k"))
    assert [name for name, _ in file_server.requests] == ["FSD50K.ground_truth.zip"] and len(result.failures) == 1


def test_audiocaps_is_cut_from_its_videos(audiocaps: dict, file_server: FileServer, tmp_path: Path):
    result = download("audiocaps", tmp_path, audiocaps)
    assert {split: present for split, (present, *_) in result.clips.items()} == {"train": 2, "val": 1, "test": 2}
    for clip in find_corpus("audiocaps", tmp_path).clips("test"):
        waveform, _ = soundfile.read(clip.path, dtype="int16")
        video, _ = soundfile.read(file_server.folder / f"{clip.id.rpartition('_')[0]}.wav", dtype="int16")
        np.testing.assert_array_equal(waveform, video[START * RATE : (START + 10) * RATE])


def test_video_that_is_gone_is_requested_again_only_with_again(
    audiocaps: dict, file_server: FileServer, tmp_path: Path
):
    (file_server.folder / "cccccccccc1.wav").unlink()
    result = download("audiocaps", tmp_path, audiocaps, splits=["test"])
    assert result.clips["test"][:2] == (1, 2) and not result.failures
    assert list(result.missing) == ["Unable to download webpage: HTTP Error 404: Not Found"]
    before = len(file_server.requests)
    download("audiocaps", tmp_path, audiocaps, splits=["test"])
    assert len(file_server.requests) == before
    download("audiocaps", tmp_path, audiocaps, splits=["test"], again=True)
    assert [name for name, _ in file_server.requests[before:]] == ["cccccccccc1.wav"]


def test_video_that_failed_is_requested_again(audiocaps: dict, file_server: FileServer, tmp_path: Path):
    file_server.faults["cccccccccc1.wav"] = [("other", None)]
    result = download("audiocaps", tmp_path, audiocaps, splits=["test"])
    assert result.failures == ["1 clips failed temporarily; run the same command again to retry them"]
    assert download("audiocaps", tmp_path, audiocaps, splits=["test"]).clips["test"][:2] == (2, 2)


def test_server_that_refuses_is_not_requested_further(
    audiocaps: dict, file_server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("clap.download.download.MAX_FAILURES_IN_A_ROW", 1)
    for video in VIDEOS["test"]:
        file_server.faults[f"{video}.wav"] = [("other", None)]
    result = download("audiocaps", tmp_path, audiocaps, splits=["test"], workers=1)
    assert "the remaining clips were not requested. Wait, set videos.cookies=FILE" in result.failures[0]
    assert result.missing == {"Unsupported URL": 1, "not requested": 1}


def test_index_of_another_version_is_refused(audiocaps: dict, tmp_path: Path):
    download("audiocaps", tmp_path, audiocaps, splits=["test"])
    with pytest.raises(
        ValueError, match="test.csv was downloaded from .*, which is another version .*; set another --root"
    ):
        download("audiocaps", tmp_path, audiocaps | {"version": "v2"}, splits=["test", "val"])


def test_download_of_the_second_version_is_resumed(audiocaps: dict, file_server: FileServer, tmp_path: Path):
    shutil.copytree(file_server.folder, file_server.folder / "dataset2.0")
    lists = {f"lists.{version}": f"{file_server.address}/dataset{end}" for version, end in (("v1", ""), ("v2", "2.0"))}
    file_server.faults["cccccccccc1.wav"] = [("other", None)]
    for present in (1, 2):
        result = download("audiocaps", tmp_path, audiocaps | lists | {"version": "v2"}, splits=["test"])
        assert result.clips["test"] == (present, 2, 975)


def test_truncated_index_is_deleted(audiocaps: dict, file_server: FileServer, tmp_path: Path):
    content = (file_server.folder / "test.csv").read_bytes()
    (file_server.folder / "test.csv").write_bytes(content[:-9])
    result = download("audiocaps", tmp_path, audiocaps, splits=["test"])
    assert "its last line is incomplete" in result.failures[0] and not (tmp_path / "audiocaps" / "test.csv").exists()


def test_cookies_in_another_format_are_refused(audiocaps: dict, tmp_path: Path):
    (tmp_path / "cookies.json").write_text("[]")
    with pytest.raises(ValueError, match="cookies.json is not in Netscape format"):
        download("audiocaps", tmp_path, audiocaps | {"videos.cookies": str(tmp_path / "cookies.json")})


def test_web_page_instead_of_an_index_is_deleted(audiocaps: dict, file_server: FileServer, tmp_path: Path):
    file_server.faults["test.csv"] = [("other", None)]
    result = download("audiocaps", tmp_path, audiocaps, splits=["test"])
    assert "test.csv: not an index of audiocaps" in result.failures[0]
    assert not (tmp_path / "audiocaps" / "test.csv").exists()
