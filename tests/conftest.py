"""Shared by all tests: no network, and stored values of the published code where they are at hand."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

os.environ["HF_HUB_OFFLINE"] = "1"

GOLDEN = Path(__file__).resolve().parents[1].parent / "shared" / "reference" / "golden"


@pytest.fixture(scope="session")
def golden() -> Callable[[str], tuple[dict, dict[str, Tensor]]]:
    """`golden(name)` -> config and tensors of a stored file; skips the test where the files are absent."""

    def read(name: str) -> tuple[dict, dict[str, Tensor]]:
        path = GOLDEN / f"{name}.safetensors"
        if not path.exists():
            pytest.skip(f"stored values {name}.safetensors are not beside this checkout")
        with safe_open(path, "pt") as file:
            config = json.loads(file.metadata()["config"])
        return config, load_file(path)

    return read
