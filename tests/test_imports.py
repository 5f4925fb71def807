"""Who may import whom: the code held against a table of rooms, and the limits on imports inside functions."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import clap

ROOT = Path(__file__).resolve().parents[1]
# From the top down: a room imports only from rows below its own. A room is a folder or a module of clap/; of tracking,
# what needs the model is a room of its own.
ROWS = (
    ("train", "evaluate", "experiments"),
    ("clap.__main__",),
    ("clap.commands",),
    ("clap.demo", "clap.release"),
    ("clap.check", "clap.sound_index", "clap.study"),
    ("clap.training", "clap.tracking.register"),
    ("clap.tracking.serve",),
    ("clap.evaluation", "clap.tracking"),
    ("clap.classifier",),
    ("clap.model",),
    ("clap.audio_model",),
    ("clap.parts", "clap.saving", "clap.recordings"),
    ("clap.published", "clap.dataset"),
    ("clap.download",),
    ("clap.corpus", "clap.audio_encoder", "clap.text_encoder", "clap.loss", "clap.optimizer", "clap.lora"),
    ("clap.fusion", "clap.tokenizer", "clap.augmentation", "clap.config.launch"),
    (
        "clap.audio",
        "clap.waveform",
        "clap.checkpoint",
        "clap.device",
        "clap.audio_folder",
        "clap.config.output_folder",
        "clap.config.ranks",
    ),
    ("clap.run_folder", "clap.fetch", "clap.plotting", "clap.audio_formats", "clap.prompts", "clap.containers"),
    ("clap.atomic", "clap.config", "clap.log_lines", "clap.process_group", "clap.progress", "clap.proportion"),
    ("clap.member", "clap.processes", "clap.text_table"),
)
ROOMS = {room: row for row, rooms in enumerate(ROWS) for room in rooms}
MOST_LATE_IMPORTS = 25
HYDRA_ROOMS = ("train", "evaluate", "clap.config", "clap.study")


def source_files() -> list[Path]:
    return sorted([*(ROOT / "clap").rglob("*.py"), *(ROOT / "experiments").rglob("*.py"), *ROOT.glob("*.py")])


def name_module(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def find_room(module: str) -> str | None:
    """The longest name of a room that a module's name begins with."""
    parts = module.split(".")
    names = [".".join(parts[:length]) for length in range(len(parts), 0, -1)]
    return next((name for name in names if name in ROOMS), None)


def imported_modules(node: ast.Import | ast.ImportFrom) -> list[str]:
    """Full names of the modules that a statement imports; of `from clap import Clap` the one that defines it."""
    if isinstance(node, ast.Import):
        return [name.name for name in node.names]
    submodules = [f"{node.module}.{name.name}" for name in node.names]
    homes = {f"clap.{name}": home for name, home in clap._HOMES.items()}
    return [name if is_module(name) else homes.get(name, node.module) for name in submodules]


def is_module(name: str) -> bool:
    path = ROOT.joinpath(*name.split("."))
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


def imports_of(path: Path) -> Iterator[tuple[int, str]]:
    """Line and module of every import in a file, those inside functions too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield from ((node.lineno, module) for module in imported_modules(node))


def late_imports(path: Path) -> Iterator[tuple[int, bool]]:
    """Line of every import inside a function, and whether a comment next to it or above its block has the reason."""
    lines = path.read_text().splitlines()
    for function in ast.walk(ast.parse(path.read_text())):
        if isinstance(function, ast.FunctionDef):
            for node in ast.walk(function):
                if isinstance(node, ast.Import | ast.ImportFrom):
                    above = lines[: node.lineno - 1]
                    while above[-1].strip().startswith(("from ", "import ")):
                        above.pop()
                    yield node.lineno, "#" in lines[node.lineno - 1] or above[-1].strip().startswith("#")


@pytest.mark.parametrize("path", source_files(), ids=name_module)
def test_room_imports_only_from_rows_below_its_own(path: Path):
    module = name_module(path)
    own = find_room(module)
    assert own is not None or module == "clap", f"{module} is in no room of the table; add its room"
    for line, imported in imports_of(path):
        room = find_room(imported)
        if room is not None and room != own:
            assert ROOMS[room] > ROOMS[own], f"{path.name}, line {line}: {own} must not import {imported}"


def test_no_cycle_between_folders():
    folders: dict[str, set[str]] = {}
    for path in (ROOT / "clap").rglob("*.py"):
        own = name_module(path) if path.name == "__init__.py" else name_module(path).rpartition(".")[0]
        for _, imported in imports_of(path):
            if imported.startswith("clap."):
                other = imported if (ROOT.joinpath(*imported.split("."))).is_dir() else imported.rpartition(".")[0]
                folders.setdefault(own, set()).update({other} - {own, "clap"})
    del folders["clap"]  # its modules have rows of their own, tested above
    while leaves := [folder for folder, others in folders.items() if not others & folders.keys()]:
        for leaf in leaves:
            del folders[leaf]
    assert not folders, f"a cycle between {', '.join(folders)}"


def test_few_imports_are_inside_functions_and_each_says_why():
    found = [(f"{name_module(path)}:{line}", why) for path in source_files() for line, why in late_imports(path)]
    assert len(found) <= MOST_LATE_IMPORTS, found
    assert not [place for place, why in found if not why]


def test_only_config_study_and_the_entry_points_import_hydra():
    for path in source_files():
        module = name_module(path)
        if not module.startswith((*HYDRA_ROOMS, "experiments")):
            assert not [line for line, imported in imports_of(path) if imported.split(".")[0] == "hydra"], module


def test_model_imports_without_hydra_mlflow_and_numba():
    """numba, which librosa requires, does not start where neither the packages nor the home folder are writable."""
    modules = "clap.model, clap.dataset.loader, clap.evaluation.evaluator, clap.evaluation.run_plots"
    code = f"import sys; sys.modules |= dict.fromkeys(['hydra', 'mlflow', 'numba']); import {modules}"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
