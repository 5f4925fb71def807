"""Files on a publisher's server, and the result of a download."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from clap.config.secrets import hide_secrets
from clap.download.manifest import MANIFEST_NAME
from clap.download.unpack import find_kind


@dataclass(frozen=True)
class RemoteFile:
    """A file on a publisher's server.

    Args:
        key: name in the yaml.
        checksum: `md5:...` or `sha256:...`; empty if none is published.
        to: target file in the folder of the corpus; with a trailing slash, the folder that an archive is unpacked to.
        splits: splits that need the file.
        parts: {suffix: checksum} of the other parts of a split zip, whose last part is at the address.
        index: whether an archive holds index files and no clips.
        contents: {path in the archive: checksum} of files in an archive whose own bytes may change.

    Raises:
        ValueError: the address of an archive does not have the suffix of one.
    """

    key: str
    address: str
    checksum: str
    to: str
    splits: Sequence[str]
    parts: Mapping[str, str] = field(default_factory=dict)
    index: bool = False
    contents: Mapping[str, str] | None = None

    def __post_init__(self) -> None:
        if self.is_archive and not self.parts:
            find_kind(self.address)

    @property
    def kind(self) -> str:
        """Kind of an archive, see `find_kind`; the parts of a split zip are joined to a zip."""
        return "zip" if self.parts else find_kind(self.address)

    @property
    def is_archive(self) -> bool:
        return self.to.endswith("/")

    @property
    def origin(self) -> str:
        """The address without passwords, for messages."""
        return hide_secrets(self.address)

    def files(self) -> Iterator[tuple[str, str, str]]:
        """Address, name in the scratch folder and checksum of each file, parts first."""
        path, mark, query = self.address.partition("?")
        stem = path.rpartition(".")[0]
        for suffix, checksum in self.parts.items():
            yield f"{stem}.{suffix}{mark}{query}", f"{self.key}.{suffix}", checksum
        yield self.address, f"{self.key}.zip" if self.parts else self.key, self.checksum


@dataclass
class Result:
    """Present clips of each split after a download, and why the others are missing."""

    name: str
    root: Path
    clips: dict[str, tuple[int, int, int | None]] = field(default_factory=dict)  # present, listed, published
    missing: Counter = field(default_factory=Counter)  # reason -> number of clips
    failures: list[str] = field(default_factory=list)  # messages; another attempt may succeed

    def __str__(self) -> str:
        lines = [f"{self.name} in {self.root}"]
        for split, (present, listed, published) in self.clips.items():
            other = f", {published} published" if published not in (None, listed) else ""
            lines.append(f"  {split:5}  {present} of {listed} clips{other}")
        lines += [f"  missing: {count} clips, {reason}" for reason, count in self.missing.most_common()]
        lines += [f"  failed: {failure}" for failure in self.failures]
        lines += [f"  the status of each clip is in {self.root / MANIFEST_NAME}"] if self.missing else []
        return "\n".join(lines)
