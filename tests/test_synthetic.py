"""Synthetic scenes: reproducible, audible as described, and distinguishable by their captions."""

import re
from collections import Counter

import numpy as np
import pytest
import soxr
from numpy.testing import assert_allclose, assert_array_equal

from clap.corpus import SPLITS
from clap.dataset.scenes.phrases import FRAMES, Event, Scene, write_captions
from clap.dataset.scenes.rendering import GAP, SPEEDS, render_event, render_scene
from clap.dataset.scenes.sounds import RENDER_RATE, SOUNDS
from clap.dataset.synthetic import Synthetic


def make_corpus(num_clips: int = 256, **changes: float) -> Synthetic:
    return Synthetic(**{"num_train": num_clips, "num_val": num_clips, "num_test": num_clips} | changes)


def make_event(kind: str, **changes: float) -> Event:
    """An event with default attributes: three seconds, or one call."""
    usual = dict.fromkeys(("pitch", "speed", "loudness", "trend"), 0)
    sound = SOUNDS[kind]
    duration = sound.duration / SPEEDS[changes.get("speed", 0)] if sound.form == "call" else 3.0
    return Event(kind, **usual | {"count": 1, "duration": duration} | changes)


def render(event: Event) -> np.ndarray:
    return render_event(event, np.random.default_rng(0))


def centroid(waveform: np.ndarray) -> float:
    """Mean frequency of the power, Hz."""
    power = np.abs(np.fft.rfft(waveform)) ** 2
    return float((power * np.fft.rfftfreq(len(waveform), 1 / RENDER_RATE)).sum() / power.sum())


def rms(waveform: np.ndarray) -> float:
    return float(np.sqrt(np.mean(waveform**2)))


def count_onsets(waveform: np.ndarray) -> int:
    """How often the level, in steps of 10 ms, rises above a fifth of its maximum."""
    frames = waveform[: len(waveform) // 160 * 160].reshape(-1, 160)
    is_on = np.abs(frames).max(axis=1) > 0.2 * np.abs(waveform).max()
    return int(is_on[0]) + int(np.sum(is_on[1:] & ~is_on[:-1]))


def test_clips_are_the_same_for_every_split_size():
    assert make_corpus(20).clips("train")[:10] == make_corpus(10).clips("train")


def test_waveform_is_the_same_on_every_call():
    corpus = make_corpus(4)
    first, second, _, _ = corpus.clips("test")
    once = corpus.load(second, sample_rate=16_000, max_duration=10.0)
    corpus.load(first, sample_rate=16_000, max_duration=10.0)
    assert_array_equal(make_corpus(4).load(second, sample_rate=16_000, max_duration=10.0), once)


def test_global_random_state_is_neither_read_nor_changed():
    np.random.seed(1)
    before = np.random.get_state()[1].copy()
    assert make_corpus(4).clips("val") == make_corpus(4).clips("val")
    assert_array_equal(np.random.get_state()[1], before)


def test_splits_share_no_scene():
    corpus = make_corpus()
    plans = [{corpus.scene(split, i) for i in range(256)} for split in SPLITS]
    assert len(set.union(*plans)) == 3 * 256


def test_seed_changes_scenes():
    assert make_corpus(8).clips("train") != make_corpus(8, seed=1).clips("train")


def test_clip_id_names_split_and_index():
    assert make_corpus(18).clips("test")[17].id == "test-00017"


def test_label_is_the_kind_of_a_lone_event():
    corpus = make_corpus()
    for i, clip in enumerate(corpus.clips("test")):
        kinds = {event.kind for event in corpus.scene("test", i).events}
        assert clip.label == (kinds.pop() if len(kinds) == 1 else None)


def test_a_quarter_to_a_third_of_clips_have_a_label():
    clips = make_corpus(1000).clips("train")
    assert 0.25 <= sum(clip.label is not None for clip in clips) / len(clips) <= 0.35


def test_every_kind_appears_alone():
    assert {clip.label for clip in make_corpus(1000).clips("train")} >= set(SOUNDS)


def test_there_are_twenty_kinds_or_more():
    assert len(SOUNDS) >= 20


@pytest.mark.parametrize(("lower", "upper"), [(3.0, 10.0), (3.0, 30.0), (5.0, 5.0)])
def test_durations_are_within_their_bounds(lower: float, upper: float):
    corpus = make_corpus(min_duration=lower, max_duration=upper)
    durations = [corpus.scene("test", i).duration for i in range(256)]
    assert lower <= min(durations) and max(durations) <= upper


@pytest.mark.parametrize("upper", [3.0, 10.0, 30.0])
def test_events_are_within_their_scene(upper: float):
    corpus = make_corpus(max_duration=upper)
    for scene in (corpus.scene("test", i) for i in range(256)):
        assert all(0 <= e.start and e.start + e.duration <= scene.duration for e in scene.events)


def test_events_in_a_row_do_not_overlap():
    corpus = make_corpus(max_duration=20.0)
    scenes = [scene for scene in (corpus.scene("test", i) for i in range(256)) if scene.structure in ("two", "three")]
    for scene in scenes:
        for first, second in zip(scene.events, scene.events[1:], strict=False):
            assert first.start + first.duration < second.start


def test_background_spans_the_events_over_it():
    corpus = make_corpus()
    scenes = [scene for scene in (corpus.scene("test", i) for i in range(256)) if "over" in scene.structure]
    for *over, background in (scene.events for scene in scenes):
        assert background.start <= min(e.start for e in over)
        assert background.start + background.duration >= max(e.start + e.duration for e in over)


def test_many_events_of_long_scenes_are_outside_the_middle_window():
    corpus = make_corpus(max_duration=30.0)
    scenes = [scene for scene in (corpus.scene("test", i) for i in range(256)) if scene.duration > 20]
    outside = [
        e.start + e.duration < (scene.duration - 10) / 2 or e.start > (scene.duration + 10) / 2
        for scene in scenes
        for e in scene.events
    ]
    assert np.mean(outside) > 0.3


def test_place_matches_the_start_of_a_lone_event():
    corpus = make_corpus(1000)
    for scene in (corpus.scene("train", i) for i in range(1000)):
        if scene.place:
            (event,) = scene.events
            share = event.start / (scene.duration - event.duration)
            assert share == pytest.approx({"beginning": 0.0, "middle": 0.5, "end": 1.0}[scene.place], abs=0.18)


def test_nearly_all_scenes_of_a_gallery_have_unique_facts():
    corpus = make_corpus()
    counts = Counter(corpus.scene("test", i).facts for i in range(256))
    assert sum(count == 1 for count in counts.values()) >= 0.98 * 256


def test_five_captions_of_a_clip_differ():
    assert all(len(set(clip.captions)) == 5 for clip in make_corpus(1000).clips("train"))


def test_nearly_no_caption_fits_two_scenes_of_a_gallery():
    captions = [caption for clip in make_corpus().clips("test") for caption in clip.captions]
    assert len(set(captions)) >= 0.99 * len(captions)


def test_vocabulary_is_a_few_hundred_words():
    captions = " ".join(caption for clip in make_corpus(2000).clips("train") for caption in clip.captions)
    assert 150 < len(set(re.findall(r"[a-z-]+", captions.lower()))) < 400


def test_captions_are_sentences():
    captions = [caption for clip in make_corpus(1000).clips("train") for caption in clip.captions]
    assert all(re.fullmatch(r"[A-Z][a-z-]*(,? [a-z-]+)+\.", caption) for caption in captions)


def test_article_before_a_vowel_is_an():
    captions = [caption for clip in make_corpus(1000).clips("train") for caption in clip.captions]
    assert not any(re.search(r"\b[Aa] [aeiou]|\b[Aa]n [^aeiou]", caption) for caption in captions)


@pytest.mark.parametrize("structure", FRAMES)
def test_every_frame_mentions_every_event(structure: str):
    num_events = {"one": 1, "two": 2, "three": 3}[re.match(r"\w+", structure)[0]] + ("over" in structure)
    for frame in FRAMES[structure]:
        assert sorted(re.findall(r"{(\d)", frame)) == [str(i) for i in range(num_events)]


@pytest.mark.parametrize("structure", ["two", "three"])
def test_captions_mention_events_in_chronological_order(structure: str):
    words = ("siren", "heart", "rain")[: 2 if structure == "two" else 3]
    events = tuple(make_event(kind) for kind in ("siren", "heartbeat", "rain")[: len(words)])
    for seed in range(20):
        for caption in write_captions(Scene(structure, "", events, 10.0), np.random.default_rng(seed)):
            places = [caption.lower().index(word) for word in words]
            is_reversed = " after " in caption and not caption.startswith("After")
            assert places == sorted(places, reverse=is_reversed)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"pitch": -1}, "low|deep"),
        ({"pitch": 1}, "high"),
        ({"speed": -1}, "slow|unhurried"),
        ({"speed": 1}, "fast|rapid|quick"),
        ({"loudness": -1}, "quiet|soft|faint"),
        ({"loudness": 1}, "loud"),
        ({"count": 2}, "twice|two|pair"),
        ({"count": 3}, "three"),
    ],
)
def test_every_caption_states_attributes_that_are_not_default(changes: dict[str, int], words: str):
    scene = Scene("one", "", (make_event("bird trill", **changes),), 10.0)
    for seed in range(10):
        for caption in write_captions(scene, np.random.default_rng(seed)):
            assert re.search(words, caption.lower())


def test_captions_do_not_state_default_attributes():
    scene = Scene("one", "", (make_event("bird trill"),), 10.0)
    for caption in write_captions(scene, np.random.default_rng(0)):
        assert not re.search("low|high|fast|quick|loud|quiet|soft|twice|three", caption)


@pytest.mark.parametrize("kind", [kind for kind, sound in SOUNDS.items() if sound.pitch])
def test_pitch_values_are_distinguishable(kind: str):
    low, middle, high = (centroid(render(make_event(kind, pitch=pitch))) for pitch in (-1, 0, 1))
    assert low * 1.3 < middle < high / 1.3


@pytest.mark.parametrize("kind", SOUNDS)
def test_loudness_is_audible(kind: str):
    quiet, usual, loud = (rms(render(make_event(kind, loudness=loudness))) for loudness in (-1, 0, 1))
    assert_allclose([usual / quiet, loud / usual], 3.0, rtol=1e-3)


@pytest.mark.parametrize("kind", ["knocking", "clock ticking", "crickets"])
def test_speed_is_audible(kind: str):
    slow, usual, fast = (count_onsets(render(make_event(kind, speed=speed))) for speed in (-1, 0, 1))
    assert slow * 1.3 < usual < fast / 1.3


@pytest.mark.parametrize("kind", ["beep", "horn", "rising chirp"])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_number_of_calls_matches_count(kind: str, count: int):
    duration = count * SOUNDS[kind].duration + (count - 1) * GAP
    assert count_onsets(render(make_event(kind, count=count, duration=duration))) == count


@pytest.mark.parametrize("trend", [-1, 1])
def test_trend_is_audible(trend: int):
    first, second = np.array_split(render(make_event("steam", trend=trend)), 2)
    assert (rms(second) / rms(first)) ** trend > 2


@pytest.mark.parametrize("kind", SOUNDS)
@pytest.mark.parametrize("pitch", [-1, 1])
def test_energy_is_below_7_khz(kind: str, pitch: int):
    power = np.abs(np.fft.rfft(render(make_event(kind, pitch=pitch if SOUNDS[kind].pitch else 0)))) ** 2
    assert power[int(len(power) * 7000 / 8000) :].sum() < 0.01 * power.sum()


@pytest.mark.parametrize("kind", SOUNDS)
def test_quiet_event_is_louder_than_the_noise_floor(kind: str):
    event = make_event(kind, loudness=-1)
    silence = render_scene(Scene("one", "", (), 3.0), np.random.default_rng(0))
    assert np.abs(render(event)).max() > 10 * rms(silence)


def test_scene_is_never_digital_silence():
    silence = render_scene(Scene("one", "", (), 3.0), np.random.default_rng(0))
    assert np.abs(silence.reshape(-1, 160)).max(axis=1).min() > 1e-4


def test_load_returns_float32_between_minus_one_and_one():
    corpus = make_corpus(64)
    waveforms = [corpus.load(clip, sample_rate=16_000, max_duration=10.0) for clip in corpus.clips("train")]
    assert {waveform.dtype.name for waveform in waveforms} == {"float32"}
    assert max(np.abs(waveform).max() for waveform in waveforms) <= 1


@pytest.mark.parametrize("sample_rate", [8_000, 32_000, 44_100, 48_000])
def test_scene_has_its_duration_at_every_rate(sample_rate: int):
    corpus = make_corpus(1)
    waveform = corpus.load(corpus.clips("test")[0], sample_rate=sample_rate, max_duration=10.0)
    assert len(waveform) / sample_rate == pytest.approx(corpus.scene("test", 0).duration, abs=1e-3)


def test_scene_is_the_same_at_every_rate():
    corpus = make_corpus(1)
    clip = corpus.clips("test")[0]
    at_16_khz, at_48_khz = (corpus.load(clip, sample_rate=rate, max_duration=10.0) for rate in (16_000, 48_000))
    assert rms(soxr.resample(at_48_khz, 48_000, 16_000)[: len(at_16_khz)] - at_16_khz) < 0.02 * rms(at_16_khz)


def test_longer_scene_is_cut_to_its_middle():
    corpus = make_corpus(1, min_duration=20.0, max_duration=20.0)
    clip = corpus.clips("test")[0]
    whole = corpus.load(clip, sample_rate=16_000, max_duration=20.0)
    assert_array_equal(corpus.load(clip, sample_rate=16_000, max_duration=10.0), whole[80_000:240_000])


def test_longer_scene_is_cut_at_random_with_rng():
    corpus = make_corpus(1, min_duration=20.0, max_duration=20.0)
    clip = corpus.clips("test")[0]
    cuts = [corpus.load(clip, sample_rate=16_000, max_duration=10.0, rng=np.random.default_rng(i)) for i in (0, 1)]
    assert not np.array_equal(*cuts)


@pytest.mark.parametrize(
    ("key", "value"),
    [("num_train", -1), ("num_val", -1), ("num_test", -1), ("seed", -1), ("min_duration", 1.0), ("max_duration", 2.0)],
)
def test_error_of_an_invalid_value_names_its_key(key: str, value: float):
    with pytest.raises(ValueError, match=f"dataset.{key}"):
        make_corpus(1, **{key: value})


def test_unknown_split_is_refused():
    with pytest.raises(ValueError, match="'dev' is not one of train, val, test"):
        make_corpus(1).clips("dev")
