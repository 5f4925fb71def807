"""Downloads of whole corpora from a local server, through the addresses of the yamls."""

import functools
import itertools
import json
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import py7zr
import pytest
import soundfile
from conftest import make_tone
from download_server import FileServer
from omegaconf import OmegaConf
from replicas import write_fsd50k
from test_corpora import train

from clap.__main__ import main
from clap.config.compose import compose_yamls
from clap.corpus import SPLITS
from clap.dataset.clips import ClapDataset
from clap.dataset.registry import find_class, find_corpus
from clap.download.addresses import ADDRESSES, list_downloads, read_addresses, resolve_addresses
from clap.download.manifest import Manifest, Status
from clap.download.remote import Result
from clap.download.run import download_corpus
from clap.download.unpack import join_parts

RATE = 8_000
CLOTHO = {"development": 4, "validation": 2, "evaluation": 2}
VIDEOS = {"train": ["aaaaaaaaaa1", "aaaaaaaaaa2"], "val": ["bbbbbbbbbb1"], "test": ["cccccccccc1", "cccccccccc2"]}
START = 3  # seconds, of the clip in each video


def compose_addresses(name: str, overrides: list[str]) -> dict:
    """The addresses as `python -m clap download` composes them."""
    return resolve_addresses(compose_yamls(overrides, folder=ADDRESSES, name=name))


def without_checksums(name: str) -> dict[str, str]:
    """Overrides that skip the published checksums."""
    return {f"files.{key}.checksum": "" for key in OmegaConf.load(ADDRESSES / f"{name}.yaml").files}


def get(name: str, root: Path, overrides: Mapping[str, object], **options: object) -> Result:
    """Download with overrides of the yaml, applied without Hydra, which is slower."""
    settings = OmegaConf.load(ADDRESSES / f"{name}.yaml")
    for key, value in overrides.items():
        OmegaConf.update(settings, key, value)
    open_corpus = functools.partial(find_corpus, name)
    return download_corpus(name, root, OmegaConf.to_container(settings, resolve=True), open_corpus, **options)


def read(folder: Path) -> dict[str, bytes]:
    """Every file except the manifest and scratch files of the download."""
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    return {
        name: path.read_bytes() for name, path in files.items() if not name.startswith(("download.jsonl", ".download"))
    }


@pytest.fixture(scope="module")
def clotho_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of a small Clotho, as on Zenodo."""
    folder = tmp_path_factory.mktemp("clotho")
    for number, (split, count) in enumerate(CLOTHO.items()):
        names = [f"{split} no. {i}.wav" for i in range(count)]
        captions = [f"{name},{','.join(f'caption {i} of {name}' for i in range(5))}" for name in names]
        header = "file_name,caption_1,caption_2,caption_3,caption_4,caption_5"
        (folder / f"clotho_captions_{split}.csv").write_text("\n".join([header, *captions, ""]))
        metadata = [f"{name},rain;roof,{100 * number + i}" for i, name in enumerate(names)]
        (folder / f"clotho_metadata_{split}.csv").write_text("\n".join(["file_name,keywords,sound_id", *metadata, ""]))
        with py7zr.SevenZipFile(folder / f"clotho_audio_{split}.7z", "w") as archive:
            for i, name in enumerate(names):
                soundfile.write(folder / "clip.wav", make_tone(200.0 + i, 6.0, sample_rate=RATE, seed=number), RATE)
                archive.write(folder / "clip.wav", f"{split}/{name}")
    return folder


@pytest.fixture
def clotho(clotho_files: Path, file_server: FileServer) -> dict[str, object]:
    """Serve Clotho; returns the overrides of its addresses."""
    shutil.copytree(clotho_files, file_server.folder, dirs_exist_ok=True)
    return {"server": file_server.address} | without_checksums("clotho")


@pytest.fixture(scope="module")
def audiocaps_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Index files and videos of a small AudioCaps."""
    folder, numbers = tmp_path_factory.mktemp("audiocaps"), itertools.count()
    for split, videos in VIDEOS.items():
        lines = [
            f"{next(numbers)},{video},{START},caption {i} of {video}"
            for video in videos
            for i in range(1 if split == "train" else 5)
        ]
        text = "\n".join(["audiocap_id,youtube_id,start_time,caption", *lines, ""])
        (folder / f"{split}.csv").write_text(text)
        for seed, video in enumerate(videos):
            noise = np.random.default_rng(seed).integers(-9000, 9000, 15 * RATE).astype(np.int16)
            soundfile.write(folder / f"{video}.wav", noise, RATE)
    return folder


@pytest.fixture
def audiocaps(audiocaps_files: Path, file_server: FileServer) -> dict[str, object]:
    """Serve AudioCaps; returns the overrides of its addresses."""
    shutil.copytree(audiocaps_files, file_server.folder, dirs_exist_ok=True)
    address = file_server.address
    return {"lists.v1": address, "videos.address": f"{address}/VIDEO.wav", "videos.pause": 0.0}


def test_clotho_is_downloaded_completely(clotho: dict, file_server: FileServer, tmp_path: Path):
    result = get("clotho", tmp_path / "data", clotho)
    assert result.clips == {"train": (4, 4, 3839), "val": (2, 2, 1045), "test": (2, 2, 1045)}
    assert not result.failures and not result.missing
    served = {f"clotho_{kind}_{split}.csv" for kind in ("captions", "metadata") for split in CLOTHO}
    clips = {f"{split}/{split} no. {i}.wav" for split, count in CLOTHO.items() for i in range(count)}
    assert read(tmp_path / "data" / "clotho").keys() == served | clips


def test_second_download_sends_no_request(clotho: dict, file_server: FileServer, tmp_path: Path):
    get("clotho", tmp_path, clotho)
    before = len(file_server.requests)
    assert not get("clotho", tmp_path, clotho).failures
    assert len(file_server.requests) == before


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_bytes(b"half")], ids=["absent", "half"])
def test_only_the_archive_of_a_missing_clip_is_downloaded_again(
    clotho: dict, file_server: FileServer, tmp_path: Path, damage: object
):
    get("clotho", tmp_path, clotho)
    whole, before = read(tmp_path / "clotho"), len(file_server.requests)
    damage(tmp_path / "clotho" / "validation" / "validation no. 1.wav")
    get("clotho", tmp_path, clotho)
    assert [name for name, _ in file_server.requests[before:]] == ["clotho_audio_validation.7z"]
    assert read(tmp_path / "clotho") == whole


def test_existing_index_is_never_rewritten(clotho: dict, tmp_path: Path):
    get("clotho", tmp_path, clotho, splits=["test"])
    path = tmp_path / "clotho" / "clotho_captions_evaluation.csv"
    path.write_text(path.read_text().replace("caption 0", "a better caption"))
    get("clotho", tmp_path, clotho)
    assert "a better caption" in path.read_text()


def test_only_requested_splits_are_downloaded(clotho: dict, file_server: FileServer, tmp_path: Path):
    result = get("clotho", tmp_path, clotho, splits=["test"])
    assert result.clips.keys() == {"test"}
    assert {name.rpartition("_")[2].partition(".")[0] for name, _ in file_server.requests} == {"evaluation"}


def test_manually_unpacked_clips_are_kept(clotho: dict, file_server: FileServer, tmp_path: Path):
    get("clotho", tmp_path, clotho)
    (tmp_path / "clotho" / "download.jsonl").unlink()
    before = len(file_server.requests)
    get("clotho", tmp_path, clotho)
    assert len(file_server.requests) == before


def test_file_with_wrong_checksum_does_not_stop_the_others(clotho: dict, tmp_path: Path):
    checked = clotho | {"files.audio_validation.checksum": f"md5:{'0' * 32}"}
    result = get("clotho", tmp_path, checked)
    assert [failure.partition(": ")[0].rpartition("/")[2] for failure in result.failures] == [
        "clotho_audio_validation.7z"
    ]
    assert result.clips["train"][0] == 4 and result.clips["val"][0] == 0
    assert not (tmp_path / "clotho" / "validation").exists()
    assert "missing: 2 clips" in str(result)


def test_web_page_instead_of_an_archive_is_deleted(clotho: dict, file_server: FileServer, tmp_path: Path):
    file_server.faults["clotho_audio_evaluation.7z"] = [("other", None)]
    result = get("clotho", tmp_path, clotho)
    assert "audio_evaluation is not a zip, tar or 7z archive; the archive is deleted" in result.failures[0]
    assert not get("clotho", tmp_path, clotho).failures


def test_clip_that_is_not_in_the_archive_is_not_requested_again(clotho: dict, file_server: FileServer, tmp_path: Path):
    with (file_server.folder / "clotho_captions_evaluation.csv").open("a") as file:
        file.write("lost.wav,a,b,c,d,e\n")
    result = get("clotho", tmp_path, clotho)
    assert result.clips["test"][:2] == (2, 3) and not result.failures
    assert dict(result.missing) == {"not in audio_evaluation": 1}
    before = len(file_server.requests)
    assert get("clotho", tmp_path, clotho).missing == result.missing and len(file_server.requests) == before
    get("clotho", tmp_path, clotho, again=True)
    assert len(file_server.requests) == before + 1


def test_wrong_mirror_marks_no_clip_as_gone(clotho: dict, file_server: FileServer, tmp_path: Path):
    wrong = f"{file_server.address}/clotho_audio_validation.7z"
    result = get("clotho", tmp_path, clotho | {"files.audio_evaluation.address": wrong}, splits=["test"])
    assert "audio_evaluation" not in str(result.missing) and "holds none of its 2 listed clips" in result.failures[0]
    assert not (tmp_path / "clotho" / "evaluation").exists()
    assert get("clotho", tmp_path, clotho, splits=["test"]).clips["test"][:2] == (2, 2)


def test_clip_edited_by_the_user_is_kept_when_another_is_restored(clotho: dict, tmp_path: Path):
    get("clotho", tmp_path, clotho, splits=["test"])
    first, second = (tmp_path / "clotho" / "evaluation" / f"evaluation no. {i}.wav" for i in range(2))
    (tmp_path / "clotho" / "download.jsonl").unlink()
    soundfile.write(first, make_tone(900.0, 1.0, sample_rate=RATE), RATE)
    edited = first.read_bytes()
    second.unlink()
    get("clotho", tmp_path, clotho, splits=["test"])
    assert first.read_bytes() == edited and second.exists()


def test_download_of_another_split_keeps_partial_files(clotho: dict, file_server: FileServer, tmp_path: Path):
    file_server.faults["clotho_audio_development.7z"] = [("cut", 70_000), *[("status", 404)] * 9]
    assert get("clotho", tmp_path, clotho, splits=["train"]).failures
    get("clotho", tmp_path, clotho, splits=["test"])
    assert (tmp_path / "clotho" / ".download" / "audio_development.part").stat().st_size == 65_536


def test_corpus_is_found_in_a_renamed_folder(clotho: dict, file_server: FileServer, tmp_path: Path):
    get("clotho", tmp_path, clotho)
    (tmp_path / "clotho").rename(tmp_path / "Clotho-v2.1")
    (tmp_path / "Clotho-v2.1" / ".download.lock").unlink()
    before = len(file_server.requests)
    result = get("clotho", tmp_path / "Clotho-v2.1", clotho)
    assert result.root == tmp_path / "Clotho-v2.1" and len(file_server.requests) == before
    assert not (result.root / ".download.lock").exists()  # a complete folder may be read-only


def test_web_page_instead_of_metadata_keeps_the_captions(clotho: dict, file_server: FileServer, tmp_path: Path):
    file_server.faults["clotho_metadata_evaluation.csv"] = [("other", None)]
    result = get("clotho", tmp_path, clotho, splits=["test"])
    assert len(result.failures) == 1 and "clotho_metadata_evaluation.csv: not an index" in result.failures[0]
    assert not get("clotho", tmp_path, clotho, splits=["test"]).failures


def test_corpus_in_a_single_archive_is_unpacked_into_its_folder(file_server: FileServer, tmp_path: Path):
    main(["synthesize", str(tmp_path / "made"), "--layout", "esc50", "--num-clips", "5", "--max-duration", "5"])
    (tmp_path / "made" / "ESC-50").mkdir()
    for name in ("audio", "meta"):
        shutil.move(tmp_path / "made" / name, tmp_path / "made" / "ESC-50")
    shutil.make_archive(str(file_server.folder / "master"), "zip", tmp_path / "made")
    overrides = {"files.all.address": f"{file_server.address}/master.zip"}
    result = get("esc50", tmp_path / "data", overrides)
    assert result.clips["test"][:2] == (1, 1) and not result.failures
    assert read(tmp_path / "data" / "esc50") == read(tmp_path / "made" / "ESC-50")


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
    assert read(tmp_path / "fsd50k") == read(made)


def test_archive_of_the_index_is_requested_first(file_server: FileServer, tmp_path: Path):
    settings = compose_addresses("fsd50k", [f"server={file_server.address}"])
    result = download_corpus("fsd50k", tmp_path, settings, functools.partial(find_corpus, "fsd50k"))
    assert [name for name, _ in file_server.requests] == ["FSD50K.ground_truth.zip"] and len(result.failures) == 1


def test_parts_are_kept_if_the_disk_is_full_when_joining(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    program = tmp_path / "bin" / "zip"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\necho zip error: Output file write failure; exit 14\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent))
    with pytest.raises(OSError, match="Output file write failure"):
        join_parts(tmp_path / "a.zip", tmp_path / "joined")


def test_audiocaps_is_cut_from_its_videos(audiocaps: dict, file_server: FileServer, tmp_path: Path):
    result = get("audiocaps", tmp_path, audiocaps)
    assert {split: present for split, (present, *_) in result.clips.items()} == {"train": 2, "val": 1, "test": 2}
    for clip in find_corpus("audiocaps", tmp_path).clips("test"):
        waveform, _ = soundfile.read(clip.path, dtype="int16")
        video, _ = soundfile.read(file_server.folder / f"{clip.id.rpartition('_')[0]}.wav", dtype="int16")
        np.testing.assert_array_equal(waveform, video[START * RATE : (START + 10) * RATE])


def test_video_that_is_gone_is_requested_again_only_with_again(
    audiocaps: dict, file_server: FileServer, tmp_path: Path
):
    (file_server.folder / "cccccccccc1.wav").unlink()
    result = get("audiocaps", tmp_path, audiocaps, splits=["test"])
    assert result.clips["test"][:2] == (1, 2) and not result.failures
    assert list(result.missing) == ["Unable to download webpage: HTTP Error 404: Not Found"]
    before = len(file_server.requests)
    get("audiocaps", tmp_path, audiocaps, splits=["test"])
    assert len(file_server.requests) == before
    get("audiocaps", tmp_path, audiocaps, splits=["test"], again=True)
    assert [name for name, _ in file_server.requests[before:]] == ["cccccccccc1.wav"]


def test_video_that_failed_is_requested_again(audiocaps: dict, file_server: FileServer, tmp_path: Path):
    file_server.faults["cccccccccc1.wav"] = [("other", None)]
    result = get("audiocaps", tmp_path, audiocaps, splits=["test"])
    assert result.failures == ["1 clips failed temporarily; run the same command again to retry them"]
    assert get("audiocaps", tmp_path, audiocaps, splits=["test"]).clips["test"][:2] == (2, 2)


def test_server_that_refuses_is_not_requested_further(
    audiocaps: dict, file_server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("clap.download.download.MAX_FAILURES_IN_A_ROW", 1)
    for video in VIDEOS["test"]:
        file_server.faults[f"{video}.wav"] = [("other", None)]
    result = get("audiocaps", tmp_path, audiocaps, splits=["test"], workers=1)
    assert "the remaining clips were not requested. Wait, set videos.cookies=FILE" in result.failures[0]
    assert result.missing == {"Unsupported URL": 1, "not requested": 1}


def test_index_of_another_version_is_refused(audiocaps: dict, tmp_path: Path):
    get("audiocaps", tmp_path, audiocaps, splits=["test"])
    with pytest.raises(
        ValueError, match="test.csv was downloaded from .*, which is another version .*; set another --root"
    ):
        get("audiocaps", tmp_path, audiocaps | {"version": "v2"}, splits=["test", "val"])


def test_download_of_the_second_version_is_resumed(audiocaps: dict, file_server: FileServer, tmp_path: Path):
    shutil.copytree(file_server.folder, file_server.folder / "dataset2.0")
    lists = {f"lists.{version}": f"{file_server.address}/dataset{end}" for version, end in (("v1", ""), ("v2", "2.0"))}
    file_server.faults["cccccccccc1.wav"] = [("other", None)]
    for present in (1, 2):
        result = get("audiocaps", tmp_path, audiocaps | lists | {"version": "v2"}, splits=["test"])
        assert result.clips["test"] == (present, 2, 975)


def test_truncated_index_is_deleted(audiocaps: dict, file_server: FileServer, tmp_path: Path):
    content = (file_server.folder / "test.csv").read_bytes()
    (file_server.folder / "test.csv").write_bytes(content[:-9])
    result = get("audiocaps", tmp_path, audiocaps, splits=["test"])
    assert "its last line is incomplete" in result.failures[0] and not (tmp_path / "audiocaps" / "test.csv").exists()


def test_cookies_in_another_format_are_refused(audiocaps: dict, tmp_path: Path):
    (tmp_path / "cookies.json").write_text("[]")
    with pytest.raises(ValueError, match="cookies.json is not in Netscape format"):
        get("audiocaps", tmp_path, audiocaps | {"videos.cookies": str(tmp_path / "cookies.json")})


def test_web_page_instead_of_an_index_is_deleted(audiocaps: dict, file_server: FileServer, tmp_path: Path):
    file_server.faults["test.csv"] = [("other", None)]
    result = get("audiocaps", tmp_path, audiocaps, splits=["test"])
    assert "test.csv: not an index of audiocaps" in result.failures[0]
    assert not (tmp_path / "audiocaps" / "test.csv").exists()


def test_dataset_downloads_its_split(clotho: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    overrides = [f"{key}={value}" for key, value in clotho.items()]
    monkeypatch.setattr("clap.dataset.registry.read_addresses", lambda name: compose_addresses(name, overrides))
    dataset = ClapDataset(datasets=["Clotho"], kind="test", root=tmp_path, download=True, sample_rate=RATE)
    assert len(dataset) == 2 and len(dataset[0].waveform) == 6 * RATE
    assert not (tmp_path / "clotho" / "development").exists()


def test_downloaded_corpora_train_together(clotho: dict, audiocaps: dict, tiny_config: Callable, tmp_path: Path):
    for name, overrides in {"clotho": clotho, "audiocaps": audiocaps}.items():
        get(name, tmp_path / "data", overrides)
    metrics = train(tiny_config("dataset=clotho_audiocaps", f"dataset.root={tmp_path / 'data'}"), tmp_path / "run")
    assert {name.split("/")[1] for name in metrics if name.startswith("test/")} == {"clotho", "audiocaps"}


def test_dataset_downloads_corpora_by_name_only(tmp_path: Path):
    with pytest.raises(ValueError, match="download=True needs names of corpora and a folder"):
        ClapDataset(datasets=["Clotho"], download=True, sample_rate=RATE)


def test_error_of_a_missing_corpus_names_the_download_command(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="python -m clap download clotho --root data"):
        find_corpus("clotho", tmp_path / "absent")


@pytest.mark.parametrize("name", list_downloads())
def test_yaml_has_https_addresses_and_valid_checksums(name: str):
    settings = read_addresses(name)
    assert find_class(name) is not None
    for remote in settings["files"].values():
        assert remote["address"].startswith("https://") and set(remote["splits"]) <= set(SPLITS)
        for checksum in (remote["checksum"], *remote.get("parts", {}).values()):
            kind, _, digest = checksum.partition(":")
            assert (kind, len(digest)) in {("", 0), ("md5", 32), ("sha256", 64)}


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["clotto", "--root", "x"], "'clotto' cannot be downloaded, only .*; did you mean clotho"),
        (["clotho", "--root", "x", "sever=y"], "sever=y: there is no key sever; did you mean server"),
        (["clotho", "--root", "x", "--splits", "test", "sever=y"], "there is no key sever"),
        (["Clotho", "--root", "x", "--splits", "tset"], "split 'tset' is not one of train, val, test"),
        (["audiocaps", "--root", "x", "version=v3"], "version=v3 is not one of v1, v2"),
        (["clotho", "--root", "x", "--splits", "dev"], "split 'dev' is not one of train, val, test"),
        (["clotho", "--root", "x", "--workers", "0"], "--workers 0 must be 1 or more"),
    ],
)
def test_invalid_command_line_is_explained(argv: Sequence[str], message: str):
    with pytest.raises(SystemExit, match=message):
        main(["download", *argv])


def test_command_prints_present_clips(clotho: dict, tmp_path: Path, capsys: pytest.CaptureFixture):
    overrides = [f"{key}={value}" for key, value in clotho.items()]
    with pytest.raises(SystemExit) as caught:
        main(["download", "clotho", "--root", str(tmp_path), *overrides])
    assert not caught.value.code
    assert "train  4 of 4 clips, 3839 published" in capsys.readouterr().out


def test_manifest_skips_a_truncated_line(tmp_path: Path):
    Manifest(tmp_path).add([Status("a\u2028ä.wav", "here", size=3), Status("b.wav", "gone", reason="private")])
    with (tmp_path / "download.jsonl").open("a") as file:
        file.write('{"path": "c.wa')
    manifest = Manifest(tmp_path)
    assert manifest[tmp_path / "b.wav"] == Status("b.wav", "gone", reason="private")
    manifest.compact()
    lines = (tmp_path / "download.jsonl").read_text().splitlines()
    assert [json.loads(line)["path"] for line in lines] == ["a\u2028ä.wav", "b.wav"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["clotho", "audiocaps"])
def test_download_killed_twenty_times_gives_the_same_files(
    name: str, clotho: dict, audiocaps: dict, file_server: FileServer, tmp_path: Path
):
    overrides = {"clotho": clotho, "audiocaps": audiocaps}[name]
    get(name, tmp_path / "once", overrides)
    file_server.pause, begun = 0.05, len(file_server.requests)
    lines = [f"{key}={value}" for key, value in overrides.items()]
    command = [sys.executable, "-m", "clap", "download", name, "--root", str(tmp_path / "killed"), *lines]
    rng = random.Random(0)
    for _ in range(20):
        before = len(file_server.requests)
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None and len(file_server.requests) == before:
            time.sleep(0.01)
        time.sleep(rng.uniform(0.0, 0.6))  # while a file is received, unpacked or cut
        process.kill()
        process.wait()
        present = read(tmp_path / "killed" / name) if (tmp_path / "killed" / name).exists() else {}
        assert present.items() <= read(tmp_path / "once" / name).items()  # no incomplete file
    assert any(first for _, first in file_server.requests[begun:])  # some runs resumed where another was killed
    assert subprocess.run(command).returncode == 0
    assert read(tmp_path / "killed" / name) == read(tmp_path / "once" / name)
    assert not (tmp_path / "killed" / name / ".download").exists()
