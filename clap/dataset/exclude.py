"""Block lists: text files with the clips that training skips, one per line, and the reason for each."""

import contextlib
import functools
import json
import logging
import os
import re
import unicodedata
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from clap.atomic import write_atomic
from clap.corpus import Clip
from clap.dataset.clip_table import JoinedClips, encode
from clap.dataset.sources import SITES, find_recordings

log = logging.getLogger(__name__)

END = re.compile(r"(?s)^.*(/|: )")  # what precedes the last part of a path or the name in a tar
SPELLINGS = (  # of a name, which a file may have in another form than the list
    str,
    str.strip,
    functools.partial(unicodedata.normalize, "NFC"),
    functools.partial(unicodedata.normalize, "NFD"),
)


def read_exclusions(path: str | Path, *, key: str = "dataset.exclude") -> dict[str, str]:
    """{clip id, path or recording: reason} from a text file with lines of NAME, or NAME, a tab and REASON.

    A recording is `youtube:ID` or `freesound:NUMBER`. A .json is read as a list of WavCaps: {"FreeSound": [ids],
    "AudioSet": [ids]}.

    NAME in double quotes is a JSON string, as `write_exclusions` writes a name with spaces at its ends, tabs or line
    breaks. Of any other name with spaces at its ends, the spellings with and without them are returned. Blank lines and
    lines that start with "# " are comments; any other # is part of the name (Clotho has such names).

    Args:
        key: of the config, for errors.

    Raises:
        FileNotFoundError: the file is missing.
        ValueError: a line is invalid; the message names file and line.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"{key}={path} is missing; set it to a text file with one clip id or path per line, such as "
            "`python -m clap check` writes"
        )
    if path.suffix == ".json":
        return dict.fromkeys(read_wavcaps_list(path), path.name)
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")  # names may contain the separators of str.splitlines
    except UnicodeDecodeError:
        raise ValueError(f"{key}={path} is not UTF-8; save the file in that encoding") from None
    exclusions: dict[str, str] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.startswith("# ") or line.strip() == "#":
            continue
        names, reason = parse_line(line)
        if "" in names:
            raise ValueError(f"{path}, line {number}: no clip name before the tab; write NAME, a tab, REASON")
        exclusions |= dict.fromkeys(names, reason)
    return exclusions


def read_wavcaps_list(path: Path) -> list[str]:
    """The recordings in an exclusion list of WavCaps; ValueError if it is not one."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}); give the file as it was published, or a text file") from None
    names = [found.get(key, []) for key in ("FreeSound", "AudioSet")] if isinstance(found, dict) else []
    if not any(names) or not all(isinstance(own, list) and all(isinstance(i, str) for i in own) for own in names):
        raise ValueError(f'{path} is not an exclusion list; write {{"FreeSound": [ids], "AudioSet": [ids]}}')
    numbers, videos = names
    return [f"freesound:{name}" for name in numbers] + [
        f"youtube:{name.removesuffix('.wav').removeprefix('Y')}" for name in videos
    ]


def parse_line(line: str) -> tuple[set[str], str]:
    """The spellings of the name, one if it is quoted, and the reason."""
    if line.startswith('"'):
        with contextlib.suppress(json.JSONDecodeError):
            name, end = json.JSONDecoder().raw_decode(line)
            gap, _, reason = line[end:].partition("\t")
            if not gap.strip():  # else a plain name that begins with a quoted word
                return {name}, reason.strip()
    name, _, reason = line.partition("\t")
    return {name, name.strip()}, reason.strip()


def list_names(clip: Clip) -> set[str]:
    """The names by which a block list can have a clip: its id, its path, and its absolute path."""
    recording = set() if clip.recording is None else {str(clip.recording)}
    return {clip.id, *recording} | (set() if clip.path is None else {os.path.abspath(clip.path)})


def is_excluded(clip: Clip, names: Collection[str]) -> bool:
    """Whether the id or path of a clip is in `names`."""
    return any(name in names for name in list_names(clip))


def find_related(clips: JoinedClips, names: Collection[str]) -> list[int]:
    """Indices of the clips of which id, path or member ends like one of the names: all that the list can exclude."""
    ends = {END.sub("", name) for name in names}
    forms = {form(end) for end in ends for form in SPELLINGS}
    values = pa.array({code for form in forms for code in (encode(form), encode_name(form))}, pa.binary())
    found, start = [], 0
    for batch in clips.batches("id", "path", "member"):
        columns = (batch["id"], batch["path"], pc.struct_field(batch["member"], "name"))
        masks = [pc.is_in(pc.replace_substring_regex(own, END.pattern, ""), value_set=values) for own in columns]
        found += (start + np.flatnonzero(functools.reduce(pc.or_, masks).to_numpy())).tolist()
        start += len(batch)
    return found


def encode_name(text: str) -> bytes:
    """The bytes of a file name; of a text that is not one, its UTF-8."""
    try:
        return os.fsencode(text)
    except UnicodeEncodeError:
        return encode(text)


def find_unknown(names: Iterable[str], clips: Iterable[Clip]) -> list[str]:
    """The names that no clip has; spaces at their ends are ignored, since both spellings may be among them."""
    known = {name.strip() for clip in clips for name in list_names(clip)}
    return [name for name in dict.fromkeys(name.strip() for name in names) if name not in known]


def skip_excluded(
    clips: Sequence[JoinedClips], exclude: str | Path, name: str, *, key: str = "dataset.exclude"
) -> list[JoinedClips]:
    """The training clips of each corpus without those in a block list.

    Other splits keep them, since an evaluation on fewer clips is a different task.

    Args:
        name: of the dataset, for the log.
        key: of the config, for the log.

    Raises:
        ValueError: the list names all clips.
    """
    names = read_exclusions(exclude, key=key)
    recordings = {name for name in names if name.partition(":")[0] in SITES}
    others = names.keys() - recordings
    related = [find_related(own, others) for own in clips]
    kept = []
    for own, found in zip(clips, related, strict=True):
        by_name = [index for index in found if is_excluded(own[index], others)]
        kept.append(drop_clips(own, sorted({*by_name, *find_recordings(own, recordings).tolist()})))
    num_listed, num_kept = sum(map(len, clips)), sum(map(len, kept))
    log.info("skipped %d of %d training clips of %s, %s=%s", num_listed - num_kept, num_listed, name, key, exclude)
    if not num_kept:
        raise ValueError(f"{key}={exclude} names all {num_listed} training clips of {name}; shorten the list")
    in_order = (item for item in names if item in others)
    if unknown := find_unknown(in_order, (own[i] for own, found in zip(clips, related, strict=True) for i in found)):
        log.warning(
            "%d of %d names in %s=%s match no training clip of %s, the first is %s",
            *(len(unknown), len({item.strip() for item in others}), key, exclude, name, unknown[0]),
        )
    return kept


def drop_clips(clips: JoinedClips, indices: Sequence[int]) -> JoinedClips:
    """The clips without those at indices."""
    return clips.select(np.delete(np.arange(len(clips)), indices)) if indices else clips


def write_exclusions(path: Path, exclusions: Mapping[str, str], *, comment: str) -> None:
    """Write a file for `read_exclusions`, with `comment` in the first line."""
    lines = [
        f"# {comment}",
        *(f"{quote_name(name)}\t{' '.join(reason.split())}" for name, reason in exclusions.items()),
    ]
    write_atomic(path, ("\n".join(lines) + "\n").encode())


def quote_name(name: str) -> str:
    """The name as in a block list; a JSON string if it would not be read back as it is."""
    is_plain = name.isprintable() and name == name.strip() and not name.startswith(('"', "# ")) and name != "#"
    return name if is_plain else json.dumps(name)
