"""The type and value of an override are checked against the yaml."""

import shlex
from pathlib import Path

import pytest
from config_yamls import write_yamls
from hydra.core.override_parser.overrides_parser import OverridesParser

from clap.config import find_conf_dir
from clap.config.overrides import check_overrides
from clap.config.values import quote_override, shell_override


@pytest.fixture(scope="module")
def conf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    conf = write_yamls(tmp_path_factory.mktemp("project"))
    (conf / "experiment" / "2024_05.yaml").write_text("# @package _global_\nseed: 1")
    (conf / "experiment" / "number.yaml").write_text("# @package _global_\nresume: 2024_05")
    return conf


ACCEPTED = {
    "int for int": ["seed=3"],
    "int for float": ["optimizer.lr=1"],
    "list": ["optimizer.betas=[0.9,1]"],
    "list item": ["optimizer.betas.1=0.95"],
    "list for an empty list": ["freeze=[text_encoder]"],
    "mapping": ["trainer={max_epochs: 3}"],
    "any value for null": ["note={a: [1]}"],
    "value for a nullable key": ["trainer.max_steps=5"],
    "null for a nullable key": ["experiment=debug", "trainer.max_steps=null"],
    "null for a nullable mapping": ["audio_encoder.spec_augment=null"],
    "path for pretrained": ["audio_encoder.pretrained=weights.pt"],
    "quoted number for a string": ["tracking.experiment='2024'"],
    "quoted number for a path": ["resume='2024_05'", "audio_encoder.pretrained='1e3'"],
    "interpolation": ["embed_dim=${seed}"],
    "interpolation of the job": ["tracking.experiment=${hydra:job.name}"],
}


@pytest.mark.parametrize("argv", ACCEPTED.values(), ids=ACCEPTED)
def test_value_is_accepted(argv: list[str], conf: Path) -> None:
    check_overrides(argv, config_dir=conf, config_name="config")


def test_list_for_an_empty_mapping_is_rejected_with_an_example() -> None:
    with pytest.raises(ValueError, match="evaluation_datasets must be a mapping, such as {} in the yaml"):
        check_overrides(["evaluation_datasets=[esc50]"], config_dir=find_conf_dir(), config_name="config")


REJECTED = {
    "string for float": (["optimizer.lr=abc"], "optimizer.lr must be a number, such as 0.001 in the yaml"),
    "float for int": (["trainer.max_epochs=1.5"], "trainer.max_epochs must be an integer, such as 1 in the yaml"),
    "string for int": (["seed=one"], "seed must be an integer"),
    "bool for int": (["seed=true"], "seed must be an integer"),
    "list for int": (["seed=[1]"], "seed must be an integer"),
    "null": (["seed=null"], "seed must be an integer"),
    "number for string": (["tracking.experiment=2024"], "a string, such as \"clap\" in the yaml; write 'tracking."),
    "underscores": (["tracking.experiment=2024_05"], "write 'tracking.experiment=\"2024_05\"'"),
    "exponent for a path": (["resume=1e3"], "resume must be a string or null; write 'resume=\"1e3\"'"),
    "number for a required path": (["dataset=clips", "dataset.root=2_1"], "a string; write 'dataset.root=\"2_1\"'"),
    "bool for a path": (["dataset=clips", "dataset.root=true"], "dataset.root=\"true\"'"),
    "list for a path": (["resume=[a, b]"], "write 'resume=\"[a, b]\"'"),
    "number among paths": (["-m", "resume=a,1_0"], "write 'resume=\"1_0\"'"),
    "number that is an option": (["experiment=2024_05"], "no option 202405; write 'experiment=\"2024_05\"'"),
    "missing value": (["resume=???"], "resume=???: give a value"),
    "string for list": (["optimizer.betas=x"], "write 'optimizer.betas=[x]'"),
    "list item's type": (["audio_encoder.depths=[2,1.5]"], "a list with items of the same type, such as [2, 2]"),
    "value for mapping": (["trainer=3"], "trainer must be a mapping"),
    "interpolated value": (["audio_encoder.width=wide"], "width must be an integer, such as 8 in the yaml"),
    "nullable key": (["trainer.max_steps=5.0"], "trainer.max_steps must be an integer or null"),
    "pretrained": (["audio_encoder.pretrained=3"], "audio_encoder.pretrained must be true or false or a string"),
    "below the minimum": (["embed_dim=0"], "embed_dim=0 must be at least 1"),
    "below the minimum in a sweep": (["-m", "optimizer.lr=1,-1"], "optimizer.lr=-1 must be at least 0"),
    "choice": (["trainer.precision=fp8"], "trainer.precision must be one of fp32, bf16, fp16"),
    "unresolved interpolation": (["embed_dim=${nothing}"], "the interpolation does not resolve"),
    "interpolation of another type": (["seed=${tracking.experiment}"], "seed must be an integer"),
    "empty path": (["resume="], "resume must not be empty; give a value, or remove the override"),
    "null for required value": (["dataset=clips", "dataset.root=null"], "dataset.root must not be null; give a value"),
    "last value of a sweep": (["-m", "seed=0,1,one"], "seed must be an integer"),
    "range of floats": (["-m", "seed=range(0,1,0.5)"], "seed must be an integer"),
}  # fmt: skip


@pytest.mark.parametrize(("argv", "message"), REJECTED.values(), ids=REJECTED)
def test_value_is_rejected(argv: list[str], message: str, conf: Path) -> None:
    with pytest.raises(ValueError) as error:
        check_overrides(argv, config_dir=conf, config_name="config")
    assert message in str(error.value)


def test_number_for_a_path_in_a_yaml_is_rejected(conf: Path) -> None:
    with pytest.raises(ValueError, match="resume: 202405 must be a string or null; quote it in the yaml"):
        check_overrides(["experiment=number"], config_dir=conf, config_name="config")


TEXTS = (
    "/home/josé/r", "/data/新/r", "/d/a=b,c", "/d/x (2021)", "/d/a&b", "/d/tom's", 'a"b', 'a\\', 'a\\"b\\\\', "", " a ",
    "2021", "2024_05", "1e3", ".5", "true", "Null", "nan", "[x]", "{a: b}", "a*?", "~/x", "sqlite:////d/x y.db", "#a",
)  # fmt: skip


@pytest.mark.parametrize("text", TEXTS)
def test_quoted_override_is_read_back_by_shell_and_hydra(text: str) -> None:
    (word,) = shlex.split(shell_override("tracking.uri", text))
    assert OverridesParser.create().parse_override(word).value() == text


def test_plain_text_is_not_quoted() -> None:
    assert quote_override("hydra.run.dir", "outputs/train/a-1.0") == "hydra.run.dir=outputs/train/a-1.0"
