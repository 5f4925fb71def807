"""Events and scenes, and the English captions that describe them, five per scene.

The words for each kind of sound are in `sounds.py`; this module has sentence frames, counts, places and trends.
"""

import re
from dataclasses import dataclass

import numpy as np

from clap.dataset.scenes.sounds import SOUNDS, Manner

NUM_CAPTIONS = 5

COUNTS = {2: ("twice", "two times"), 3: ("three times",)}
NUMBERS = {2: ("two", "a pair of"), 3: ("three",)}
TRENDS = {-1: ("fades away", "dies down"), 1: ("grows louder", "gets louder")}
TRENDING = {-1: ("fading away", "dying down"), 1: ("growing louder", "getting louder")}
PLACES = {  # share of the free time before the event, and its phrases
    "beginning": ((0.0, 0.1), ("at the beginning", "at the start")),
    "middle": ((0.45, 0.55), ("in the middle", "halfway through")),
    "end": ((0.9, 1.0), ("at the end", "near the end")),
}

# Sentence frames by structure; each caption of a scene uses another one. The background, if any, is the last event.
FRAMES = {
    "one": (
        "{0:clause}",
        "{0:noun}",
        "the sound of {0:noun}",
        "we hear {0:noun}",
        "the recording contains {0:noun}",
        "one can hear {0:noun}",
    ),
    "one, placed": (
        "{0:clause} {place}",
        "{place}, {0:clause}",
        "{0:noun} {place}",
        "we hear {0:noun} {place}",
        "{place}, one can hear {0:noun}",
        "{place} comes the sound of {0:noun}",
    ),
    "two": (
        "{0:clause}, then {1:clause}",
        "first {0:clause}, and then {1:clause}",
        "{0:noun}, then {1:noun}",
        "{0:noun} followed by {1:noun}",
        "{0:clause} before {1:clause}",
        "after {0:noun}, {1:clause}",
        "{1:clause} after {0:noun}",
        "{0:clause}, followed by {1:noun}",
    ),
    "three": (
        "{0:clause}, then {1:clause}, and then {2:clause}",
        "first {0:clause}, then {1:clause}, and finally {2:clause}",
        "{0:noun}, then {1:noun} and then {2:noun}",
        "{0:noun}, followed by {1:noun} and finally {2:noun}",
        "after {0:noun} and then {1:noun}, {2:clause}",
        "{0:clause} before {1:clause}, followed by {2:noun}",
    ),
    "one over": (
        "{0:clause} while {1:clause}",
        "while {1:clause}, {0:clause}",
        "{0:noun} over {1:noun}",
        "{0:noun} with {1:noun} in the background",
        "as {1:clause}, {0:clause}",
        "{1:clause} as {0:clause}",
    ),
    "two over": (
        "{0:clause}, then {1:clause}, while {2:clause}",
        "while {2:clause}, {0:clause} and then {1:clause}",
        "{0:noun} and then {1:noun} over {2:noun}",
        "{0:noun} followed by {1:noun}, with {2:noun} in the background",
        "as {2:clause}, {0:clause} before {1:clause}",
        "over {2:noun}, first {0:clause} and then {1:clause}",
    ),
}


@dataclass(frozen=True)
class Event:
    """A sound event of a scene. Pitch, speed and loudness are -1, 0 or 1.

    Args:
        trend: whether a texture fades away (-1), is constant (0) or grows louder (1).
        count: number of calls.
        duration: seconds, of all calls together.
    """

    kind: str
    pitch: int
    speed: int
    loudness: int
    trend: int
    count: int
    duration: float
    start: float = 0.0


@dataclass(frozen=True)
class Scene:
    """The plan of a clip: a key of `FRAMES`, a key of `PLACES` or "", and the events with their times."""

    structure: str
    place: str
    events: tuple[Event, ...]
    duration: float

    @property
    def facts(self) -> tuple:
        """Everything that each caption says; scenes with equal facts cannot be distinguished by text."""
        events = tuple((e.kind, e.pitch, e.speed, e.loudness, e.trend, e.count) for e in self.events)
        return self.structure, self.place, events


def write_captions(scene: Scene, rng: np.random.Generator) -> tuple[str, ...]:
    """Five captions of a scene with the same facts in different sentence frames."""
    phrases = [_Phrase(event, rng) for event in scene.events]
    frames = pick_several(rng, FRAMES[scene.structure], NUM_CAPTIONS)
    return tuple(
        _format_sentence(frame.format(*phrases, place=_draw_place_phrase(scene.place, rng))) for frame in frames
    )


def _draw_place_phrase(place: str, rng: np.random.Generator) -> str:
    return pick(rng, PLACES[place][1]) if place else ""


def _format_sentence(text: str) -> str:
    """Format a sentence: "an" before vowels, a capital letter, a full stop."""
    text = re.sub(r"\ba (?=[aeiou])", "an ", text)
    return text[0].upper() + text[1:] + "."


class _Phrase:
    """An event in a frame: {0:clause} draws a clause about it, {0:noun} a noun phrase."""

    def __init__(self, event: Event, rng: np.random.Generator):
        self.event = event
        self.sound = SOUNDS[event.kind]
        self.rng = rng

    def __format__(self, form: str) -> str:
        if form == "noun":
            return self._noun() + self._trend(TRENDING, " ")
        return self._action() if self.rng.random() < 0.6 else self._passive()

    def _noun(self) -> str:
        """Such as: a quiet, low beep; two quiet, low beeps."""
        adjectives = ", ".join(
            self._word(manner.adjectives, value) for manner, value in self._manners() if manner and value
        )
        noun = pick(self.rng, self.sound.nouns)
        if self.event.count > 1:
            noun = noun.replace("a ", pick(self.rng, NUMBERS[self.event.count]) + " ", 1) + "s"
        return noun.format(adjectives + " " if adjectives else "")

    def _action(self) -> str:
        """Such as: a machine beeps quietly twice at a low pitch."""
        loudness, speed, pitch = (
            self._word(manner.adverbs, value) if manner and value else "" for manner, value in self._manners()
        )
        count = pick(self.rng, COUNTS[self.event.count]) if self.event.count > 1 else ""
        manner = f"{loudness} and {speed}" if loudness and speed else loudness or speed
        words = (*pick(self.rng, self.sound.actions), manner, count, pitch)
        return " ".join(word for word in words if word) + self._trend(TRENDS, " and ")

    def _passive(self) -> str:
        """Such as: two quiet, low beeps are heard."""
        verb = pick(self.rng, ("are heard", "can be heard") if self.event.count > 1 else ("is heard", "can be heard"))
        return f"{self._noun()} {verb}" + self._trend(TRENDING, " ")

    def _manners(self) -> tuple[tuple[Manner | None, int], ...]:
        event, sound = self.event, self.sound
        return (sound.loudness, event.loudness), (sound.speed, event.speed), (sound.pitch, event.pitch)

    def _word(self, scale: tuple[tuple[str, ...], tuple[str, ...]], value: int) -> str:
        return pick(self.rng, scale[value > 0])

    def _trend(self, words: dict[int, tuple[str, ...]], joint: str) -> str:
        return joint + pick(self.rng, words[self.event.trend]) if self.event.trend else ""


def pick(rng: np.random.Generator, options: tuple):
    """Draw one of the options; `rng.choice` is twenty times slower, and start-up draws thousands of scenes."""
    return options[int(rng.random() * len(options))]


def pick_several(rng: np.random.Generator, options: tuple, count: int) -> tuple:
    """Draw `count` options without replacement, in random order."""
    rest = list(options)
    return tuple(rest.pop(int(rng.random() * len(rest))) for _ in range(count))
