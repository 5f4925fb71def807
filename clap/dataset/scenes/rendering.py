"""Renders the plan of a scene to a waveform."""

import numpy as np

from clap.dataset.scenes.phrases import Event, Scene
from clap.dataset.scenes.sounds import RENDER_RATE, SOUNDS

GAP = 0.3  # seconds between repeated calls
# Factors of the attribute values -1 and 1; captions do not mention 0. Pitch differs by an octave, loudness by 9.5 dB.
PITCHES = {-1: 0.5, 0: 1.0, 1: 2.0}
SPEEDS = {-1: 0.6, 0: 1.0, 1: 1.7}
LEVELS = {-1: 0.02, 0: 0.06, 1: 0.18}  # RMS of the active parts
NOISE_FLOOR = (0.0003, 0.002)  # RMS of the background noise, at least 20 dB below a quiet event


def render_scene(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """Waveform of a scene over a faint noise floor, float32 (samples,) at `RENDER_RATE`."""
    num_samples = round(scene.duration * RENDER_RATE)
    level = NOISE_FLOOR[0] * (NOISE_FLOOR[1] / NOISE_FLOOR[0]) ** rng.random()
    noise = rng.random(num_samples + 1, dtype=np.float32) - np.float32(0.5)
    waveform = (noise[1:] + noise[:-1]) * np.float32(level * 6**0.5)  # the standard deviation of the sum is 1 / sqrt(6)
    for event in scene.events:
        sound = render_event(event, rng)
        first = round(event.start * RENDER_RATE)
        waveform[first : first + len(sound)] += sound[: num_samples - first]
    return waveform


def render_event(event: Event, rng: np.random.Generator) -> np.ndarray:
    """Waveform of an event with all its calls, float32 (samples,) at `RENDER_RATE`."""
    gap = round(GAP * RENDER_RATE)
    num_samples = (round(event.duration * RENDER_RATE) - (event.count - 1) * gap) // event.count
    pitch = PITCHES[event.pitch] * uniform(rng, 0.93, 1.07)
    speed = SPEEDS[event.speed] * uniform(rng, 0.93, 1.07)
    level = LEVELS[event.loudness] * uniform(rng, 0.85, 1.15)
    call = SOUNDS[event.kind].render(num_samples, pitch, speed, rng).astype(np.float32, copy=False)
    call = call * np.float32(level / _active_level(call)) * _envelope(num_samples, event.trend)
    return np.concatenate([call, *[np.zeros(gap, dtype=np.float32), call] * (event.count - 1)])


def _active_level(waveform: np.ndarray) -> float:
    """RMS of the active parts, so that pauses between ticks do not make the ticks louder."""
    power = waveform**2
    return float(np.sqrt(power[power > 0.01 * power.max()].mean()))


def _envelope(num_samples: int, trend: int) -> np.ndarray:
    """Short fades at both ends, and a ramp up (trend 1) or down (-1) over the whole event."""
    ramp = np.linspace(0.05, 1, num_samples, dtype=np.float32)[:: trend or 1]
    envelope = ramp if trend else np.ones(num_samples, dtype=np.float32)
    edge = np.linspace(0, 1, min(160, num_samples // 2), dtype=np.float32)  # 10 ms
    envelope[: len(edge)] *= edge
    envelope[num_samples - len(edge) :] *= edge[::-1]
    return envelope


def uniform(rng: np.random.Generator, low: float, high: float) -> float:
    return low + (high - low) * rng.random()
