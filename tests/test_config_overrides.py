"""Wrong overrides are rejected in one line before a run starts, and correct ones are accepted."""

from pathlib import Path

import pytest
from config_yamls import write_yamls
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from clap.config.overrides import VERSION_BASE, check_overrides, name_folder


@pytest.fixture(scope="module")
def conf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_yamls(tmp_path_factory.mktemp("project"))


ACCEPTED = {
    "nothing": [],
    "option": ["audio_encoder=large"],
    "list of options": ["evaluation=[retrieval,zero_shot]"],
    "option that was null": ["experiment=debug"],
    "forced key that exists": ["++seed=3"],
    "key of the chosen option": ["optimizer=sgd", "optimizer.momentum=0.5"],
    "required value": ["dataset=clips", "dataset.root=recordings"],
    "hydra's keys": ["hydra.run.dir=elsewhere", "hydra/launcher=basic"],
    "sweep of values": ["-m", "seed=0,1", "optimizer.lr=1,1e-2"],
    "sweep of ranges": ["-m", "seed=range(1,4)", "embed_dim=choice(4,8)"],
    "search": ["-m", "hydra/sweeper=optuna", "optimizer.lr=interval(0,1)", "embed_dim=interval(4,8)"],
    "sweep of options": ["-m", "optimizer=adam,sgd", "audio_encoder=glob(*)", "optimizer.lr=1e-3,1e-4"],
    "sweep of lists": ["-m", "freeze=[],[text_encoder]", "evaluation=[retrieval],[zero_shot]"],
    "study": ["experiment=study"],
    "study with a key of its own": ["experiment=study", "seed=0,1,2"],
    "config without its required value": ["--cfg", "job", "dataset=clips"],
    "help": ["--help"],
    "hydra's help": ["--hydra-help"],
}


@pytest.mark.parametrize("argv", ACCEPTED.values(), ids=ACCEPTED)
def test_override_is_accepted(argv: list[str], conf: Path) -> None:
    check_overrides(argv, config_dir=conf, config_name="config")


REJECTED = {
    "option": (["audio_encoder=tinny"], "audio_encoder has no option tinny; did you mean tiny?; options: large, tiny"),
    "password": (["note=https://me:hunter2@host/w"], "note=https://***@host/w has a password or token, which"),
    "option in a list": (["evaluation=[retrieval,zeroshot]"], "no option zeroshot; did you mean zero_shot?"),
    "part of an option": (["dataset=_loader"], "dataset has no option _loader"),
    "group": (["audio_encodr=tiny"], "there is no key audio_encodr; did you mean audio_encoder"),
    "added group": (["+optimizer=adam"], "groups cannot be added; write optimizer=adam"),
    "added experiment": (["+experiment=debug"], "groups cannot be added; write experiment=debug"),
    "removed group": (["~optimizer"], "groups cannot be removed; write optimizer=OPTION with one of: adam, sgd"),
    "key": (["optimizer.lrr=3"], "there is no key optimizer.lrr with optimizer=adam; did you mean optimizer.lr?"),
    "key without its group": (["lr=3"], "there is no key lr; did you mean optimizer.lr?"),
    "plural": (["trainer.max_epoch=3"], "did you mean trainer.max_epochs"),
    "unknown key": (["trainer.colour=3"], "keys: trainer."),
    "key in a mapping": (["trainer={max_epoch: 3}"], "there is no key trainer.max_epoch;"),
    "key of another option": (["optimizer.momentum=0.5"], "there is no key optimizer.momentum with optimizer=adam"),
    "added key": (["+lr=3"], "there is no key lr; did you mean optimizer.lr?"),
    "forced key": (["++optimizer.lrr=3"], "there is no key optimizer.lrr"),
    "added key that exists": (["+optimizer.lr=3"], "keys cannot be added; write optimizer.lr=3"),
    "removed key": (["~optimizer.lr"], "keys cannot be removed; set optimizer.lr to another value"),
    "list item": (["optimizer.betas.2=0.9"], "there is no key optimizer.betas.2"),
    "missing value": (["dataset=clips"], "with dataset=clips; add dataset.root=VALUE (folder of recordings)"),
    "no value": (["seed"], "seed: not an override; write key=value"),
    "value with a sign": (["note=a=b"], "quote a value with special characters: 'note=\"a=b\"'"),
    "flag": (["--sweep"], "--sweep: unknown flag; --hydra-help lists the flags"),
    "flag between overrides": (["seed=1", "-m", "embed_dim=2"], "embed_dim=2: write flags before or after all"),
    "sweep without -m": (["seed=0,1"], "several values are a sweep; add -m, or write a list as 'seed=[0,1]'"),
    "range without -m": (["seed=range(1,3)"], "several values are a sweep; add -m"),
    "interval without -m": (["seed=interval(1,3)"], "several values are a sweep; add -m hydra/sweeper=optuna"),
    "interval of a grid": (["-m", "seed=interval(1,3)"], "an interval is searched; add hydra/sweeper=optuna"),
    "upper end": (["-m", "hydra/sweeper=optuna", "embed_dim=interval(4,8.5)"], "embed_dim must be an integer"),
    "type of an interval": (["-m", "hydra/sweeper=optuna", "optimizer.betas=interval(0,1)"], "must be a list"),
    "key of an interval": (["-m", "hydra/sweeper=optuna", "optimizer.lrr=interval(0,1)"], "did you mean optimizer.lr?"),
    "sweeper": (["-m", "hydra/sweeper=optunaa", "seed=1,2"], "has no option optunaa; did you mean optuna?; options:"),
    "key of Hydra": (["-m", "hydra.sweeper.param=3", "seed=1,2"], "did you mean hydra.sweeper.params?"),
    "key of a sweeper": (["hydra/sweeper=optuna", "hydra.sweeper.n_trial=3"], "did you mean hydra.sweeper.n_trials?"),
    "function": (["-m", "optimizer.lr=tag(log, interva(1,2))"], "is no function interva; did you mean interval?"),
    "no trials": (["-m", "hydra/sweeper=optuna", "hydra.sweeper.n_trials=0", "seed=1,2"], "must be at least 1"),
    "empty range": (["-m", "seed=range(3,1)"], "it has no values; write range"),
    "option of a sweep": (["-m", "optimizer=adam,sdg"], "optimizer has no option sdg; did you mean sgd?"),
    "pattern of no option": (["-m", "optimizer=glob(x*)"], "no option of optimizer matches; options: adam, sgd"),
    "key of one option of a sweep": (["-m", "optimizer=adam,sgd", "optimizer.momentum=0.9"], "with optimizer=adam"),
    "missing value of a sweep": (["-m", "dataset=tones,clips"], "dataset.root must be set with dataset=clips"),
    "key of a study": (["experiment=misspelt_study"], "there is no key sed; did you mean seed?"),
    "override of a study": (["experiment=study", "optimizer.lr=x"], "optimizer.lr must be a number"),
    "override with --cfg": (["--cfg", "job", "lr=3"], "there is no key lr"),
}  # fmt: skip


@pytest.mark.parametrize(("argv", "message"), REJECTED.values(), ids=REJECTED)
def test_override_is_rejected(argv: list[str], message: str, conf: Path) -> None:
    with pytest.raises(ValueError) as error:
        check_overrides(argv, config_dir=conf, config_name="config")
    assert message in str(error.value)


@pytest.mark.parametrize("argv", [["lr=3"], ["note=a=b"], ["audio_encoder=x"]], ids=str)
def test_error_is_one_line(argv: list[str], conf: Path) -> None:
    with pytest.raises(ValueError) as error:
        check_overrides(argv, config_dir=conf, config_name="config")
    assert "\n" not in str(error.value)


REQUIRED_OVER_A_VALUE = {
    "experiment": ("experiment/fine_tune", "# @package _global_\nresume: ???  # a checkpoint folder", [],
                   "resume must be set with experiment=fine_tune; add resume=VALUE (a checkpoint folder)"),
    "nested": ("experiment/fine_tune", "# @package _global_\ntrainer: {max_steps: \"???\"}", [],
               "trainer.max_steps must be set with experiment=fine_tune"),
    "variant": ("audio_encoder/deep", "defaults: [large, _self_]\nwidth: ???", ["audio_encoder=deep"],
                "audio_encoder.width must be set with audio_encoder=deep"),
    "mapping": ("experiment/fine_tune", "# @package _global_\ntrainer: ???", [], "trainer must be set with"),
    "sweep": ("experiment/fine_tune", "# @package _global_\nhydra: {sweeper: {params: {trainer.max_steps: \"???\"}}}",
              ["-m"], "trainer.max_steps must be set with experiment=fine_tune; add trainer.max_steps=VALUE"),
    "sweep that extends one": ("experiment/fine_tune", "# @package _global_\ndefaults: [study]\n"
                               "hydra: {sweeper: {params: {seed: \"???\"}}}", [], "seed must be set with"),
}  # fmt: skip


@pytest.mark.parametrize(
    ("option", "text", "argv", "message"), REQUIRED_OVER_A_VALUE.values(), ids=REQUIRED_OVER_A_VALUE
)
def test_option_requires_a_key_that_has_a_value(
    option: str, text: str, argv: list[str], message: str, tmp_path: Path
) -> None:
    conf = write_yamls(tmp_path)
    (conf / f"{option}.yaml").write_text(text)
    argv = [*argv, *(["experiment=fine_tune"] if option.startswith("experiment") else [])]
    with pytest.raises(ValueError) as error:
        check_overrides(argv, config_dir=conf, config_name="config")
    assert message in str(error.value)
    key = message.split()[0]
    value = {"resume": "x", "trainer": "{max_epochs: 1}"}.get(key, "1,2" if "-m" in argv else "1")
    check_overrides([*argv, f"{key}={value}"], config_dir=conf, config_name="config")


def test_later_yaml_sets_a_required_key(tmp_path: Path) -> None:
    conf = write_yamls(tmp_path)
    (conf / "audio_encoder" / "deep.yaml").write_text("defaults: [large, _self_]\nwidth: ???")
    (conf / "experiment" / "wide.yaml").write_text("# @package _global_\naudio_encoder: {width: 3}")
    check_overrides(["audio_encoder=deep", "experiment=wide"], config_dir=conf, config_name="config")


def test_required_key_is_composed_without_a_value(tmp_path: Path) -> None:
    conf = write_yamls(tmp_path)
    (conf / "experiment" / "fine_tune.yaml").write_text("# @package _global_\nresume: ???")
    with initialize_config_dir(str(conf), version_base=VERSION_BASE):
        assert OmegaConf.is_missing(compose("config", ["experiment=fine_tune"]), "resume")
        assert compose("config", ["experiment=fine_tune", "resume=x"]).resume == "x"


def test_config_dir_option_requires_a_value(conf: Path, tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text("# @package _global_\nresume: ???  # a run\n")
    with pytest.raises(ValueError, match=r"resume must be set with experiment=mine; add resume=VALUE \(a run\)"):
        check_overrides(["--config-dir", str(tmp_path), "experiment=mine"], config_dir=conf, config_name="config")


def test_config_dir_flag_adds_options(conf: Path, tmp_path: Path) -> None:
    (tmp_path / "optimizer").mkdir()
    (tmp_path / "optimizer" / "mine.yaml").write_text("speed: 1\n")
    argv = ["--config-dir", str(tmp_path), "optimizer=mine", "optimizer.speed=2"]
    check_overrides(argv, config_dir=conf, config_name="config")


def test_folder_of_a_job_is_named_by_what_is_swept():
    assert name_folder("optimizer.lr=0.001,seed=1") == "optimizer.lr=0.001,seed=1"


def test_folder_name_has_no_slash_and_fits_a_file_system():
    name = name_folder("init_from=/models/best," + "é" * 300)
    assert "/" not in name
    assert name.startswith("init_from=_models_best,é") and len(name.encode()) <= 255


DIFFERENT = [
    ("init_from=runs/a/b", "init_from=runs/a_b"), ('t=["a {}"]', 't=["a: {}"]'), ('t=["{}!"]', 't=["{}?"]'),
    ("dataset.name='a b'", "dataset.name=a_b_"), ("x" * 300 + "1", "x" * 300 + "2"),
    ("a=[1]", "a={1}"), ("a=b c", "a=b\tc"),
]  # fmt: skip


@pytest.mark.parametrize(("one", "other"), DIFFERENT)
def test_different_values_have_different_folders(one: str, other: str):
    assert name_folder(one) != name_folder(other)


def test_name_that_fits_is_kept_whole():
    assert name_folder("a=" + "x" * 250) == "a=" + "x" * 250


def test_every_value_of_a_sweep_is_in_a_returned_config(conf: Path) -> None:
    lines = ["-m", "seed=0,1,2", "optimizer=adam,sgd", "optimizer.lr=1,2", "embed_dim=4", "run_dir=x"]
    configs = check_overrides(lines, config_dir=conf, config_name="config")
    assert {config["seed"] for config in configs} == {0, 1, 2} and len(configs) == 3
    assert {"momentum" in config["optimizer"] for config in configs} == {True, False}
    assert {config["optimizer"]["lr"] for config in configs} == {1, 2} and configs[0]["embed_dim"] == 4


def test_misspelt_row_is_suggested_with_its_folder():
    with pytest.raises(ValueError, match="did you mean reference/msclap_2023_esc50[?]; options: .*, reference/"):
        check_overrides(
            ["experiment=reference/msclap_2023_esc5"],
            config_dir=Path(__file__).parents[1] / "conf",
            config_name="evaluate",
        )
