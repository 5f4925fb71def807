"""Fetch published checkpoints, and those that this package pushed, from paths, URLs and the Hugging Face hub.

Imports no torch.
"""

import hashlib
import os
from pathlib import Path
from urllib.parse import unquote, urlsplit

from filelock import FileLock
from huggingface_hub import hf_hub_download, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from clap import checkpoint
from clap.config.secrets import hide_secrets
from clap.fetch import FetchError, fetch
from clap.published.sources import CONFIG, FOLDER_FILES, is_address, is_published

OWN_FILES = (checkpoint.CONFIG, checkpoint.WEIGHTS, checkpoint.TRAIN_CLIPS)  # and tokenizer/*, of a pushed checkpoint
HUB_FILES = (*FOLDER_FILES, *OWN_FILES, "tokenizer*", "vocab.json", "merges.txt", "special_tokens_map.json")


def fetch_source(source: str) -> Path:
    """Local path of a source; files of a URL or of the Hugging Face hub are downloaded, or read from the cache.

    Args:
        source: file, folder, `https://...`, `owner/repository` or `owner/repository/file`.

    Raises:
        FileNotFoundError: there is no such path, URL or name, or the server cannot be reached.
    """
    if is_address(source):
        return download(source)
    path = Path(source)
    if path.exists():
        return path
    parts = str(source).split("/")
    try:
        if len(parts) == 2:
            return Path(snapshot_download(source, allow_patterns=list(HUB_FILES)))
        if len(parts) > 2 and all(parts):
            return Path(hf_hub_download("/".join(parts[:2]), "/".join(parts[2:])))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = hide_secrets(str(error).splitlines()[0])
        raise FileNotFoundError(
            f"{source}: no such file or folder, and not found on the Hugging Face hub or in its cache ({reason}); "
            "without a network, download it elsewhere and give its file or folder instead, such as checkpoint=FILE"
        ) from None
    raise FileNotFoundError(f"{source}: no such checkpoint; give a file, a folder or a hub name (owner/repository)")


def fetch_own(source: str | os.PathLike) -> Path | None:
    """Folder of a checkpoint of this package, downloaded if it is a name on the hub; None for one of another project.

    Raises:
        FileNotFoundError: the source is a name on the hub, and there is no such repository.
    """
    if not is_published(source):
        return Path(source)
    if is_address(str(source)) or Path(source).exists() or str(source).count("/") != 1:
        return None
    folder = fetch_source(str(source))
    return folder if (folder / checkpoint.CONFIG).is_file() and not (folder / CONFIG).is_file() else None


def find_cached(address: str) -> Path:
    """Path of a URL's file in the cache of torch.hub; a common name such as config.json gets a hash of the URL.

    Raises:
        FileNotFoundError: the URL has no file name.
    """
    cache = os.environ.get("XDG_CACHE_HOME", "~/.cache")
    home = Path(os.environ.get("TORCH_HOME", f"{cache}/torch")).expanduser()
    name = unquote(urlsplit(address).path).rpartition("/")[2]
    if not name:
        raise FileNotFoundError(f"{hide_secrets(address)}: the URL has no file name; give the URL of a checkpoint")
    if name in FOLDER_FILES:
        name = f"{hashlib.sha256(address.encode()).hexdigest()[:8]}-{name}"
    return home / "hub" / "checkpoints" / name


def download(address: str) -> Path:
    """Download a URL unless it is cached; an interrupted download resumes.

    Raises:
        FileNotFoundError: the server does not have the file, cannot be reached, or closed the connection.
    """
    path = find_cached(address)
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(f".{path.name}.lock")):
        try:
            fetch(address, path)
        except FetchError as error:
            raise FileNotFoundError(f"{error}; or put the file at {path}") from None
    return path
