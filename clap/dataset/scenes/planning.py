"""Draws the plans of scenes: their events and times."""

from dataclasses import replace

import numpy as np

from clap.dataset.scenes.phrases import PLACES, Event, Scene, pick, pick_several
from clap.dataset.scenes.rendering import GAP, SPEEDS, uniform
from clap.dataset.scenes.sounds import SOUNDS

SHORTEST_SCENE = 3.0  # seconds; enough for two consecutive events of a second or more
ROOM_FOR_THREE = 6.0  # seconds; shorter scenes have one or two events
LONGEST_EVENT = 4.0  # seconds; a background may last as long as LONGEST_CLUSTER
LONGEST_CLUSTER = 6.0  # seconds, of a background and the events over it
MARGIN = 0.1  # seconds of silence before and after an event
ROOM_FOR_PLACE = 1.5  # seconds of free time from which captions state the place of a lone event
BACKGROUNDS = tuple(kind for kind, sound in SOUNDS.items() if sound.form == "texture")
FOREGROUNDS = tuple(kind for kind, sound in SOUNDS.items() if sound.form != "texture")
SHORT_STRUCTURES = ("two", "one over")
LONG_STRUCTURES = ("two", "one over", "three", "two over")


def plan_scene(rng: np.random.Generator, min_duration: float, max_duration: float) -> Scene:
    """Draw a scene: 30 % have one event, the others two, or three if the scene is long enough."""
    duration = uniform(rng, min_duration, max_duration)
    if rng.random() < 0.3:
        return plan_lone_event(rng, pick(rng, tuple(SOUNDS)), duration)
    structure = pick(rng, LONG_STRUCTURES if duration >= ROOM_FOR_THREE else SHORT_STRUCTURES)
    if structure in ("two", "three"):
        kinds = pick_several(rng, tuple(SOUNDS), 2 if structure == "two" else 3)
        return Scene(structure, "", _draw_sequence(rng, kinds, 0.0, duration, lowest=-1), duration)
    span = min(duration - 2 * MARGIN, uniform(rng, 0.7 * LONGEST_CLUSTER, LONGEST_CLUSTER))
    start = uniform(rng, MARGIN, duration - MARGIN - span)
    kinds = pick_several(rng, FOREGROUNDS, 1 if structure == "one over" else 2)
    over = _draw_sequence(rng, kinds, start + 0.1 * span, 0.8 * span, lowest=0)
    background = _draw_event(rng, pick(rng, BACKGROUNDS), span, chance=0.45, levels=(-1, 0), longest=span)
    return Scene(structure, "", (*over, replace(background, start=start)), duration)


def plan_lone_event(rng: np.random.Generator, kind: str, duration: float) -> Scene:
    """Draw a scene with one event; captions state its place if there is enough free time."""
    room = duration - 2 * MARGIN
    event = _draw_event(rng, kind, room, chance=0.67, levels=(-1, 0, 1), longest=uniform(rng, 2.0, LONGEST_EVENT))
    free = room - event.duration
    if free < ROOM_FOR_PLACE:
        return Scene("one", "", (replace(event, start=MARGIN + free * rng.random()),), duration)
    place = pick(rng, tuple(PLACES))
    start = MARGIN + free * uniform(rng, *PLACES[place][0])
    return Scene("one, placed", place, (replace(event, start=start),), duration)


def _draw_sequence(
    rng: np.random.Generator, kinds: tuple[str, ...], first: float, span: float, *, lowest: int
) -> tuple[Event, ...]:
    """Draw consecutive events, each at random in its share of the span; loudness is at least `lowest`."""
    levels = tuple(range(lowest, 2))
    room = span / len(kinds) - 2 * MARGIN
    events = []
    for i, kind in enumerate(kinds):
        event = _draw_event(rng, kind, room, chance=0.45, levels=levels, longest=LONGEST_EVENT)
        start = first + i * span / len(kinds) + MARGIN + (room - event.duration) * rng.random()
        events.append(replace(event, start=start))
    return tuple(events)


def _draw_event(
    rng: np.random.Generator, kind: str, room: float, *, chance: float, levels: tuple[int, ...], longest: float
) -> Event:
    """Draw an event of at most `room` seconds; `chance` is the probability that an attribute is not 0."""
    sound = SOUNDS[kind]
    pitch = pick(rng, (-1, 1)) if sound.pitch and rng.random() < chance else 0
    speed = pick(rng, (-1, 1)) if sound.speed and rng.random() < chance else 0
    loudness = pick(rng, levels)
    trend = pick(rng, (-1, 1)) if sound.form == "texture" and rng.random() < chance else 0
    if sound.form != "call":
        return Event(kind, pitch, speed, loudness, trend, 1, min(room, longest))
    call = min(room, sound.duration / SPEEDS[speed])
    count = pick(rng, tuple(range(1, 1 + min(3, int((room + GAP) / (call + GAP))))))
    return Event(kind, pitch, speed, loudness, trend, count, count * call + (count - 1) * GAP)
