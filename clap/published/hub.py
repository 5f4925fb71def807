"""Fetch published checkpoints from paths, URLs and the Hugging Face hub. Imports no torch."""

import hashlib
import os
from pathlib import Path
from urllib.parse import unquote, urlsplit

from filelock import FileLock
from huggingface_hub import hf_hub_download, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from clap.config.secrets import hide_secrets
from clap.fetch import FetchError, fetch
from clap.published.sources import FOLDER_FILES, is_address

HUB_FILES = (*FOLDER_FILES, "tokenizer*", "vocab.json", "merges.txt", "special_tokens_map.json")


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
            f"{source}: no such file or folder, and not found on the Hugging Face hub or in its cache ({reason})"
        ) from None
    raise FileNotFoundError(f"{source}: no such checkpoint; give a file, a folder or a hub name (owner/repository)")


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
