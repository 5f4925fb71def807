"""The clips of a tar in webdataset's layout: the members KEY.flac and KEY.json are one clip. Imports no torch.

The rules are those of webdataset (github.com/webdataset/webdataset, tariterators.py): the key of a member is its name
up to the first dot of the file name; consecutive members with one key are one sample; names such as __meta__ are
skipped.
"""

import json
import os
import re
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clap.audio_formats import AUDIO_SUFFIXES
from clap.corpus import Clip
from clap.dataset.csv import check_characters
from clap.dataset.index import shorten_repr
from clap.dataset.keywords import fill_keyword_templates
from clap.waveform import Member

KEY = re.compile(r"((?:.*/|)[^.]+)[.]([^/]*)", re.DOTALL)
META = re.compile(r"__[^/]*__($|/)")
TEXT_SUFFIXES = ("json", "txt", "cls")
MAX_TEXT = 2**20  # bytes of a member with captions
COMPRESSED = {b"\x1f\x8b": "gunzip", b"BZh": "bunzip2", b"\xfd7zXZ": "unxz", b"\x28\xb5\x2f\xfd": "unzstd"}
RECORD = (
    "clip"  # key in a JSON member of what Clip has and webdataset has no place for, see `clap.dataset.shard_writer`
)


@dataclass
class TarContent:
    """The clips of a tar, and what is wrong with it.

    Attributes:
        problems: {name of a member or key: why it is not a clip}.
        damage: why clips are missing that the tar cannot name; None: it is whole.
    """

    clips: list[Clip] = field(default_factory=list)
    problems: dict[str, str] = field(default_factory=dict)
    damage: str | None = None


class SampleError(ValueError):
    """A sample that is not a clip; the message is the reason."""


def read_tar(file: Path, shard: Path | str, *, prefix: str, caption_key: str = "text") -> TarContent:
    """Read the headers and captions of a tar; recordings are not read.

    Args:
        file: the tar, or a local copy.
        shard: its path or address, as in `Member`.
        prefix: of the ids of clips whose JSON has none, `PREFIX/KEY`.
        caption_key: of the captions in a JSON, a string or a list.

    Raises:
        ValueError: the tar is compressed.
        OSError: it cannot be read.
    """
    check_not_compressed(file, shard)
    content = TarContent()
    seen: dict[str, str] = {}
    with file.open("rb") as stream:
        for key, members in group_members(file, content):
            try:
                if key in seen:
                    raise SampleError(f"duplicate key, used before {seen[key]}; rename the members")
                content.clips.append(make_clip(stream, shard, key, members, prefix, caption_key))
            except SampleError as error:
                content.problems[members[0].name if key in seen else key] = str(error)
            seen.setdefault(key, members[-1].name)
    if not seen and content.damage is None:
        content.damage = "no members with a name such as KEY.flac; write it again"
    return content


def check_not_compressed(file: Path, shard: Path | str) -> None:
    """ValueError for a compressed tar, of which no part can be read alone."""
    with file.open("rb") as stream:
        head = stream.read(6)
    for magic, command in COMPRESSED.items():
        if head.startswith(magic):
            raise ValueError(
                f"{shard}: compressed, so no recording can be read without all before it; decompress it with "
                f"`{command} {Path(str(shard)).name}`, recordings are compressed already"
            )


def group_members(file: Path, content: TarContent) -> Iterator[tuple[str, list[tarfile.TarInfo]]]:
    """Key and members of each sample; damage ends them, and is stored in `content`."""
    key, members = None, []
    for info in read_members(file, content):
        match = KEY.fullmatch(info.name)
        if match is None or META.match(info.name) or info.isdir():
            continue
        if match[1] != key and members:
            yield key, members
            members = []
        key = match[1]
        members.append(info)
    if members:
        yield key, members


def read_members(file: Path, content: TarContent) -> Iterator[tarfile.TarInfo]:
    """The members that are in the file as a whole."""
    size = file.stat().st_size
    try:
        with tarfile.open(file, "r:", errors="surrogateescape") as tar:
            for info in tar:
                if info.offset_data + (info.size if info.isreg() else 0) > size:
                    content.damage = f"truncated in {info.name}; copy it again"
                    return
                yield info
                tar.members = []  # else they are all kept
            if tar.offset + tarfile.BLOCKSIZE > size:
                content.damage = "truncated, its end is missing; copy it again"
            elif any(os.pread(tar.fileobj.fileno(), tarfile.BLOCKSIZE, tar.offset)):  # where tarfile stops as at an end
                content.damage = f"no header at byte {tar.offset}; copy it again"
    except tarfile.TarError as error:
        content.damage = f"not a whole tar ({error}); copy it again" if size else "empty, 0 bytes; copy it again"


def make_clip(
    stream: Any, shard: Path | str, key: str, members: list[tarfile.TarInfo], prefix: str, caption_key: str
) -> Clip:
    """The clip of a sample.

    Raises:
        SampleError: it has no recording or several, or no captions.
    """
    by_suffix: dict[str, tarfile.TarInfo] = {}
    for info in members:
        suffix = KEY.fullmatch(info.name)[2].lower()
        if suffix in by_suffix:
            raise SampleError(f"two members {by_suffix[suffix].name} and {info.name}; delete one")
        by_suffix[suffix] = info
    audio = [info for suffix, info in by_suffix.items() if f".{suffix}" in AUDIO_SUFFIXES]
    names = ", ".join(info.name for info in members)
    if len(audio) != 1:
        count = "no recording" if not audio else f"{len(audio)} recordings"
        raise SampleError(f"{count} among {names}; a key must have one, such as KEY.flac")
    (recording,) = audio
    if not recording.isreg() or recording.sparse is not None:
        raise SampleError(f"{recording.name} is a link or sparse; write the tar with `tar --hard-dereference -h`")
    texts = {suffix: read_text(stream, by_suffix[suffix]) for suffix in TEXT_SUFFIXES if suffix in by_suffix}
    record = parse_record(texts["json"]) if "json" in texts else {}
    member = Member(shard, recording.offset_data, recording.size, recording.name)
    captions = read_captions(record, texts, caption_key)
    own = record.get(RECORD)
    try:
        if isinstance(own, Mapping) and (captions or caption_key in record):
            return restore_clip(own, captions, member)
        label = texts.get("cls", "").strip() or None
        if not captions and label is None:
            raise SampleError(f"no captions among {names}; add {caption_key!r} to KEY.json, or set dataset.caption_key")
        return Clip(
            f"{prefix}/{key.removeprefix('./')}",
            captions or fill_keyword_templates([label]),
            label=label,
            captions_from_labels=not captions,
            member=member,
        )
    except (TypeError, ValueError) as error:
        raise error if isinstance(error, SampleError) else SampleError(str(error)) from None


def read_text(stream: Any, info: tarfile.TarInfo) -> str:
    """The text of a member; SampleError if it is too large or not UTF-8."""
    if info.size > MAX_TEXT or not info.isreg():
        raise SampleError(f"{info.name} is a link, or has {info.size} bytes, more than {MAX_TEXT}")
    stream.seek(info.offset_data)
    try:
        return stream.read(info.size).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise SampleError(f"{info.name} is not UTF-8") from None


def parse_record(text: str) -> dict[str, Any]:
    """The object of a JSON member; SampleError if it is none."""
    try:
        record = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise SampleError(f"its JSON cannot be read ({error})") from None
    if not isinstance(record, dict):
        raise SampleError(f'its JSON is {shorten_repr(record)}; write {{"text": "a dog barks"}}')
    return record


def read_captions(record: Mapping[str, Any], texts: Mapping[str, str], caption_key: str) -> tuple[str, ...]:
    """The captions in the JSON, else the text of KEY.txt, without blank and repeated ones."""
    found = record.get(caption_key)
    found = [texts.get("txt")] if found is None else found if isinstance(found, list) else [found]
    captions = []
    for text in found:
        if text is not None and not isinstance(text, str):
            raise SampleError(f"{caption_key}={shorten_repr(text)} is not a text; write a string or a list of strings")
        try:
            captions.append(check_characters((text or "").strip(), caption_key, "captions"))
        except ValueError as error:
            raise SampleError(str(error)) from None
    return tuple(dict.fromkeys(filter(None, captions)))


def record_clip(clip: Clip) -> dict[str, Any]:
    """What a JSON member has of a clip under the key RECORD, besides its captions."""
    return {
        "id": clip.id,
        "label": clip.label,
        "labels": clip.labels,
        "keywords": clip.keywords,
        "source": clip.source,
        "captions_from_labels": clip.captions_from_labels,
    }


def restore_clip(record: Mapping[str, Any], captions: tuple[str, ...], member: Member) -> Clip:
    """The clip of `record_clip`."""
    lists = {name: tuple(record.get(name) or ()) for name in ("labels", "keywords")}
    return Clip(**{**record, **lists}, captions=captions, member=member)
