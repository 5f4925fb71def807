"""A recording inside a tar file: its place, and its bytes as a file."""

import functools
import io
import os
import weakref
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

OPEN_SHARDS = 64  # shards that a process keeps open; each is one file descriptor
WHOLE = 2**24  # bytes; a member up to this size is read at once, of a larger one only the requested parts


@dataclass(frozen=True)
class Member:
    """A recording stored in a tar file. Its text is "SHARD: NAME".

    Args:
        shard: path of the tar, or its address.
        offset, size: first byte and number of bytes of the recording in the tar.
        name: of the member, as in the tar.
        file: local copy of a shard at an address.
    """

    shard: Path | str
    offset: int
    size: int
    name: str
    file: Path | None = field(default=None, compare=False, repr=False)

    def __str__(self) -> str:
        return f"{self.shard}: {self.name}"

    @property
    def stem(self) -> str:
        return PurePosixPath(self.name).stem

    @property
    def suffix(self) -> str:
        return PurePosixPath(self.name).suffix

    @property
    def local(self) -> Path | str:
        """The tar to open."""
        return self.shard if self.file is None else self.file

    def open(self, mode: str = "rb") -> io.BufferedReader:
        """The bytes as a file, open for reading when requested; OSError if the shard cannot be read."""
        return io.BufferedReader(MemberFile(self.open_shard(), self.offset, self.size))

    def open_whole(self) -> io.BufferedReader | io.BytesIO:
        """As `open`, with all bytes in memory if they are few: decoders read in small pieces."""
        return io.BytesIO(self.read_bytes()) if self.size <= WHOLE else self.open()

    def read_bytes(self) -> bytes:
        """All bytes; OSError if the shard cannot be read."""
        return self.open_shard().read(self.offset, self.size)

    def open_shard(self) -> "Shard":
        """The open tar; OSError if it cannot be read."""
        status = os.stat(self.local)
        return open_shard(self.local, status.st_mtime_ns, status.st_ino)

    def read_ahead(self) -> None:
        """Ask the system to read the whole shard in the background, as one long read; OSError if it is missing."""
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self.open_shard().descriptor, 0, 0, os.POSIX_FADV_WILLNEED)


def count_bytes(recording: Path | Member) -> int:
    """Size of a recording in bytes; OSError if its file is missing."""
    return recording.size if isinstance(recording, Member) else recording.stat().st_size


class Shard:
    """An open tar. Reads do not move a position, so threads and forked processes share it."""

    def __init__(self, path: Path | str) -> None:
        self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        weakref.finalize(self, os.close, self.descriptor)  # when no reader has it any more

    def read(self, offset: int, size: int) -> bytes:
        """The bytes from an offset; fewer if the tar ends before."""
        content = os.pread(self.descriptor, size, offset)
        while content and len(content) < size:  # a read of 2 GB or more, or over a network, may return less
            more = os.pread(self.descriptor, size - len(content), offset + len(content))
            if not more:
                break
            content += more
        return content


@functools.lru_cache(OPEN_SHARDS)
def open_shard(path: Path | str, changed: int, inode: int) -> Shard:
    """The open tar at a path, which a process opens once as long as the file is the same."""
    return Shard(path)


class MemberFile(io.RawIOBase):
    """A part of a tar as a file, read when requested."""

    def __init__(self, shard: Shard, offset: int, size: int) -> None:
        self.shard, self.offset, self.size, self.position = shard, offset, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self.position, os.SEEK_END: self.size}[whence]
        self.position = max(0, start + offset)
        return self.position

    def readinto(self, buffer: memoryview) -> int:
        content = self.shard.read(self.offset + self.position, min(len(buffer), max(0, self.size - self.position)))
        buffer[: len(content)] = content
        self.position += len(content)
        return len(content)
