"""Synthetic soundscapes: scenes of one to three sound events, planned, captioned and rendered on the fly.

A scene is a function of (seed, split, index) only. `planning.py` draws its events, `phrases.py` writes captions, and
`load` renders it; every fact in a caption is audible. The kinds of sound are in `sounds.py`.
"""

import numpy as np
import soxr

from clap.corpus import SPLITS, Clip, Corpus
from clap.dataset.scenes.phrases import Scene, write_captions
from clap.dataset.scenes.planning import SHORTEST_SCENE, plan_scene
from clap.dataset.scenes.rendering import render_scene
from clap.dataset.scenes.sounds import RENDER_RATE
from clap.waveform import AudioHeader, choose_part


class Synthetic(Corpus):
    """Corpus of synthetic soundscapes; a scene does not depend on the sizes of the splits.

    Args:
        seed: seed of the scenes, independent of the seed of the run.
        min_duration, max_duration: bounds of the duration of a scene, seconds.

    Raises:
        ValueError: a size, duration or seed is out of range.
    """

    name = "synthetic"

    def __init__(
        self,
        *,
        num_train: int,
        num_val: int,
        num_test: int,
        seed: int = 0,
        min_duration: float = SHORTEST_SCENE,
        max_duration: float = 10.0,
    ):
        for key, value in {"num_train": num_train, "num_val": num_val, "num_test": num_test, "seed": seed}.items():
            if value < 0:
                raise ValueError(f"{key}={value} is negative; set dataset.{key} to 0 or more")
        if min_duration < SHORTEST_SCENE:
            raise ValueError(
                f"min_duration={min_duration} s is below {SHORTEST_SCENE} s, too short for two events; "
                "set dataset.min_duration"
            )
        if max_duration < min_duration:
            raise ValueError(
                f"max_duration={max_duration} s is below min_duration={min_duration} s; set dataset.max_duration"
            )
        self.num_clips = {"train": num_train, "val": num_val, "test": num_test}
        self.seed = seed
        self.min_duration = min_duration
        self.max_duration = max_duration

    def clips(self, split: str) -> list[Clip]:
        """The clips of a split with five captions each; a scene with a single event has its kind as label."""
        if split not in self.num_clips:
            raise ValueError(f"split={split!r} is not one of {', '.join(SPLITS)}; set split")
        return [self._clip(split, i) for i in range(self.num_clips[split])]

    def load(
        self, clip: Clip, *, sample_rate: int, max_duration: float | None, rng: np.random.Generator | None = None
    ) -> np.ndarray:
        """Render a clip: float32 (samples,) in [-1, 1]; a longer scene is cut to its middle, or randomly with `rng`."""
        split, index = clip.id.rsplit("-", maxsplit=1)
        waveform = render_scene(self.scene(split, int(index)), self._generator(split, int(index), purpose=1))
        start, count = choose_part(len(waveform), RENDER_RATE, max_duration, rng)
        waveform = waveform[start : start + count]
        if sample_rate != RENDER_RATE:
            waveform = soxr.resample(waveform, RENDER_RATE, sample_rate)
        return np.clip(waveform, -1, 1)

    def read_header(self, clip: Clip) -> AudioHeader:
        """Rate and length of a scene; it has no file, so its size is 0."""
        split, index = clip.id.rsplit("-", maxsplit=1)
        return AudioHeader(RENDER_RATE, round(self.scene(split, int(index)).duration * RENDER_RATE), num_bytes=0)

    def identify(self, clip: Clip) -> str:
        """The arguments that determine a scene."""
        return f"{type(self).__qualname__} {self.seed} {self.min_duration} {self.max_duration} {clip.id}"

    def scene(self, split: str, index: int) -> Scene:
        """The plan of a scene, without rendering it."""
        return plan_scene(self._generator(split, index, purpose=0), self.min_duration, self.max_duration)

    def _clip(self, split: str, index: int) -> Clip:
        rng = self._generator(split, index, purpose=0)
        scene = plan_scene(rng, self.min_duration, self.max_duration)
        label = scene.events[0].kind if len(scene.events) == 1 else None
        return Clip(id=f"{split}-{index:05d}", captions=write_captions(scene, rng), label=label)

    def _generator(self, split: str, index: int, *, purpose: int) -> np.random.Generator:
        """Random generator of a scene: purpose 0 is for plan and captions, 1 for rendering."""
        return np.random.default_rng([self.seed, SPLITS.index(split), index, purpose])
