"""AudioCaps (Kim et al. 2019), with the published lists v1 or v2."""

import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from clap.corpus import Clip, Corpus, check_split
from clap.dataset.index import (
    check_has_letters,
    check_number,
    check_unique,
    find_index,
    list_audio,
    require_root,
    shorten_repr,
)
from clap.dataset.index_file import read_csv

COLUMNS = ("audiocap_id", "youtube_id", "start_time", "caption")
COUNTS = {  # clips; for the train list of v2 only the number of captions is published, 91,256
    "v1": {"train": 49_838, "val": 495, "test": 975},
    "v2": {"train": None, "val": 495, "test": 975},
}
NUM_CAPTIONS = 5  # per clip in val and test


class AudioCaps(Corpus):
    """Ten-second clips of YouTube videos; one clip for each video and start time, with five captions in val and test.

    Layout of root: train.csv, val.csv, test.csv and audio/train/, audio/val/, audio/test/. A recording has one of the
    names that downloaders use, with any audio suffix: `YOUTUBEID_START` (aac-datasets), `YYOUTUBEID` (AudioSet copies
    and WavCaps), `YOUTUBEID`, or the `audiocap_id` of one of its captions. Names without a start time are used only for
    videos with a single clip in the list.

    Args:
        version: v1 or v2; sets the number of clips that the lists are compared with.
        max_duration: seconds; training reads only this much of a longer clip.

    Raises:
        FileNotFoundError: root or the list of a split is missing.
        ValueError: a row is invalid; the message names file and line.
    """

    name, title = "audiocaps", "AudioCaps"
    clip_duration = 10.0  # files are often a few frames longer, which in evaluation would make them longer clips
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
        audio, num_clips = list_audio(folder), Counter(video for video, _ in captions)
        clips = []
        for (video, start), texts in captions.items():
            without_start = (f"Y{video}", video) if num_clips[video] == 1 else ()
            names = (f"{video}_{start}", *without_start, *numbers[video, start])
            path = next((audio[name] for name in names if name in audio), folder / f"{video}_{start}.wav")
            clips.append(Clip(f"{video}_{start}", tuple(texts), path, source=f"youtube:{video}@{start}"))
        return clips

    def read_list(self, split: str) -> tuple[dict[tuple[str, int], list[str]], dict[tuple[str, int], list[str]]]:
        """Captions and audiocap_ids for each (youtube_id, start in seconds), in the order of the list."""
        path = find_index(self, f"{split}.csv")
        captions: dict[tuple[str, int], list[str]] = {}
        numbers: dict[tuple[str, int], list[str]] = {}
        seen: dict[str, str] = {}
        places: dict[tuple[str, int], str] = {}
        for where, row in read_csv(path, COLUMNS):
            number, clip = read_ids(row, where)
            check_unique(seen, number, "audiocap_id", where)
            captions.setdefault(clip, []).append(check_has_letters(row, "caption", where))
            numbers.setdefault(clip, []).append(number)
            places.setdefault(clip, where)
        if split != "train":
            check_num_captions(captions, places)
        return captions, numbers


def read_ids(row: Mapping[str, str], where: str) -> tuple[str, tuple[str, int]]:
    """audiocap_id and (youtube_id, start in seconds) of a row."""
    number, video, start = (row[column].strip() for column in COLUMNS[:3])
    check_number(number, "audiocap_id", where)
    if not re.fullmatch(r"[A-Za-z0-9_-]{11}", video):
        raise ValueError(
            f"{where}: youtube_id={shorten_repr(video)} is not eleven letters, digits, - or _; copy the video's id"
        )
    if not re.fullmatch(r"[0-9]{1,6}", start):
        raise ValueError(f"{where}: start_time={shorten_repr(start)} is not a whole number of seconds; round it")
    return number, (video, int(start))


def check_num_captions(captions: Mapping[tuple[str, int], list[str]], places: Mapping[tuple[str, int], str]) -> None:
    """ValueError for a clip of val or test without five captions; it names the clip with the fewest.

    A row with a wrong id or start time takes a caption from one clip and adds a clip with one caption.
    """
    wrong = [clip for clip, texts in captions.items() if len(texts) != NUM_CAPTIONS]
    if wrong:
        clip = min(wrong, key=lambda clip: len(captions[clip]))
        raise ValueError(
            f"{places[clip]}: the clip {clip[0]} from {clip[1]} s has {len(captions[clip])} captions, but "
            f"{NUM_CAPTIONS} are published; correct its youtube_id or start_time, or use the published list"
        )
