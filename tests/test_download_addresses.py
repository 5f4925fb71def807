"""Addresses and checksums of the corpora that can be downloaded."""

import pytest

from clap.corpus import SPLITS
from clap.dataset.registry import find_class
from clap.download.addresses import list_downloads, read_addresses


@pytest.mark.parametrize("name", list_downloads())
def test_yaml_has_https_addresses_and_valid_checksums(name: str):
    settings = read_addresses(name)
    assert find_class(name) is not None and settings["max_gigabytes"] > 0
    for remote in settings["files"].values():
        assert remote["address"].startswith("https://") and set(remote["splits"]) <= set(SPLITS)
        for checksum in (remote["checksum"], *remote.get("parts", {}).values(), *remote.get("contents", {}).values()):
            kind, _, digest = checksum.partition(":")
            assert (kind, len(digest)) in {("", 0), ("md5", 32), ("sha256", 64)}
