"""Every yaml of conf/ composes, and its classes build."""

import inspect
from dataclasses import fields
from pathlib import Path

import pytest
import tomllib
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import get_class, instantiate
from omegaconf import OmegaConf
from torch import nn

from clap.audio_encoder.base import LogMelEncoder
from clap.config import flatten, read_config
from clap.config.build import build
from clap.config.compose import find_conf_dir
from clap.config.overrides import check_overrides
from clap.config.values import CHOICES, TYPES, choose_weights
from clap.dataset.dataset_settings import DatasetSettings
from clap.dataset.folds import Folds
from clap.evaluation.evaluator import Evaluator
from clap.model import Clap
from clap.parts import build_parts

CONF = find_conf_dir()
ROOTED = (
    "clotho", "audiocaps", "clotho_audiocaps", "wavcaps", "fsd50k", "urbansound8k", "esc50", "huggingface",
)  # fmt: skip
REQUIRED = {
    **dict.fromkeys(ROOTED, ["dataset.root=."]),
    "csv": ["dataset.root=.", "dataset.metadata=clips.csv"],
    "auto": ["text_encoder.name=x"],
    "distillation": ["loss.teachers=[teacher]"],
}


def options(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF / group).glob("*.yaml") if not path.stem.startswith("_"))


def compose_plain(overrides: list[str], name: str = "config") -> dict:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return read_config(compose(name, overrides))


def every_option() -> list[tuple[str, str]]:
    groups = sorted(path.name for path in CONF.iterdir() if path.is_dir())
    return [(group, option) for group in groups for option in options(group)]


@pytest.mark.parametrize(("group", "option"), every_option())
def test_option_composes(group: str, option: str):
    choice = f"{group}=[{option}]" if group == "evaluation" else f"{group}={option}"
    extra = [] if group == "experiment" else REQUIRED.get(option, [])
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("config", [choice, *extra])
    assert config.trainer.max_epochs >= 1


@pytest.mark.parametrize(("group", "option"), every_option())
def test_option_starts_with_a_comment(group: str, option: str):
    lines = (CONF / group / f"{option}.yaml").read_text().splitlines()
    first = lines[1 if lines[0].startswith("# @package") else 0]
    assert first.startswith("# "), f"conf/{group}/{option}.yaml: begin with a comment that says what it is"


@pytest.mark.parametrize("text_encoder", [name for name in options("text_encoder") if name != "auto"])
def test_text_encoder_builds_on_the_meta_device(text_encoder: str):
    trained = [] if text_encoder.endswith("_nano") else ["text_encoder.pretrained=false"]
    config = compose_plain([f"text_encoder={text_encoder}", *trained])
    with torch.device("meta"):
        encoder = build(config["text_encoder"], nn.Module)
    ids = torch.zeros(2, 5, dtype=torch.long, device="meta")
    assert encoder(ids, torch.ones_like(ids, dtype=torch.bool)).shape == (2, encoder.output_dim)


@pytest.mark.parametrize("audio_encoder", options("audio_encoder"))
def test_audio_encoder_builds_on_the_meta_device_with_its_projection(audio_encoder: str):
    config = compose_plain([f"audio_encoder={audio_encoder}", "embed_dim=32"])
    with torch.device("meta"):
        encoder, _, projection, _ = build_parts(config)
        num_samples = round(encoder.window * encoder.sample_rate)
        waveform = torch.zeros(2, num_samples)
        if isinstance(encoder, LogMelEncoder):  # its fusion reads lengths, which have no values here
            views = encoder.frontend(waveform)[:, None]
            features = encoder.eval().encode(views, torch.zeros(2, dtype=torch.bool))
        else:
            features = encoder.eval()(waveform, torch.full((2,), num_samples))
        assert projection(features).shape == (2, 32)


@pytest.mark.parametrize("audio_encoder", ["htsat_nano", "cnn14_nano"])
@pytest.mark.parametrize("text_encoder", ["roberta_nano", "gpt2_nano"])
@pytest.mark.parametrize("loss", ["sigmoid", "symmetric_cross_entropy"])  # the others have tests of their own
@pytest.mark.parametrize("optimizer", options("optimizer"))
def test_nano_options_take_a_training_step(audio_encoder: str, text_encoder: str, loss: str, optimizer: str):
    options = {"audio_encoder": audio_encoder, "text_encoder": text_encoder, "loss": loss, "optimizer": optimizer}
    overrides = [f"{group}={option}" for group, option in options.items()]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("config", [*overrides, "audio_encoder.frontend.window=2.0"])
    config = read_config(cfg)
    clap = Clap.from_config(config)
    criterion = build(config["loss"], nn.Module)
    stepper, _ = instantiate(cfg.optimizer)(clap, criterion, total_steps=1)
    clap.text_encoder.tokenizer.train(["a dog barks", "rain falls"])
    ids, mask = clap.text_encoder.tokenize(["a dog barks", "rain falls"])
    before = {name: parameter.clone() for name, parameter in clap.named_parameters()}
    audio, text, scale = clap(torch.randn(2, 32000), torch.tensor([32000, 12000]), ids, mask)
    criterion(audio, text, scale, torch.arange(2)).backward()
    stepper.step()
    after = dict(clap.named_parameters())
    moved = {name.split(".")[0] for name in after if not torch.equal(after[name], before[name])}
    assert {"audio_encoder", "text_encoder", "audio_projection", "text_projection"} <= moved
    assert "logit_scale" in moved or loss not in ("symmetric_cross_entropy", "sigmoid")


def test_keys_without_a_value_have_a_type():
    for path in sorted(CONF.rglob("*.yaml")):
        group = ".".join(path.parent.relative_to(CONF).parts).removeprefix("experiment")
        for key, value in flatten(OmegaConf.to_container(OmegaConf.load(path)), group):
            if value in (None, "???") and "defaults" not in key:
                names = {key, key.rpartition(".")[2]}
                assert names & (TYPES.keys() | CHOICES.keys()), (
                    f"{path.name}: add {key} to TYPES in clap/config/values.py"
                )


def test_evaluators_build():
    config = compose_plain([f"evaluation=[{','.join(options('evaluation'))}]"])
    assert all(isinstance(build(node, Evaluator), Evaluator) for node in config["evaluation"].values())


@pytest.mark.parametrize("evaluation", options("evaluation"))
def test_evaluator_has_the_defaults_of_the_yaml(evaluation: str):
    node = compose_plain([f"evaluation=[{evaluation}]"])["evaluation"][evaluation]
    parameters = inspect.signature(get_class(node.pop("_target_"))).parameters
    values = {name: parameter.default for name, parameter in parameters.items()}
    defaults = {name: value for name, value in values.items() if value is not inspect.Parameter.empty}
    assert node.keys() == parameters.keys()
    for name, value in defaults.items():
        assert node[name] == (list(value) if isinstance(value, tuple) else value)


STUDIES_OF_WEIGHTS = ("encoder_ablation_full", "wu2023_encoders")


@pytest.mark.parametrize("study", STUDIES_OF_WEIGHTS)
@pytest.mark.parametrize("encoder", ["cnn14", "htsat_tiny_audioset"])
def test_study_of_weights_compares_encoders_trained_on_labels(study: str, encoder: str):
    given = ["dataset.root=.", "htsat_checkpoint=HTSAT_AudioSet_Saved_1.ckpt"]
    node = compose_plain([f"experiment={study}", f"audio_encoder={encoder}", *given])["audio_encoder"]
    source = choose_weights("audio_encoder", node["pretrained"], node["name"])
    assert "HTSAT_AudioSet" in source or "Cnn14_mAP" in source
    assert (node["frontend"]["sample_rate"], node["frontend"]["hop_length"]) == (32000, 320)


@pytest.mark.parametrize("study", STUDIES_OF_WEIGHTS)
def test_study_of_weights_requires_its_checkpoint(study: str):
    with pytest.raises(ValueError, match=f"htsat_checkpoint must be set with experiment={study}"):
        check_overrides([f"experiment={study}", "dataset.root=."], config_dir=CONF, config_name="config")


def test_debug_composes_with_every_dataset():
    for dataset in options("dataset"):
        config = compose_plain(["experiment=debug", f"dataset={dataset}", *REQUIRED.get(dataset, [])])
        assert config["dataset"]["batch_size"] == 4


def test_evaluate_requires_only_a_checkpoint():
    config = compose_plain(["checkpoint=x"], name="evaluate")
    assert not {"dataset", "evaluation"} & set(config)


@pytest.mark.parametrize("dataset", options("dataset"))
def test_dataset_chooses_its_evaluators_unless_they_are_given(dataset: str):
    overrides = [f"dataset={dataset}", *REQUIRED.get(dataset, [])]
    own = {"fsd50k": ["retrieval", "multi_label"]} | dict.fromkeys(("esc50", "urbansound8k"), ["zero_shot"])
    assert list(compose_plain(overrides)["evaluation"]) == own.get(dataset, ["retrieval"])
    given = compose_plain(["checkpoint=x", "evaluation=[zero_shot]", *overrides], name="evaluate")
    assert list(given["evaluation"]) == ["zero_shot"]
    if dataset not in ("csv", "huggingface", "shards"):  # own data is evaluated as the checkpoint was
        evaluated = compose_plain(["checkpoint=x", *overrides], name="evaluate")
        assert list(evaluated["evaluation"]) == own.get(dataset, ["retrieval"])


def test_readme_and_docs_name_every_option():
    root = Path(__file__).parents[1]
    text = "\n".join(page.read_text() for page in (root / "README.md", *(root / "docs").glob("*.md")))
    for group in sorted(path.name for path in CONF.iterdir() if path.is_dir()):
        absent = [option for option in options(group) if f"`{option}`" not in text]
        assert not absent, f"{group}: name {', '.join(absent)} in docs/training.md"


@pytest.mark.parametrize("dataset", options("dataset"))
def test_corpus_and_settings_have_the_defaults_of_the_yaml(dataset: str):
    config = compose_plain([f"dataset={dataset}", *REQUIRED.get(dataset, [])])["dataset"]
    corpus_class = get_class(config["_target_"])
    defaults = {name: found.default for name, found in inspect.signature(corpus_class).parameters.items()}
    if issubclass(corpus_class, Folds):  # None stands for this
        defaults |= {"max_duration": corpus_class.max_duration}
    defaults |= {field.name: field.default for field in fields(DatasetSettings)}
    free = [name for name, default in defaults.items() if default is inspect.Parameter.empty]
    free += ["num_workers"] * (dataset == "synthetic") + ["root", "weights"] * (
        dataset in ("clotho_audiocaps", "mixture")
    )
    expected = {name: list(value) if isinstance(value, tuple) else value for name, value in defaults.items()}
    assert {key: config[key] for key in config if key not in ("_target_", *free)} == {
        name: value for name, value in expected.items() if name not in free
    }


def test_package_has_every_folder_of_code_and_of_yamls():
    root = CONF.parent
    listed = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    code = [path for name in ("clap", "hydra_plugins") for path in root.glob(f"{name}/**/*.py")]
    folders = {".".join(path.relative_to(root).parts[:-1]) for path in code}
    folders |= {".".join(("clap", *path.relative_to(root).parts[:-1])) for path in CONF.rglob("*.yaml")}
    assert set(listed) == folders - {"hydra_plugins"}
