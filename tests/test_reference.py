"""Published results: every row of conf/experiment/reference composes, and docs/reference.md lists them."""

import functools
import re
from pathlib import Path

import pytest

from clap.config.compose import compose_yamls, find_conf_dir
from clap.config.overrides import check_overrides
from clap.config.recorded_options import store_recorded
from clap.dataset.registry import open_corpus
from clap.evaluation.evaluator import build_evaluators
from clap.published.sources import is_published

CONF = find_conf_dir()
ROWS = sorted(path.stem for path in (CONF / "experiment" / "reference").glob("*.yaml"))
PAGE = Path(__file__).parents[1] / "docs" / "reference.md"
PUBLISHED = (Path(__file__).parents[1] / "docs" / "published.md").read_text()
NUM_TEST = {"audiocaps": 975, "clotho": 1045}
INDEXES = {  # one clip in each fold
    "esc50": ("meta/esc50.csv", "filename,fold,category,src_file", "1-{0}-A-0.wav,{0},dog,{0}", 5),
    "urbansound8k": ("metadata/UrbanSound8K.csv", "slice_file_name,fold,class,fsID", "{0}-0-0-1.wav,{0},siren,{0}", 10),
}


@functools.cache
def compose_row(row: str) -> dict:
    overrides = [f"experiment=reference/{row}", "dataset.root=."]
    (config,) = check_overrides(overrides, config_dir=CONF, config_name="evaluate")
    return config


@pytest.fixture
def find_root(published_index, tmp_path: Path):
    """Folder of a corpus: the published index, or an index with one clip in each fold."""

    def find(name: str) -> Path:
        if name not in INDEXES:
            return published_index(name)
        path, header, line, folds = INDEXES[name]
        (tmp_path / path).parent.mkdir()
        (tmp_path / path).write_text("\n".join([header, *(line.format(fold) for fold in range(1, folds + 1))]) + "\n")
        return tmp_path

    return find


@pytest.mark.parametrize("row", ROWS)
def test_row_composes_with_published_weights_and_its_evaluator(row: str):
    config = compose_row(row)
    assert is_published(config["checkpoint"]) and config["windows"] is None and config["split"] == "test"
    assert f"`{Path(config['checkpoint']).name}`" in PUBLISHED or f"`{config['checkpoint']}`" in PUBLISHED
    (evaluator,) = build_evaluators(config)
    assert evaluator == ("zero_shot" if row.endswith(("esc50", "urbansound8k")) else "retrieval")


@pytest.mark.parametrize("row", ROWS)
def test_row_evaluates_the_clips_that_it_names(row: str, find_root):
    name = row.rpartition("_")[2]
    corpus = open_corpus(compose_row(row)["dataset"] | {"root": str(find_root(name))})
    is_first_fold = row.startswith("laion_630k") and name == "esc50"
    expected = 1 if is_first_fold else NUM_TEST.get(name) or INDEXES[name][3]
    assert corpus.name == name and len(corpus.clips("test")) == expected


def test_page_lists_exactly_the_rows():
    assert sorted(re.findall(r"^\| `(\w+)` \|", PAGE.read_text(), re.MULTILINE)) == ROWS


@pytest.mark.parametrize("row", ROWS)
def test_row_names_its_own_command(row: str):
    assert f"experiment=reference/{row} " in (CONF / "experiment" / "reference" / f"{row}.yaml").read_text()


def test_row_can_be_overridden():
    overrides = [f"experiment=reference/{ROWS[0]}", "checkpoint=weights.pt", "windows=mean", "dataset.batch_size=8"]
    config = compose_yamls([*overrides, "dataset.root=."], folder=CONF, name="evaluate")
    assert (config.checkpoint, config.windows, config.dataset.batch_size) == ("weights.pt", "mean", 8)


def test_keys_of_a_dataset_that_a_row_chooses_need_no_checkpoint_on_the_command_line():
    store_recorded("dataset", {}, [f"experiment=reference/{ROWS[0]}", "dataset.root=."])
    with pytest.raises(ValueError, match="no checkpoint is set"):
        store_recorded("dataset", {}, ["dataset.root=."])


@pytest.mark.parametrize(
    ("entry", "experiment", "script"),
    [("config", f"reference/{ROWS[0]}", "evaluate.py"), ("evaluate", "debug", "train.py")],
)
def test_experiment_of_the_other_entry_point_is_refused(entry: str, experiment: str, script: str):
    with pytest.raises(ValueError, match=f"experiment={experiment}: .* run by python {script} experiment={experiment}"):
        check_overrides([f"experiment={experiment}"], config_dir=CONF, config_name=entry)
