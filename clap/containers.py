"""True lengths of compressed recordings: MPEG audio, FLAC and Ogg, whose headers may lack the length or be wrong.

libsndfile trusts these headers and estimates the length of MPEG audio without one, so it would read a part of the
recording. The frames or pages themselves are counted here. Imports no torch.
"""

import functools
import io
import itertools
import re
import struct
from collections.abc import Iterator
from pathlib import Path

from clap.member import Member, count_bytes

HEAD = 2**14  # bytes in which the first frame of MPEG audio is searched
LONGEST_TAG = 2**20  # bytes behind MPEG audio that may be a tag; of more, the frames are counted


class AudioError(ValueError):
    """An invalid recording; the message names the file and the problem."""


def check_stream(path: Path | Member) -> Path | Member | io.BytesIO:
    """What to decode in place of a recording: itself, or its FLAC or Ogg stream in memory with a correct length.

    Raises:
        AudioError: the file is truncated, or libsndfile cannot read it as a whole.
    """
    with path.open("rb") as file:
        head = file.read(10)
        start = skip_id3(head)
        file.seek(start)
        is_flac = file.read(4) == b"fLaC"
    if is_flac:
        return check_flac(path, start)
    return check_ogg(path) if head.startswith(b"OggS") else path


# MPEG audio (ISO 11172-3, section 2.4; Xing header: gabriel.mp3-tech.org/mp3infotag.html)

BITRATES = {  # kbit/s for the indices 1 to 14; key: (is version 1, layer)
    (True, 1): (32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (True, 2): (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (True, 3): (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (False, 1): (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (False, 2): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
BITRATES[False, 3] = BITRATES[False, 2]
MPEG_HEADER = re.compile(rb"\xff[\xe2-\xff][\x10-\xef]")  # runs of one byte, such as padding, are passed over fast
RATES = {3: (44100, 48000, 32000), 2: (22050, 24000, 16000), 0: (11025, 12000, 8000)}  # key: bits of the version


@functools.cache
def measure_mpeg_frame(second: int, third: int) -> tuple[int, int] | None:
    """Bytes and samples of a frame, from the second and third byte of its header; None if they are not a header."""
    version, layer = second >> 3 & 3, 4 - (second >> 1 & 3)
    bitrate, rate = third >> 4, third >> 2 & 3
    if second < 0xE0 or version == 1 or layer == 4 or bitrate in (0, 15) or rate == 3:
        return None
    samples = 384 if layer == 1 else 576 if layer == 3 and version != 3 else 1152
    slot = 4 if layer == 1 else 1  # bytes
    size = samples // 8 // slot * 1000 * BITRATES[version == 3, layer][bitrate - 1] // RATES[version][rate]
    return (size + (third >> 1 & 1)) * slot, samples


def find_mpeg_frames(content: bytes) -> Iterator[tuple[int, int]]:
    """Start and size of each frame; tags and other bytes between frames are skipped."""
    position, kind, in_sync = 0, None, False  # kind: version, layer, sample rate, mono or not, equal for all frames
    while position + 4 <= len(content):
        size = measure_frame_at(content, position, kind)
        if size and (in_sync or measure_frame_at(content, position + size, read_kind(content, position))):
            kind, in_sync = read_kind(content, position), True
            yield position, size
            position += size
        elif content.startswith(b"ID3", position):
            position, in_sync = position + skip_id3(content, position), False
        else:
            match = MPEG_HEADER.search(content, position + 1)
            position, in_sync = match.start() if match else len(content), False


def measure_frame_at(content: bytes, position: int, kind: tuple[int, int, bool] | None) -> int:
    """Bytes of the frame at a position; 0 if there is none of this kind."""
    if position + 4 > len(content) or content[position] != 0xFF:
        return 0
    frame = measure_mpeg_frame(content[position + 1], content[position + 2])
    return frame[0] if frame and kind in (None, read_kind(content, position)) else 0


def read_kind(content: bytes, position: int) -> tuple[int, int, bool]:
    """Version and layer, sample rate, and whether it is mono, of the frame at a position."""
    return content[position + 1] & 0x1E, content[position + 2] & 0x0C, content[position + 3] >> 6 == 3


def skip_id3(content: bytes, position: int = 0) -> int:
    """Bytes of an ID3v2 tag (id3.org, ID3v2.4, section 3.1); 0 if there is none."""
    if not content.startswith(b"ID3", position) or len(content) < position + 10:
        return 0
    high, *rest = content[position + 6 : position + 10]  # seven bits each
    return 10 + functools.reduce(lambda size, byte: size << 7 | byte, rest, high)


def is_tag(content: bytes) -> bool:
    """Whether the bytes behind a stream are nothing, an APE tag (wiki.hydrogenaudio.org), ID3v1, or both."""
    if content.startswith(b"APETAGEX") and len(content) >= 32:
        content = content[32 + int.from_bytes(content[12:16], "little") :]
    return not content or (content.startswith(b"TAG") and len(content) == 128)


def read_info(frame: bytes) -> tuple[int | None, int | None] | None:
    """Frames and bytes of the stream as the Xing header in its first frame has them; None if it has no such header.

    A frame with Fraunhofer's VBRI header, which libsndfile does not read, is one with neither.
    """
    start = find_xing(frame)
    if frame[36:40] == b"VBRI":
        return None, None
    if frame[start : start + 4] not in (b"Xing", b"Info"):
        return None
    flags, *fields = struct.unpack(">III", frame[start + 4 : start + 16].ljust(12, b"\0"))
    return (fields[0] if flags & 1 else None), (fields[flags & 1] if flags & 2 else None)


def find_xing(frame: bytes) -> int:
    """Where a frame of layer III has its Xing header: behind the side information."""
    is_mono, is_version_1 = frame[3] >> 6 == 3, frame[1] >> 3 & 3 == 3
    return 4 + (17 if is_mono else 32) if is_version_1 else 4 + (9 if is_mono else 17)


def has_true_xing(path: Path | Member) -> bool:
    """Whether MPEG audio begins with a Xing header that agrees with the size of the file."""
    with path.open("rb") as file:
        tag = skip_id3(file.read(10))
        file.seek(tag)
        head = file.read(HEAD)
        first = next(find_mpeg_frames(head), None)
        info = read_info(head[first[0] : first[0] + first[1]]) if first else None
        if info is None or None in info:
            return False
        file.seek(tag + first[0] + info[1])
        return file.tell() <= count_bytes(path) and is_tag(file.read(LONGEST_TAG))


def check_mpeg(path: Path | Member, frames: int) -> tuple[Path | Member | io.BytesIO, int]:
    """MPEG audio, alone or inside a WAV file: what to decode in place of the file, and its length in samples.

    The stream is copied into memory behind a Xing header, unless the file has one that agrees with its size.

    Args:
        frames: the length that libsndfile reports.

    Raises:
        AudioError: the file is truncated, or libsndfile cannot read it as a whole.
    """
    if has_true_xing(path):
        return path, frames
    content = path.read_bytes()
    found = list(find_mpeg_frames(content))
    if not found:
        return path, frames
    (start, size), (last, last_size) = found[0], found[-1]
    if last + last_size > len(content):
        missing = last + last_size - len(content)
        raise AudioError(f"{path}: truncated, {missing} bytes of its last MPEG frame are missing")
    if len(list(itertools.islice(find_mpeg_frames(content[last + last_size :]), 4))) == 4:  # by chance not so many
        raise AudioError(f"{path}: MPEG audio of two formats in a row, of which one can be read; {advise(path)}")
    info = read_info(content[start : start + size])
    num_frames = len(found) - (info is not None)
    announced = info[0] if info else None
    if announced is not None and num_frames < announced:
        raise AudioError(f"{path}: truncated, its header announces {announced} MPEG frames and {num_frames} are there")
    if num_frames == announced:
        return path, frames
    num_samples = num_frames * measure_mpeg_frame(content[start + 1], content[start + 2])[1]
    if content[start + 1] >> 1 & 3 == 1:  # layer III
        stream = b"".join(content[start : start + size] for start, size in found[info is not None :])
        return io.BytesIO(make_xing(stream, num_frames) + stream), num_samples
    if frames < num_samples:
        raise AudioError(f"{path}: MPEG audio of variable bit rate in layer I or II; {advise(path)}")
    return path, num_samples


def make_xing(stream: bytes, num_frames: int) -> bytes:
    """A frame with a Xing header for a stream of `num_frames` frames of layer III."""
    is_version_1 = stream[1] >> 3 & 3 == 3
    second = stream[1] | 1  # no checksum
    third = stream[2] & 0x0C | (5 if is_version_1 else 8) << 4  # 64 kbit/s
    size = measure_mpeg_frame(second, third)[0]
    frame = bytearray(size)
    frame[:4] = 0xFF, second, third, stream[3]
    struct.pack_into(">4sIII", frame, find_xing(frame), b"Xing", 3, num_frames, size + len(stream))
    return bytes(frame)


# FLAC (RFC 9639, sections 8.2 and 9.1)

BITS = {1: 8, 2: 12, 4: 16, 5: 20, 6: 24, 7: 32}  # per sample, by code


def check_flac(path: Path | Member, start: int) -> Path | Member | io.BytesIO:
    """See `check_stream`; the length is where the last frame ends."""
    with path.open("rb") as file:
        file.seek(start)
        info = file.read(42)  # marker, header of the block, stream info
        if len(info) < 42:
            return path
        block, largest = struct.unpack(">HH", info[8:12])
        packed = int.from_bytes(info[18:26], "big")
        channels, bits, announced = (packed >> 41 & 7) + 1, (packed >> 36 & 31) + 1, packed & (1 << 36) - 1
        longest_frame = largest * channels * (bits + 7) // 8 + 2**16  # and tags behind it
        file.seek(max(0, count_bytes(path) - longest_frame))
        tail = file.read()
    ends = find_flac_ends(tail, block=block, channels=channels, bits=bits)
    num_samples = next(ends, None)
    if num_samples is None and not announced:
        raise AudioError(
            f"{path}: damaged, its header has no length and its last FLAC frame is not found; {advise(path)}"
        )
    if num_samples in (None, announced) or announced in ends:
        return path
    if num_samples < announced:
        raise AudioError(f"{path}: truncated, its header announces {announced} samples and {num_samples} are there")
    content = bytearray(path.read_bytes())
    content[start + 18 : start + 26] = (packed - announced + num_samples).to_bytes(8, "big")
    return io.BytesIO(content)


def find_flac_ends(tail: bytes, *, block: int, channels: int, bits: int) -> Iterator[int]:
    """Samples before the end of each frame whose header is in the bytes, the last frame first."""
    for match in reversed(list(re.finditer(rb"\xff[\xf8\xf9]", tail))):
        header = tail[match.start() : match.start() + 16]
        end = read_flac_frame(header, block=block, channels=channels, bits=bits)
        if end is not None:
            yield end


def read_flac_frame(header: bytes, *, block: int, channels: int, bits: int) -> int | None:
    """Samples before the end of a frame; None if its header is invalid or of another stream.

    Args:
        block: samples in a frame of a stream with frames of equal size.
    """
    if len(header) < 6:
        return None
    assignment, code = header[3] >> 4, header[3] >> 1 & 7
    same_channels = assignment + 1 == channels if assignment < 8 else channels == 2 and assignment < 11
    if not same_channels or header[3] & 1 or BITS.get(code, bits) != bits:
        return None
    num_bytes = max(1, 8 - (~header[4] & 0xFF).bit_length())  # of the number, coded as in UTF-8
    sizes = {6: 1, 7: 2}  # bytes of a number of samples that has no code
    size_code, rate_code = header[2] >> 4, header[2] & 15
    at = 4 + num_bytes
    end = at + sizes.get(size_code, 0) + {12: 1, 13: 2, 14: 2}.get(rate_code, 0)
    if num_bytes > 7 or rate_code == 15 or len(header) <= end or crc8(header[:end]) != header[end]:
        return None
    number = header[4] if num_bytes == 1 else header[4] & 0x7F >> num_bytes
    for byte in header[5:at]:
        number = number << 6 | byte & 0x3F
    if size_code in sizes:
        count = int.from_bytes(header[at : at + sizes[size_code]], "big") + 1
    else:
        count = 192 if size_code == 1 else 144 << size_code if size_code < 6 else 1 << size_code
    return (number if header[1] & 1 else number * block) + count


def crc8(content: bytes) -> int:
    """Checksum of a frame's header: polynomial x^8 + x^2 + x + 1."""
    value = 0
    for byte in content:
        value ^= byte
        for _ in range(8):
            value = (value << 1 ^ (0x107 if value & 0x80 else 0)) & 0xFF
    return value


# Ogg (RFC 3533, section 6)


def check_ogg(path: Path | Member) -> Path | Member | io.BytesIO:
    """See `check_stream`. Bytes behind the last page are ignored.

    If the last page is not marked as the last, as after a recorder was stopped, it is marked in memory: libsndfile does
    not read Opus without the mark.
    """
    start = position = 0
    has_audio, is_last, lacing = False, False, b""
    size = count_bytes(path)
    with path.open("rb") as file:
        while position <= size - 4:
            file.seek(position)
            header = file.read(27 + 255)
            if not header.startswith(b"OggS"):
                break
            num_segments = header[26] if len(header) > 26 else 255
            lacing = header[27 : 27 + num_segments]
            start, position = position, position + 27 + num_segments + sum(lacing)
            if len(lacing) < num_segments or position > size:
                raise AudioError(f"{path}: truncated, its last Ogg page is incomplete")
            is_first, is_last = bool(header[5] & 2), bool(header[5] & 4)
            if is_first and has_audio:
                raise AudioError(f"{path}: several Ogg streams in a row, of which one can be read; {advise(path)}")
            has_audio = not is_first
    if is_last:
        return path
    if lacing.endswith(b"\xff"):
        raise AudioError(f"{path}: truncated, its last Ogg packet is incomplete")
    content = path.read_bytes()[:position]
    return io.BytesIO(content[:start] + mark_last_page(content[start:]))


def mark_last_page(page: bytes) -> bytes:
    """A page marked as the last of its stream, with its checksum (RFC 3533, section 6)."""
    marked = bytearray(page)
    marked[5] |= 4
    marked[22:26] = bytes(4)
    checksum = 0
    for byte in marked:
        checksum ^= byte << 24
        for _ in range(8):
            checksum = checksum << 1 ^ (0x104C11DB7 if checksum & 1 << 31 else 0)
    marked[22:26] = checksum.to_bytes(4, "little")
    return bytes(marked)


def advise(path: Path | Member) -> str:
    return f"decode it with `ffmpeg -i {path.name} {path.stem}.flac`"
