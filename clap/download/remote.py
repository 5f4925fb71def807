"""Files of a publisher, and what a download made of them."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from clap.download.manifest import MANIFEST_NAME


@dataclass(frozen=True)
class RemoteFile:
    """A file of a publisher.

    Args:
        key: its name in the yaml.
        checksum: `md5:...` or `sha256:...`; empty if none is published.
        to: a file in the corpus's folder; with a slash at its end, the folder that an archive is unpacked to.
        splits: those that need it.
        parts: of a split zip, whose last part is at the address; {suffix: checksum}.
        index: an archive that holds lists and no clips.
    """

    key: str
    address: str
    checksum: str
    to: str
    splits: Sequence[str]
    parts: Mapping[str, str] = field(default_factory=dict)
    index: bool = False

    @property
    def is_archive(self) -> bool:
        return self.to.endswith("/")

    def files(self) -> Iterator[tuple[str, str, str]]:
        """Address, name on the way here and checksum of each file, parts first."""
        path, mark, query = self.address.partition("?")
        stem = path.rpartition(".")[0]
        for suffix, checksum in self.parts.items():
            yield f"{stem}.{suffix}{mark}{query}", f"{self.key}.{suffix}", checksum
        yield self.address, f"{self.key}.zip" if self.parts else self.key, self.checksum


@dataclass
class Result:
    """What is there of each split after a download, and why the rest is not."""

    name: str
    root: Path
    clips: dict[str, tuple[int, int, int | None]] = field(default_factory=dict)  # there, listed, published
    missing: Counter = field(default_factory=Counter)  # reasons
    failures: list[str] = field(default_factory=list)  # what another attempt may bring

    def __str__(self) -> str:
        lines = [f"{self.name} in {self.root}"]
        for split, (here, listed, published) in self.clips.items():
            other = f", {published} were published" if published not in (None, listed) else ""
            lines.append(f"  {split:5}  {here} of {listed} clips{other}")
        lines += [f"  missing: {count} clips, {reason}" for reason, count in self.missing.most_common()]
        lines += [f"  failed: {failure}" for failure in self.failures]
        lines += [f"  the status of each clip is in {self.root / MANIFEST_NAME}"] if self.missing else []
        return "\n".join(lines)
