"""The cache of decoded recordings: equal to the files, also after changes, losses and interruptions."""

import os
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
import soundfile

from clap.dataset.cache import CacheUse, WaveformCache, read_identity
from clap.dataset.clips import ClapDataset
from clap.dataset.csv import CSV
from clap.dataset.dataset_settings import DatasetSettings
from clap.dataset.loader import count_cache_use
from clap.dataset.synthetic import Synthetic
from clap.waveform import AudioError, Member, load_waveform


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    path = tmp_path / "noise.wav"
    waveform = np.random.default_rng(0).uniform(-0.9, 0.9, (44100, 2))
    soundfile.write(path, waveform, 44100, subtype="FLOAT")
    return path


def test_cached_waveform_equals_the_file_to_16_bits(recording: Path, tmp_path: Path):
    cache = WaveformCache(tmp_path / "cache")
    expected = load_waveform(recording, 16000)
    for _ in range(2):
        np.testing.assert_allclose(cache.load(recording, 16000), expected, rtol=0, atol=1 / 32767)


@pytest.fixture
def no_min_age(monkeypatch: pytest.MonkeyPatch) -> None:
    """A new recording gets its link at once."""
    monkeypatch.setattr("clap.dataset.cache.MIN_AGE", -60.0)


def test_load_samples_returns_16_bits(recording: Path, tmp_path: Path):
    cache = WaveformCache(tmp_path / "cache")
    samples, scale = cache.load_samples(recording, 16000)
    assert samples.dtype == np.int16 and np.array_equal(samples * scale, cache.load(recording, 16000))


def test_second_load_decodes_nothing(recording: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    cache = WaveformCache(tmp_path / "cache")
    first = cache.load(recording, 16000)
    monkeypatch.setattr("clap.dataset.cache.load_waveform", None)
    assert np.array_equal(cache.load(recording, 16000), first)


@pytest.mark.usefixtures("no_min_age")
def test_known_recording_is_not_read(recording: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    first = WaveformCache(tmp_path / "cache").load(recording, 16000)
    monkeypatch.setattr("clap.dataset.cache.load_waveform", None)
    monkeypatch.setattr("clap.dataset.cache.hash_file", None)
    assert np.array_equal(WaveformCache(tmp_path / "cache").load(recording, 16000), first)


def test_new_recording_gets_no_link(recording: Path, tmp_path: Path):
    WaveformCache(tmp_path / "cache").load(recording, 16000)
    assert not (tmp_path / "cache" / "known").exists()


@pytest.mark.usefixtures("no_min_age")
def test_other_recording_of_the_same_size_and_time_is_decoded(recording: Path, tmp_path: Path):
    cache, times = WaveformCache(tmp_path / "cache"), recording.stat()
    cache.load(recording, 44100)
    other = tmp_path / "other.wav"
    soundfile.write(other, np.full((44100, 2), 0.5), 44100, subtype="FLOAT")
    os.utime(other, ns=(times.st_atime_ns, times.st_mtime_ns))
    other.replace(recording)
    assert recording.stat().st_size == times.st_size
    assert np.allclose(cache.load(recording, 44100), 0.5, atol=1e-3)


@pytest.mark.usefixtures("no_min_age")
def test_equal_recordings_share_a_file(recording: Path, tmp_path: Path):
    cache = WaveformCache(tmp_path / "cache")
    shutil.copy(recording, tmp_path / "copy.wav")
    assert np.array_equal(cache.load(recording, 16000), cache.load(tmp_path / "copy.wav", 16000))
    assert [len(list((cache.folder / name).glob("*/*"))) for name in ("samples", "known")] == [1, 2]


@pytest.mark.usefixtures("no_min_age")
@pytest.mark.parametrize("lost", ["all", "samples", "known", "the end of a file"])
def test_lost_files_are_written_again(recording: Path, tmp_path: Path, lost: str):
    cache = WaveformCache(tmp_path / "cache")
    first = cache.load(recording, 16000)
    if lost == "the end of a file":
        (file,) = (cache.folder / "samples").glob("*/*")
        os.truncate(file, 1000)
    else:
        shutil.rmtree(cache.folder if lost == "all" else cache.folder / lost)
    for _ in range(2):
        assert np.array_equal(cache.load(recording, 16000), first)
    assert len(list(cache.folder.glob("*/*/*"))) == 2


def test_recording_replaced_while_it_is_decoded_is_not_kept(recording: Path, tmp_path: Path, monkeypatch):
    def replace_and_load(path: Path, sample_rate: int, **options: object) -> np.ndarray:
        soundfile.write(path, np.full(22050, 0.5), 44100)
        return load_waveform(path, sample_rate, **options)

    monkeypatch.setattr("clap.dataset.cache.load_waveform", replace_and_load)
    cache = WaveformCache(tmp_path / "cache")
    assert len(cache.load(recording, 44100)) == 22050 and not cache.folder.exists()


def test_recording_overwritten_within_a_tick_of_the_clock_is_not_kept(recording: Path, tmp_path: Path, monkeypatch):
    """Of the same size and with the same times, so that only its content shows the change."""

    def overwrite_and_load(path: Path, sample_rate: int, **options: object) -> np.ndarray:
        shutil.copyfile(tmp_path / "other.wav", path)
        return load_waveform(path, sample_rate, **options)

    old, (_, changed) = recording.read_bytes(), read_identity(recording)
    soundfile.write(tmp_path / "other.wav", np.full((44100, 2), 0.5), 44100, subtype="FLOAT")
    cache = WaveformCache(tmp_path / "cache")
    monkeypatch.setattr("clap.dataset.cache.read_identity", lambda path: ("same", changed))
    monkeypatch.setattr("clap.dataset.cache.load_waveform", overwrite_and_load)
    assert np.allclose(cache.load(recording, 44100), 0.5)
    monkeypatch.undo()
    recording.write_bytes(old)
    np.testing.assert_allclose(cache.load(recording, 44100), load_waveform(recording, 44100), rtol=0, atol=1 / 32767)


@pytest.mark.usefixtures("no_min_age")
def test_link_to_another_recording_is_decoded(recording: Path, tmp_path: Path):
    soundfile.write(tmp_path / "other.wav", np.full((44100, 2), 0.5), 44100, subtype="FLOAT")
    cache, link = WaveformCache(tmp_path / "cache"), tmp_path / "link.wav"
    link.symlink_to(recording)
    cache.load(link, 44100)
    link.unlink()
    link.symlink_to(tmp_path / "other.wav")
    assert np.allclose(cache.load(link, 44100), 0.5, atol=1e-4)


@pytest.mark.usefixtures("no_min_age")
def test_member_of_a_replaced_tar_is_decoded(recording: Path, tmp_path: Path):
    cache, members = WaveformCache(tmp_path / "cache"), []
    for level in (0.25, 0.5):
        soundfile.write(recording, np.full((44100, 2), level), 44100, subtype="FLOAT")
        with tarfile.open(tmp_path / "new.tar", "w") as tar:
            tar.add(recording, "a.wav")
        with tarfile.open(tmp_path / "new.tar") as tar:
            member = tar.getmember("a.wav")
        (tmp_path / "new.tar").replace(tmp_path / "0.tar")
        members.append(Member(tmp_path / "0.tar", member.offset_data, member.size, "a.wav"))
        assert np.allclose(cache.load(members[-1], 44100), level, atol=1e-4)
    assert members[0] == members[1]


def test_rates_and_changed_content_have_separate_files(recording: Path, tmp_path: Path):
    cache = WaveformCache(tmp_path / "cache")
    assert len(cache.load(recording, 16000)) == 2 * len(cache.load(recording, 8000))
    soundfile.write(recording, np.full(44100, 0.5), 44100)
    assert np.allclose(cache.load(recording, 44100), 0.5, atol=1e-3)


def test_peaks_above_full_scale_are_kept(tmp_path: Path):
    soundfile.write(tmp_path / "loud.wav", np.linspace(-3, 3, 16000), 16000, subtype="FLOAT")
    waveform = WaveformCache(tmp_path / "cache").load(tmp_path / "loud.wav", 16000)
    np.testing.assert_allclose(waveform, np.linspace(-3, 3, 16000), rtol=0, atol=1e-4)


def test_part_is_the_middle_or_random(recording: Path, tmp_path: Path):
    cache = WaveformCache(tmp_path / "cache")
    whole = cache.load(recording, 16000)
    assert np.array_equal(cache.load(recording, 16000, max_duration=0.5), whole[4000:12000])
    part = cache.load(recording, 16000, max_duration=0.5, rng=np.random.default_rng(1))
    start = int(np.random.default_rng(1).integers(8001))
    assert np.array_equal(part, whole[start : start + 8000])


def test_part_of_a_clip_longer_than_the_longest_is_decoded(recording: Path, tmp_path: Path):
    cache = WaveformCache(tmp_path / "cache")
    part = cache.load(recording, 16000, max_duration=0.4, longest=0.5)
    np.testing.assert_array_equal(part, load_waveform(recording, 16000, max_duration=0.4))
    with pytest.raises(AudioError, match="the longest clip is 0.5 s"):
        cache.load(recording, 16000, longest=0.5)


def test_longest_clip_does_not_depend_on_what_is_cached(recording: Path, tmp_path: Path):
    cache = WaveformCache(tmp_path / "cache")
    assert len(cache.load(recording, 22050, longest=1.0)) == 22050
    cache.load(recording, 22050, max_duration=0.4, longest=0.5)
    with pytest.raises(AudioError, match="1.0 s long, the longest clip is 0.9 s"):
        cache.load(recording, 22050, longest=0.9)


def test_unwritable_folder_is_a_warning(recording: Path, tmp_path: Path, caplog):
    (tmp_path / "cache").write_text("a file, not a folder")
    for _ in range(2):
        waveform = WaveformCache(tmp_path / "cache").load(recording, 16000)
        np.testing.assert_allclose(waveform, load_waveform(recording, 16000), rtol=0, atol=1 / 32767)
    assert caplog.text.count("is not writable") == 1


def test_invalid_recordings_raise_the_error_of_load_waveform(tmp_path: Path):
    (tmp_path / "empty.wav").write_bytes(b"")
    for name, problem in {"empty.wav": "empty", "absent.wav": "no such audio file"}.items():
        with pytest.raises(AudioError, match=problem):
            WaveformCache(tmp_path / "cache").load(tmp_path / name, 16000)
    assert not (tmp_path / "cache").exists()


@pytest.mark.usefixtures("no_min_age")
def test_hits_and_misses_are_counted(tmp_path: Path):
    rows = [f"{number}.wav,tone {number},train" for number in range(3)]
    (tmp_path / "clips.csv").write_text("\n".join(["path,caption,split", *rows]))
    for number in range(3):
        soundfile.write(tmp_path / f"{number}.wav", np.full(1600, 0.1 * number), 16000)
    settings = DatasetSettings(cache=str(tmp_path / "cache"))
    dataset = ClapDataset(CSV(tmp_path, metadata=tmp_path / "clips.csv"), sample_rate=16_000, settings=settings)
    found = [count_cache_use([dataset[i] for i in chosen]) for chosen in ([0, 1], [0, 1, 2])]
    assert found == [CacheUse(0, 2, 0), CacheUse(2, 1, 2 * 2 * 1600)]
    dataset.corpora[0].cache = None
    assert count_cache_use([dataset[0]]) == CacheUse()


def test_limit_does_not_change_the_samples(recording: Path, tmp_path: Path):
    expected = WaveformCache(tmp_path / "cache").load(recording, 16000)
    small = WaveformCache(tmp_path / "small", gigabytes=30e-6)
    for _ in range(2):
        assert np.array_equal(small.load(recording, 16000), expected) and small.take_hit() is False
    assert not (tmp_path / "small").exists()


def test_settings_attach_the_cache_to_the_corpus(tmp_path: Path):
    corpus = Synthetic(num_train=1, num_val=1, num_test=1)
    ClapDataset(corpus, sample_rate=16_000, settings=DatasetSettings(cache=str(tmp_path), cache_gigabytes=1.5))
    assert corpus.cache.folder == tmp_path and corpus.cache.limit.max_bytes == 1_500_000_000
