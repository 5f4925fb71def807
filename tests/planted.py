"""Modules that are part of the package for the time of one test."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import clap


@contextmanager
def plant_module(folder: Path, name: str, source: str) -> Iterator[None]:
    """Make `clap.<name>` importable, a module with this source that is written into `folder`."""
    (folder / f"{name}.py").write_text(source)
    before = clap.__path__
    clap.__path__ = [*before, str(folder)]
    try:
        yield
    finally:
        clap.__path__ = before
        sys.modules.pop(f"clap.{name}", None)
        vars(clap).pop(name, None)
