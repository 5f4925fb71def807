"""AudioCaps (Kim et al. 2019), lists v1 and v2: {train,val,test}.csv and audio/{train,val,test}/."""

import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from clap.corpus import Clip, Corpus, check_split
from clap.dataset.csv import read_csv
from clap.dataset.index import (
    check_has_letters,
    check_number,
    check_unique,
    find_index,
    list_audio,
    require_root,
    shorten_repr,
)

COLUMNS = ("audiocap_id", "youtube_id", "start_time", "caption")
COUNTS = {  # clips; of v2's train list the captions are published, 91,256
    "v1": {"train": 49_838, "val": 495, "test": 975},
    "v2": {"train": None, "val": 495, "test": 975},
}
NUM_CAPTIONS = 5  # of each clip in val and test


class AudioCaps(Corpus):
    """Ten-second clips of YouTube videos; one clip for each video and start, with five captions in val and test.

    A recording bears any of the names that downloaders give it, with any suffix: `YOUTUBEID_START` (aac-datasets),
    `YYOUTUBEID` (AudioSet copies and WavCaps), `YOUTUBEID`, or the `audiocap_id` of one of its captions. A name without
    a start counts only where the list has one clip of its video.

    Args:
        root: folder that holds train.csv, val.csv, test.csv and audio/train/, audio/val/, audio/test/.
        version: v1 or v2, which says how many clips there should be.

    Raises:
        FileNotFoundError: root, or a split's list, is missing. ValueError: a row is wrong; it names file and line.
    """

    name, title = "audiocaps", "AudioCaps"
    source = "github.com/cdjkim/audiocaps"
    licence = "lists: MIT, for academic use; audio: of its YouTube videos"
    citation = "C. D. Kim, B. Kim, H. Lee, G. Kim. AudioCaps: Generating captions for audios in the wild. NAACL 2019."

    def __init__(self, root: str | Path, *, version: str = "v1", max_duration: float = 10.0) -> None:
        if version not in COUNTS:
            raise ValueError(f"version={version!r} is not one of {', '.join(COUNTS)}; set dataset.version")
        self.root, self.version, self.max_duration = Path(root), version, max_duration
        require_root(self)

    @property
    def counts(self) -> dict[str, int | None]:
        return COUNTS[self.version]

    def clips(self, split: str) -> list[Clip]:
        check_split(split)
        captions, numbers = self.read_list(split)
        folder = self.root / "audio" / split
        audio, starts = list_audio(folder), Counter(video for video, _ in captions)
        clips = []
        for (video, start), texts in captions.items():
            alone = (f"Y{video}", video) if starts[video] == 1 else ()
            names = (f"{video}_{start}", *alone, *numbers[video, start])
            path = next((audio[name] for name in names if name in audio), folder / f"{video}_{start}.wav")
            clips.append(Clip(f"{video}_{start}", tuple(texts), path, source=f"youtube:{video}@{start}"))
        return clips

    def read_list(self, split: str) -> tuple[dict[tuple[str, int], list[str]], dict[tuple[str, int], list[str]]]:
        """Captions and audiocap_ids of each (youtube_id, start in seconds), in the order of the list."""
        path = find_index(self, f"{split}.csv")
        captions: dict[tuple[str, int], list[str]] = {}
        numbers: dict[tuple[str, int], list[str]] = {}
        first: dict[str, str] = {}
        places: dict[tuple[str, int], str] = {}
        for where, row in read_csv(path, COLUMNS):
            number, clip = read_ids(row, where)
            check_unique(first, number, "audiocap_id", where)
            captions.setdefault(clip, []).append(check_has_letters(row, "caption", where))
            numbers.setdefault(clip, []).append(number)
            places.setdefault(clip, where)
        if split != "train":
            check_num_captions(captions, places)
        return captions, numbers


def read_ids(row: Mapping[str, str], where: str) -> tuple[str, tuple[str, int]]:
    """audiocap_id, and youtube_id with start_time in whole seconds."""
    number, video, start = (row[column].strip() for column in COLUMNS[:3])
    check_number(number, "audiocap_id", where)
    if not re.fullmatch(r"[A-Za-z0-9_-]{11}", video):
        raise ValueError(f"{where}: youtube_id={shorten_repr(video)} is not eleven letters, digits, - or _")
    if not re.fullmatch(r"[0-9]{1,6}", start):
        raise ValueError(f"{where}: start_time={shorten_repr(start)} is no whole number of seconds")
    return number, (video, int(start))


def check_num_captions(captions: Mapping[tuple[str, int], list[str]], places: Mapping[tuple[str, int], str]) -> None:
    """Refuse a clip of val or test with more or fewer captions; of two, that with fewer is where the wrong row is."""
    wrong = [clip for clip, texts in captions.items() if len(texts) != NUM_CAPTIONS]
    if wrong:
        clip = min(wrong, key=lambda clip: len(captions[clip]))
        raise ValueError(
            f"{places[clip]}: the clip {clip[0]} from {clip[1]} s has {len(captions[clip])} captions, but "
            f"{NUM_CAPTIONS} are published; mend its id or start, or take the published list"
        )
