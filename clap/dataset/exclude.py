"""Block lists: names of clips that training leaves out, one a line, each with its reason."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from clap.corpus import Clip


def read_exclusions(path: str | Path) -> dict[str, str]:
    """Names of clips (id or path) and reasons, from a text file: NAME, or NAME, a tab and REASON.

    Blank lines and lines that begin with "# " are passed over; a # inside a line belongs to the name, as in Clotho's.

    Raises:
        FileNotFoundError: there is no such file. ValueError: a line is wrong; it names file and line.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"dataset.exclude={path} is missing; give a text file with one clip id or path a line, such as "
            "`python -m clap check` writes"
        )
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise ValueError(f"dataset.exclude={path} is not UTF-8; save the file in that encoding") from None
    exclusions = {}
    for number, line in enumerate(lines, start=1):
        name, _, reason = (part.strip() for part in line.partition("\t"))
        if not line.strip() or line.startswith("# ") or line.strip() == "#":
            continue
        if not name:
            raise ValueError(f"{path}, line {number}: no clip is named before the tab; write NAME, a tab, REASON")
        exclusions[name] = reason
    return exclusions


def is_excluded(clip: "Clip", names: Collection[str]) -> bool:
    """Is a clip's id or path among these names?"""
    return clip.id in names or str(clip.path) in names


def write_exclusions(path: Path, exclusions: Mapping[str, str], *, comment: str) -> None:
    """What `read_exclusions` reads; `comment` goes to the first line."""
    lines = [f"# {comment}", *(f"{name}\t{' '.join(reason.split())}" for name, reason in exclusions.items())]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
