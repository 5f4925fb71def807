"""The kinds of sound events in synthetic scenes, with their renderers and English phrases.

A renderer is a function: render(num_samples, pitch, speed, rng) -> waveform (samples,) at `RENDER_RATE`, of any scale.
`pitch` and `speed` are factors around 1. All energy is below 7 kHz, so that a 16 kHz model can distinguish all kinds.
To add a kind, write its renderer and add an entry to `SOUNDS`.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

RENDER_RATE = 16_000  # Hz; scenes are resampled from this rate, so that they are the same at every rate

Renderer = Callable[[int, float, float, np.random.Generator], np.ndarray]
Scale = tuple[tuple[str, ...], tuple[str, ...]]  # phrases for the values -1 and 1 of an attribute


@dataclass(frozen=True)
class Manner:
    """Phrases for the values of an attribute, before a noun ("a slow siren") and after a verb ("wails slowly")."""

    adjectives: Scale
    adverbs: Scale


PITCH = Manner(
    adjectives=(("low", "deep", "low-pitched"), ("high", "high-pitched")),
    adverbs=(("at a low pitch", "in a low register"), ("at a high pitch", "in a high register")),
)
PACE = Manner(
    adjectives=(("slow", "unhurried"), ("fast", "rapid", "quick")),
    adverbs=(("slowly", "at a slow pace"), ("quickly", "rapidly", "at a fast pace")),
)
LENGTH = Manner(
    adjectives=(("long", "drawn-out"), ("short", "brief")),
    adverbs=(("at length",), ("briefly",)),
)
LOUDNESS = Manner(
    adjectives=(("quiet", "soft", "faint"), ("loud", "very loud")),
    adverbs=(("quietly", "softly", "faintly"), ("loudly", "very loudly")),
)
WEATHER = Manner(
    adjectives=(("light", "gentle"), ("heavy", "strong")),
    adverbs=(("lightly", "gently"), ("heavily", "hard")),
)


@dataclass(frozen=True)
class Sound:
    """A kind of sound event.

    Args:
        form: "call" is short and may be repeated, "train" is a sequence of pulses, "texture" is continuous.
        nouns: phrases with a {} for adjectives; those of a call start with "a" and have a plural in "s".
        actions: subject and verb, singular.
        duration: seconds of one call at normal speed; unused for trains and textures.
        pitch, speed: phrases for these attributes; None if the kind does not vary in them.
    """

    render: Renderer
    form: str
    nouns: tuple[str, ...]
    actions: tuple[tuple[str, str], ...]
    duration: float = 0.0
    pitch: Manner | None = None
    speed: Manner | None = None
    loudness: Manner = LOUDNESS


def _time(num_samples: int) -> np.ndarray:
    return np.arange(num_samples, dtype=np.float32) / np.float32(RENDER_RATE)


def _tone(frequency: float | np.ndarray, num_samples: int) -> np.ndarray:
    """Sine of a constant or varying frequency in Hz."""
    if isinstance(frequency, np.ndarray):
        return np.sin(np.float32(2 * np.pi) * _phase(frequency))
    return np.sin(np.float32(2 * np.pi * frequency) * _time(num_samples))


def _phase(frequency: np.ndarray) -> np.ndarray:
    """Phase in cycles, 0 to 1, of a varying frequency in Hz."""
    cycles = np.cumsum(frequency, dtype=np.float64) / RENDER_RATE
    return (cycles - np.floor(cycles)).astype(np.float32)


def _glide(start: float, end: float, num_samples: int) -> np.ndarray:
    """Exponential sweep from one frequency to another in Hz."""
    steps = np.linspace(0, 1, num_samples, dtype=np.float32)
    return _tone(np.float32(start) * np.float32(end / start) ** steps, num_samples)


def _band_noise(num_samples: int, low: float, high: float, rng: np.random.Generator) -> np.ndarray:
    """Gaussian noise between two frequencies in Hz, drawn as a spectrum and transformed by one inverse FFT."""
    length = -(-num_samples // 4000) * 4000  # multiples of 4000 have small prime factors, which makes the FFT fast
    first, last = int(low * length / RENDER_RATE), int(high * length / RENDER_RATE) + 2
    spectrum = np.zeros(length // 2 + 1, dtype=np.complex64)
    spectrum[first:last] = rng.standard_normal(2 * (last - first), dtype=np.float32).view(np.complex64)
    return np.fft.irfft(spectrum, length)[:num_samples]


def _decay(num_samples: int, seconds: float) -> np.ndarray:
    return np.exp(_time(num_samples) / np.float32(-seconds))


def _thump(frequency: float, seconds: float) -> np.ndarray:
    """A decaying sine, like the sound of a struck body."""
    num_samples = int(5 * seconds * RENDER_RATE)
    return _tone(frequency, num_samples) * _decay(num_samples, seconds)


def _overlay_grains(num_samples: int, starts: np.ndarray, grains: list[np.ndarray]) -> np.ndarray:
    """Sum of grains, used cyclically, at the start times in seconds; truncated at the end."""
    waveform = np.zeros(num_samples, dtype=np.float32)
    for i, first in enumerate((starts * RENDER_RATE).astype(int)):
        grain = grains[i % len(grains)][: num_samples - first]
        waveform[first : first + len(grain)] += grain
    return waveform


def _regular_starts(num_samples: int, rate: float) -> np.ndarray:
    """Regular start times in seconds at `rate` per second, after the fade-in of the event."""
    return np.arange(0.02, num_samples / RENDER_RATE, 1 / rate)


def _random_starts(num_samples: int, rate: float, rng: np.random.Generator) -> np.ndarray:
    """Random start times in seconds, `rate` per second on average."""
    duration = num_samples / RENDER_RATE
    return rng.random(max(1, round(rate * duration))) * duration


def _beep(num_samples: int, pitch: float, speed: float, rng: np.random.Generator) -> np.ndarray:
    return _tone(700 * pitch, num_samples)


def _rising_chirp(num_samples: int, pitch: float, speed: float, rng: np.random.Generator) -> np.ndarray:
    return _glide(500 * pitch, 1500 * pitch, num_samples)


def _falling_chirp(num_samples: int, pitch: float, speed: float, rng: np.random.Generator) -> np.ndarray:
    return _glide(1500 * pitch, 500 * pitch, num_samples)


def _siren(num_samples: int, pitch: float, speed: float, rng: np.random.Generator) -> np.ndarray:
    sway = _tone(1.1 * speed, num_samples)
    return _tone(900 * pitch * np.float32(1.4) ** sway, num_samples)


def _alarm(num_samples: int, pitch: float, speed: float, rng: np.random.Generator) -> np.ndarray:
    """Two alternating tones with a third harmonic, as in a square wave."""
    is_upper = (_time(num_samples) * np.float32(4 * speed)) % 1.0 >= 0.5
    angle = np.float32(2 * np.pi) * _phase(np.where(is_upper, np.float32(1000 * pitch), np.float32(700 * pitch)))
    return np.sin(angle) + np.sin(3 * angle) / 3


def _telephone(num_samples: int, pitch: float, speed: float, rng: np.random.Generator) -> np.ndarray:
    """Two tones, amplitude-modulated at 20 Hz as by a clapper."""
    clapper = 0.55 + 0.45 * np.sign(_tone(20, num_samples))
    return clapper * (_tone(1000 * pitch, num_samples) + _tone(1600 * pitch, num_samples))


def _bird(num_samples: int, pitch: float, speed: float, rng: np.random.Generator) -> np.ndarray:
    shake = _tone(12 * speed, num_samples)
    return (0.6 - 0.4 * shake) * _tone(2600 * pitch * (1 + 0.12 * shake), num_samples)


def _bell(num_samples: int, pitch: float, speed: float, rng: np.random.Generator) -> np.ndarray:
    """Inharmonic partials; higher ones decay faster."""
    partials = (1.0, 2.0, 2.76, 4.07, 5.4)
    return sum(_tone(420 * pitch * k, num_samples) * _decay(num_samples, 0.45 / k**0.7) for k in partials)


def _horn(num_samples: int, pitch: float, speed: float, rng: np.random.Generator) -> np.ndarray:
    """Two harmonic notes, a third apart."""
    notes = (220 * pitch, 277 * pitch)
    return sum(_tone(note * k, num_samples) / k**0.5 for note in notes for k in range(1, 7))


def _frog(num_samples: int, pitch: float, speed: float, rng: np.random.Generator) -> np.ndarray:
    return _overlay_grains(num_samples, _regular_starts(num_samples, 32), [_thump(600 * pitch, 0.006)])


def _burst(num_samples: int, pitch: float, speed: float, rng: np.random.Generator) -> np.ndarray:
    return _band_noise(num_samples, 200, 6500, rng) * _decay(num_samples, num_samples / RENDER_RATE / 3)


def _knocking(num_samples: int, pitch: float, speed: float, rng: np.random.Generator) -> np.ndarray:
    knock = _thump(260 * pitch, 0.02)
    knock[:80] += 0.3 * _thump(1500 * pitch, 0.001)  # knuckles: a click of 5 ms
    return _overlay_grains(num_samples, _regular_starts(num_samples, 3 * speed), [knock])


def _clock(num_samples: int, pitch: float, speed: float, rng: np.random.Generator) -> np.ndarray:
    """Tick and tock, the second slightly lower."""
    tick, tock = _thump(2800 * pitch, 0.004), _thump(2240 * pitch, 0.004)
    return _overlay_grains(num_samples, _regular_starts(num_samples, 2.5 * speed), [tick, tock])


def _heartbeat(num_samples: int, pitch: float, speed: float, rng: np.random.Generator) -> np.ndarray:
    first = _regular_starts(num_samples, 1.3 * speed)
    second = first + 0.2 / speed
    starts = np.stack([first, second], axis=1).ravel()
    return _overlay_grains(
        num_samples, starts[starts < num_samples / RENDER_RATE], [_thump(85, 0.03), 0.7 * _thump(70, 0.03)]
    )


def _drum_roll(num_samples: int, pitch: float, speed: float, rng: np.random.Generator) -> np.ndarray:
    drum = _thump(170 * pitch, 0.02)
    rattle = _band_noise(3 * len(drum), 200, 5000, rng).reshape(3, -1) * (20 * _decay(len(drum), 0.012))
    hits = list(drum + rattle)
    return _overlay_grains(num_samples, _regular_starts(num_samples, 13 * speed), hits)


def _crickets(num_samples: int, pitch: float, speed: float, rng: np.random.Generator) -> np.ndarray:
    """Groups of three short pulses at 4.5 kHz."""
    pulse = _tone(4500, 320) * np.hanning(320).astype(np.float32)
    group = np.concatenate([pulse, np.zeros(240, dtype=np.float32)] * 3)
    return _overlay_grains(num_samples, _regular_starts(num_samples, 2.6 * speed), [group])


def _sawing(num_samples: int, pitch: float, speed: float, rng: np.random.Generator) -> np.ndarray:
    """Noise modulated by strokes; backward strokes are fainter."""
    stroke = _tone(1.2 * speed, num_samples)
    return _band_noise(num_samples, 1200 * pitch, 2600 * pitch, rng) * np.where(stroke > 0, stroke, -0.4 * stroke) ** 2


def _engine(num_samples: int, pitch: float, speed: float, rng: np.random.Generator) -> np.ndarray:
    """One pulse per cycle: many harmonics of a low, slightly varying fundamental."""
    frequency = 80 * pitch * (1 + 0.03 * _tone(1.3, num_samples))
    phase = _phase(frequency)
    return phase * np.exp(-12 * phase) - np.float32(1 / 144)  # 1 / 144 is the mean of the pulse


def _wind(num_samples: int, pitch: float, speed: float, rng: np.random.Generator) -> np.ndarray:
    gusts = 0.6 + 0.4 * np.sin(2 * np.pi * (0.45 * _time(num_samples) + np.float32(rng.random())))
    return _band_noise(num_samples, 220 * pitch, 480 * pitch, rng) * gusts


def _rain(num_samples: int, pitch: float, speed: float, rng: np.random.Generator) -> np.ndarray:
    """Noise above 1.5 kHz with single drops."""
    noise = _band_noise(num_samples, 1500, 6800, rng)
    drops = [_thump(frequency, 0.002) for frequency in (2000, 2700, 3500)]
    return noise / noise.std() + 4 * _overlay_grains(num_samples, _random_starts(num_samples, 40, rng), drops)


def _steam(num_samples: int, pitch: float, speed: float, rng: np.random.Generator) -> np.ndarray:
    return _band_noise(num_samples, 2500 * pitch, 3100 * pitch, rng)


def _bubbling(num_samples: int, pitch: float, speed: float, rng: np.random.Generator) -> np.ndarray:
    """Short rising sweeps, like bubbles, at random times."""
    window = np.hanning(900).astype(np.float32)
    blips = [_glide(start * pitch, 2 * start * pitch, 900) * window for start in (300, 370, 450, 550)]
    return _overlay_grains(num_samples, _random_starts(num_samples, 11 * speed, rng), blips)


# fmt: off
SOUNDS: dict[str, Sound] = {
    "beep": Sound(
        _beep, "call", ("a {}beep", "a {}bleep", "a {}electronic beep"),
        (("a machine", "beeps"), ("a device", "bleeps")), duration=0.5, pitch=PITCH, speed=LENGTH,
    ),
    "rising chirp": Sound(
        _rising_chirp, "call", ("a {}rising chirp", "a {}upward chirp", "a {}rising whistle"),
        (("a whistle", "slides up"), ("a chirp", "rises")), duration=0.6, pitch=PITCH, speed=PACE,
    ),
    "falling chirp": Sound(
        _falling_chirp, "call", ("a {}falling chirp", "a {}downward chirp", "a {}falling whistle"),
        (("a whistle", "slides down"), ("a chirp", "falls")), duration=0.6, pitch=PITCH, speed=PACE,
    ),
    "siren": Sound(
        _siren, "train", ("a {}siren", "a {}wailing siren", "the {}wail of a siren"),
        (("a siren", "wails"), ("an emergency siren", "wails")), pitch=PITCH, speed=PACE,
    ),
    "alarm": Sound(
        _alarm, "train", ("a {}alarm", "a {}two-tone alarm", "the {}ringing of an alarm"),
        (("an alarm", "goes off"), ("a two-tone alarm", "rings")), pitch=PITCH, speed=PACE,
    ),
    "telephone ring": Sound(
        _telephone, "call", ("a {}telephone ring", "a {}phone ring"),
        (("a telephone", "rings"), ("a phone", "rings")), duration=0.8, pitch=PITCH, speed=LENGTH,
    ),
    "bird trill": Sound(
        _bird, "call", ("a {}bird trill", "a {}bird call", "a {}warbling bird call"),
        (("a bird", "trills"), ("a bird", "warbles")), duration=0.7, pitch=PITCH, speed=PACE,
    ),
    "bell": Sound(
        _bell, "call", ("a {}bell", "a {}bell chime", "a {}metal bell"),
        (("a bell", "chimes"), ("a bell", "tolls"), ("someone", "strikes a bell")), duration=1.1, pitch=PITCH,
    ),
    "horn": Sound(
        _horn, "call", ("a {}horn blast", "a {}car horn", "a {}honk"),
        (("a car", "honks"), ("a horn", "blows")), duration=0.7, pitch=PITCH, speed=LENGTH,
    ),
    "frog croak": Sound(
        _frog, "call", ("a {}frog croak", "a {}croak"),
        (("a frog", "croaks"), ("a toad", "croaks")), duration=0.5, pitch=PITCH, speed=LENGTH,
    ),
    "noise burst": Sound(
        _burst, "call", ("a {}noise burst", "a {}burst", "a {}bang"),
        (("something", "crashes"), ("something", "bangs")), duration=0.5, speed=LENGTH,
    ),
    "knocking": Sound(
        _knocking, "train", ("{}knocking", "{}knocking on a door", "a {}series of knocks"),
        (("someone", "knocks on a door"), ("somebody", "knocks on wood")), pitch=PITCH, speed=PACE,
    ),
    "clock ticking": Sound(
        _clock, "train", ("{}clock ticking", "a {}ticking clock", "the {}ticking of a clock"),
        (("a clock", "ticks"), ("a watch", "ticks")), pitch=PITCH, speed=PACE,
    ),
    "heartbeat": Sound(
        _heartbeat, "train", ("a {}heartbeat", "a {}beating heart"),
        (("a heart", "beats"), ("a heart", "thumps")), speed=PACE,
    ),
    "drum roll": Sound(
        _drum_roll, "train", ("a {}drum roll", "{}drumming"),
        (("a drummer", "plays a roll"), ("a drum", "rolls")), pitch=PITCH, speed=PACE,
    ),
    "crickets": Sound(
        _crickets, "train", ("a {}cricket", "the {}song of crickets", "{}cricket song"),
        (("a cricket", "sings"), ("a cricket", "chirps")), speed=PACE,
    ),
    "sawing": Sound(
        _sawing, "train", ("{}sawing", "the {}sawing of wood", "a {}handsaw"),
        (("someone", "saws wood"), ("a handsaw", "cuts wood")), pitch=PITCH, speed=PACE,
    ),
    "engine": Sound(
        _engine, "texture", ("a {}engine", "a {}engine hum", "the {}hum of a motor"),
        (("an engine", "runs"), ("a motor", "hums")), pitch=PITCH,
    ),
    "wind": Sound(
        _wind, "texture", ("{}wind", "a {}wind", "the {}howling of wind"),
        (("wind", "blows"), ("the wind", "howls")), pitch=PITCH, loudness=WEATHER,
    ),
    "rain": Sound(
        _rain, "texture", ("{}rain", "{}rainfall", "the {}patter of rain"),
        (("rain", "falls"), ("rain", "comes down")), loudness=WEATHER,
    ),
    "steam": Sound(
        _steam, "texture", ("{}steam", "a {}hiss of steam", "{}hissing steam"),
        (("steam", "hisses"), ("a valve", "hisses")), pitch=PITCH,
    ),
    "bubbling": Sound(
        _bubbling, "texture", ("{}bubbling", "{}bubbling water", "the {}gurgling of water"),
        (("water", "bubbles"), ("water", "gurgles")), pitch=PITCH, speed=PACE,
    ),
}
# fmt: on
