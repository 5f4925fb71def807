"""Studies: their factors, levels and cells."""

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from clap.study.factors import (
    REPEATS,
    Study,
    find_factors,
    list_levels,
    load_study,
    one_factor_at_a_time,
    parse_overrides,
    parse_study,
)

CONF = Path(__file__).resolve().parents[1] / "conf"
FACTORS = {"loss": ["nce", "sigmoid"], "fusion": ["none", "daf", "aff"]}


def make_study(**changes) -> Study:
    values = {
        "name": "trial", "factors": FACTORS, "seeds": ["0", "1"], "metrics": ["test/x/accuracy"], "design": "grid",
        "minutes": None, "folder": "outputs/sweeps/trial",
    }  # fmt: skip
    return Study(**values | changes)


def read_levels(line: str) -> list[str]:
    (override,) = parse_overrides({}, [line])
    return list_levels(override)


def test_grid_has_every_combination_with_the_baseline_first():
    cells = make_study().cells()
    assert len(cells) == 6
    assert cells[0] == {"loss": "nce", "fusion": "none"}
    assert all(cells.count(cell) == 1 for cell in cells)


def test_one_at_a_time_varies_one_factor_of_the_baseline():
    cells = [tuple(cell.values()) for cell in make_study(design="one_at_a_time").cells()]
    assert cells == [("nce", "none"), ("nce", "daf"), ("nce", "aff"), ("sigmoid", "none")]


def test_one_factor_makes_the_same_cells_in_both_designs():
    factors = {"fusion": FACTORS["fusion"]}
    grid = make_study(factors=factors)
    assert grid.cells() == make_study(factors=factors, design="one_at_a_time").cells()


@pytest.mark.parametrize("repeat", REPEATS)
def test_seed_and_fold_are_not_factors_of_the_design(repeat: str):
    jobs = [{"loss": loss, repeat: number} for loss in ("nce", "sigmoid") for number in "01"]
    assert one_factor_at_a_time(jobs) == jobs


def test_unknown_design_is_rejected():
    with pytest.raises(ValueError, match="study.design='random' of trial is not one of grid, one_at_a_time; change it"):
        make_study(design="random")


def test_unknown_key_of_a_study_is_rejected():
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("config", ["experiment=encoder_ablation", "+study.minute=5"], return_hydra_config=True)
    with pytest.raises(
        ValueError, match=r"encoder_ablation has no key study.minute; did you mean minutes\?; keys: design"
    ):
        parse_study(config)


@pytest.mark.parametrize("missing", ["factors", "metrics"])
def test_study_needs_factors_and_metrics(missing: str):
    with pytest.raises(
        ValueError,
        match="has . factors and . metrics; set at least one of each in hydra.sweeper.params and study.metrics",
    ):
        make_study(**{missing: {}})


def test_leading_metric_must_be_better_when_higher():
    with pytest.raises(ValueError, match="is test/x/text_to_audio/median_rank, where lower is better; put one first"):
        make_study(metrics=["test/x/text_to_audio/median_rank"])


LEVELS = {
    "choices": ("audio_encoder=cnn14_nano,htsat_nano", ["cnn14_nano", "htsat_nano"]),
    "choice function": ("seed=choice(0,1)", ["0", "1"]),
    "range": ("seed=range(0,3)", ["0", "1", "2"]),
    "range with a step": ("embed_dim=range(16,64,16)", ["16", "32", "48"]),
    "quoted": ("text_encoder.name='a b','c,d'", ["'a b'", "'c,d'"]),
    "lists": ("evaluation=[retrieval],[retrieval,zero_shot]", ["[retrieval]", "[retrieval,zero_shot]"]),
    "one value": ("trainer.max_epochs=3", ["3"]),
    "one list": ("freeze=[text_encoder]", ["[text_encoder]"]),
    "nothing": ("fusion=null", ["null"]),
}


@pytest.mark.parametrize(("line", "expected"), LEVELS.values(), ids=LEVELS)
def test_levels(line: str, expected: list[str]):
    assert read_levels(line) == expected


def test_command_line_replaces_the_values_of_a_study():
    factors = find_factors({"loss": "nce,sigmoid", "seed": "0,1,2"}, ["seed=7,8", "embed_dim=16"])
    assert {key: list_levels(override) for key, override in factors.items()} == {
        "loss": ["nce", "sigmoid"],
        "seed": ["7", "8"],
    }


def test_factor_with_a_single_value_remains_a_factor():
    factors = find_factors({"seed": "0,1,2"}, ["seed=7"])
    assert list_levels(factors["seed"]) == ["7"]


def test_fixed_override_is_not_a_factor():
    assert list(find_factors({"seed": "0,1", "trainer.max_epochs": 3})) == ["seed"]


def test_load_study_finds_a_packaged_study():
    study = load_study("encoder_ablation")
    assert study.factors == {
        "audio_encoder": ["cnn14_nano", "htsat_nano"],
        "text_encoder": ["roberta_nano", "gpt2_nano"],
    }
    assert study.seeds == ["0", "1", "2", "3", "4"]
    assert len(study.cells()) == 4
    assert study.folder == "outputs/sweeps/encoder_ablation"


def test_load_study_lists_the_studies_for_an_unknown_name():
    with pytest.raises(ValueError, match="'debug' is not a study; studies in conf/experiment: .*encoder_ablation"):
        load_study("debug")


def compose_study(*overrides: str) -> Study | None:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return parse_study(compose("config", list(overrides), return_hydra_config=True))


def test_parse_study_agrees_with_load_study():
    assert compose_study("experiment=encoder_ablation") == load_study("encoder_ablation")


def test_config_without_a_study_gives_none():
    assert compose_study("experiment=debug") is None


def test_glob_expands_to_the_options_of_its_group():
    study = compose_study("experiment=encoder_ablation", "hydra.sweeper.params.text_encoder='glob(*_nano)'")
    assert study.factors["text_encoder"] == ["gpt2_nano", "roberta_nano"]
