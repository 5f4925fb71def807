"""Only classes of this package are built from a config."""

import functools
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from torch import nn

import clap
from clap.config.build import build, find_target

PARTS = """
import os
import os.path as path
import torch
from torch import nn
from torch.nn import Linear

class Part(nn.Module):
    def __init__(self, width: int, *, inner: nn.Module | None = None, sizes: list | None = None, drop_path=0.0):
        super().__init__()
        self.width, self.inner, self.sizes, self.drop_path = width, inner, sizes, drop_path

    class Nested(nn.Module):
        pass

class Plain:
    pass

Alias = Part

def function(width: int):
    raise AssertionError("a config called a function")

def __getattr__(name):
    raise AssertionError("a config used a module's lazy attributes")
"""


@pytest.fixture
def parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a module `clap.stand_in`, which is importable for one test."""
    (tmp_path / "stand_in.py").write_text(PARTS)
    monkeypatch.setattr(clap, "__path__", [*clap.__path__, str(tmp_path)])
    yield tmp_path
    sys.modules.pop("clap.stand_in", None)
    vars(clap).pop("stand_in", None)


def test_build_gives_the_named_class_its_arguments(parts: Path) -> None:
    part = build({"_target_": "clap.stand_in.Part", "width": 3}, nn.Module)
    assert (type(part).__name__, part.width) == ("Part", 3)


def test_build_builds_nested_nodes_first(parts: Path) -> None:
    inner = {"_target_": "clap.stand_in.Part", "width": 2}
    assert build({"_target_": "clap.stand_in.Part", "width": 3, "inner": inner}, nn.Module).inner.width == 2


def test_build_builds_nodes_in_lists(parts: Path) -> None:
    inner = {"_target_": "clap.stand_in.Part", "width": 2}
    assert build({"_target_": "clap.stand_in.Part", "width": 3, "sizes": [inner]}, nn.Module).sizes[0].width == 2


def test_build_finds_a_nested_class(parts: Path) -> None:
    assert isinstance(build({"_target_": "clap.stand_in.Part.Nested"}, nn.Module), nn.Module)


def test_build_partial_accepts_the_remaining_arguments(parts: Path) -> None:
    partial = build({"_target_": "clap.stand_in.Part", "_partial_": True, "drop_path": 0.5}, nn.Module)
    assert isinstance(partial, functools.partial) and partial(width=1).drop_path == 0.5


def test_build_passes_runtime_objects(parts: Path) -> None:
    inner = nn.Identity()
    assert build({"_target_": "clap.stand_in.Part", "width": 3}, nn.Module, inner=inner).inner is inner


def test_build_resolves_an_omegaconf_node(parts: Path) -> None:
    config = OmegaConf.create({"dim": 7, "part": {"_target_": "clap.stand_in.Part", "width": "${dim}"}})
    assert build(config.part, nn.Module).width == 7


def test_find_target_gives_the_class_of_a_node(parts: Path) -> None:
    assert find_target({"_target_": "clap.stand_in.Part"}, nn.Module).__name__ == "Part"
    with pytest.raises(ValueError, match="_target_ 'os.system' is refused"):
        find_target({"_target_": "os.system"}, nn.Module)


def test_build_refuses_a_key_set_twice(parts: Path) -> None:
    with pytest.raises(ValueError, match="inner is set when the program runs"):
        build({"_target_": "clap.stand_in.Part", "width": 3, "inner": None}, nn.Module, inner=nn.Identity())


HOSTILE = [
    "os.system",
    "builtins.eval",
    "torch.hub.load",
    "torch.nn.Linear",
    "clap",
    "clap.",
    "clap..x",
    "clap.nowhere.Class",
    "clap.config.build.build",
    "clap.config.os.system",
    "clap.config.ModuleType",
    "clap.config.importlib.import_module",
    "clap.stand_in",
    "clap.stand_in.os.system",
    "clap.stand_in.path.join",
    "clap.stand_in.torch.load",
    "clap.stand_in.torch.nn.Linear",
    "clap.stand_in.nn.Linear",
    "clap.stand_in.Linear",
    "clap.stand_in.Alias",
    "clap.stand_in.function",
    "clap.stand_in.missing",
    "clap.stand_in.Plain",
    "clap.stand_in.Part.__init__",
    "clap.stand_in.Part.__class__",
    "clap.stand_in.Part.__base__",
    "clap/parts.Part",
    "../clap.stand_in.Part",
    "",
    None,
    3,
    ["clap.stand_in.Part"],
]


@pytest.mark.parametrize("target", HOSTILE, ids=str)
def test_build_refuses_a_target_outside_the_package(target: object, parts: Path) -> None:
    with pytest.raises(ValueError, match="is refused; allowed: the full name of a subclass of Module"):
        build({"_target_": target, "width": 3}, nn.Module)


@pytest.mark.parametrize("target", HOSTILE, ids=str)
def test_build_refuses_a_nested_target_outside_the_package(target: object, parts: Path) -> None:
    with pytest.raises(ValueError, match="is refused"):
        build({"_target_": "clap.stand_in.Part", "width": 3, "inner": {"_target_": target}}, nn.Module)


def test_build_imports_nothing_outside_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bait.py").write_text("raise AssertionError('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match="is refused"):
        build({"_target_": "bait.Part"}, nn.Module)
    assert "bait" not in sys.modules


def test_build_refuses_a_module_linked_into_the_package(parts: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    outside = tmp_path_factory.mktemp("outside") / "linked.py"
    outside.write_text("raise AssertionError('imported')")
    (parts / "linked.py").symlink_to(outside)
    with pytest.raises(ValueError, match="is refused"):
        build({"_target_": "clap.linked.Part"}, nn.Module)


def test_build_refuses_a_class_of_another_kind(parts: Path) -> None:
    with pytest.raises(ValueError, match="subclass of Path"):
        build({"_target_": "clap.stand_in.Part", "width": 3}, Path)


def test_build_refuses_a_node_without_target() -> None:
    with pytest.raises(ValueError, match="the keys width: `_target_` is missing"):
        build({"width": 3}, nn.Module)


def test_build_names_the_nearest_argument(parts: Path) -> None:
    with pytest.raises(
        ValueError, match=r"Part has no argument 'with'; did you mean width\?; allowed: width, inner, sizes"
    ):
        build({"_target_": "clap.stand_in.Part", "with": 3}, nn.Module)


def test_build_names_a_missing_argument(parts: Path) -> None:
    with pytest.raises(ValueError, match="clap.stand_in.Part needs width; given: drop_path"):
        build({"_target_": "clap.stand_in.Part", "drop_path": 0.1}, nn.Module)


@pytest.mark.parametrize(
    "value",
    [object(), Path("x"), b"x", {1, 2}, [print], {"key": len}],
    ids=["object", "path", "bytes", "set", "list", "dict"],
)
def test_build_refuses_arguments_that_are_not_plain(value: object, parts: Path) -> None:
    with pytest.raises(ValueError, match=r"_target_ clap.stand_in.Part: sizes(\.key)? is a .*; allowed: null, bool"):
        build({"_target_": "clap.stand_in.Part", "width": 3, "sizes": value}, nn.Module)


def test_build_refuses_a_value_that_is_still_missing(parts: Path) -> None:
    with pytest.raises(ValueError, match=r"width is \?\?\?"):
        build({"_target_": "clap.stand_in.Part", "width": "???"}, nn.Module)
