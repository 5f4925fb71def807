"""Block lists: text files with the clips that training skips, one per line, and the reason for each."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from clap.corpus import Clip


def read_exclusions(path: str | Path) -> dict[str, str]:
    """{clip id or path: reason} from a text file with lines of NAME, or NAME, a tab and REASON.

    Blank lines and lines that start with "# " are comments; any other # is part of the name (Clotho has such names).

    Raises:
        FileNotFoundError: the file is missing.
        ValueError: a line is invalid; the message names file and line.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"dataset.exclude={path} is missing; set it to a text file with one clip id or path per line, such as "
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
            raise ValueError(f"{path}, line {number}: no clip name before the tab; write NAME, a tab, REASON")
        exclusions[name] = reason
    return exclusions


def is_excluded(clip: "Clip", names: Collection[str]) -> bool:
    """Whether the id or path of a clip is in `names`."""
    return clip.id in names or str(clip.path) in names


def write_exclusions(path: Path, exclusions: Mapping[str, str], *, comment: str) -> None:
    """Write a file for `read_exclusions`, with `comment` in the first line."""
    lines = [f"# {comment}", *(f"{name}\t{' '.join(reason.split())}" for name, reason in exclusions.items())]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
