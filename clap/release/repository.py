"""Names of repositories and licences of the Hugging Face hub. Imports nothing slow."""

import re

NAME = re.compile(r"[\w][\w.-]{0,95}", re.ASCII)
LICENCE = re.compile(r"[a-z0-9][a-z0-9.+-]*")
LICENCES = ("mit", "apache-2.0", "cc0-1.0", "cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0", "other")


def check_repository(repo: str) -> None:
    """ValueError if a text is not the name of a repository, owner/name."""
    parts = repo.split("/")
    if len(parts) != 2 or not all(NAME.fullmatch(part) and "--" not in part and ".." not in part for part in parts):
        raise ValueError(f"repo={repo!r} is not a name on the hub; give owner/name, of letters, digits, - _ and .")


def check_licence(licence: str | None) -> None:
    """ValueError if a licence is missing or not written as an identifier of the hub."""
    if not licence or not LICENCE.fullmatch(licence):
        what = f"licence={licence!r} is not an identifier" if licence else "no licence is given"
        raise ValueError(
            f"{what}; give that of the weights, such as {', '.join(LICENCES)}. Weights trained on corpora for "
            "research only can often not have a permissive one"
        )
