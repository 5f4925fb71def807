"""The recipes of docs/extending.md, followed literally in a copy of the repository."""

import json
import re
import shutil
from pathlib import Path

import pytest
import soundfile
import yaml
from conftest import CAPTIONS, make_tone
from script import ROOT, run_script

LOSS = '''

class Cosine(nn.Module):
    """One minus the cosine of each pair."""

    def __init__(self, *, init_logit_scale: float = 1.0) -> None:
        super().__init__()
        self.init_logit_scale = init_logit_scale

    def forward(self, audio_embedding: Tensor, text_embedding: Tensor, logit_scale: Tensor, clip_ids: Tensor) -> Tensor:
        return logit_scale * (1 - (audio_embedding * text_embedding).sum(dim=1).mean())
'''


def read_recipe(heading: str) -> dict[str, str]:
    """The Python and yaml snippets of a section of docs/extending.md."""
    sections = re.split(r"^## ", (ROOT / "docs" / "extending.md").read_text(), flags=re.MULTILINE)
    section = next(section for section in sections if section.startswith(f"{heading}\n"))
    return dict(re.findall(r"^```(python|yaml)\n(.*?)^```$", section, flags=re.MULTILINE | re.DOTALL))


def write(checkout: Path, group: str, name: str, recipe: dict[str, str]) -> None:
    """Write a recipe's module and yaml."""
    if "python" in recipe:
        (checkout / "clap" / group / f"{name}.py").write_text(recipe["python"])
    (checkout / "conf" / group / f"{name}.yaml").write_text(recipe["yaml"])


def insert_after(path: Path, line: str, new: str) -> None:
    """Add lines after the only occurrence of `line`."""
    text = path.read_text()
    assert text.count(line) == 1, f"{path.name}: {line}"
    path.write_text(text.replace(line, line + new))


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    for name in ("clap", "conf"):
        shutil.copytree(ROOT / name, tmp_path / name)  # with __pycache__, which saves seconds
    for name in ("train.py", "evaluate.py"):
        shutil.copy(ROOT / name, tmp_path)
    return tmp_path


def train(checkout: Path, *overrides: str) -> str:
    """Train in the copy, and return the log."""
    arguments = ["experiment=debug", "tracking.uri=null", "hydra.run.dir=run", *overrides]
    result = run_script(checkout / "train.py", *arguments)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def test_encoder_corpus_evaluator_loss_option_and_key_are_added_in_the_named_places(checkout: Path):
    write(checkout, "audio_encoder", "foo", read_recipe("An audio encoder on the log-mel"))
    write(checkout, "dataset", "foo", read_recipe("A corpus"))
    write(checkout, "evaluation", "foo", read_recipe("An evaluator, a metric"))
    with (checkout / "clap" / "loss.py").open("a") as file:
        file.write(LOSS)
    (checkout / "conf" / "loss" / "foo.yaml").write_text("_target_: clap.loss.Cosine\ninit_logit_scale: 1.0\n")

    training, data = checkout / "clap" / "training", checkout / "clap" / "dataset"
    insert_after(training / "trainer_settings.py", "    save_every: int | None = None\n", "    greeting: str = ''\n")
    insert_after(checkout / "conf" / "config.yaml", "\ntrainer:\n", "  greeting: ''\n")
    line = "        reset_peak_memory()\n"
    insert_after(training / "trainer.py", line, "        log.info('greeting: %s', self.settings.greeting)\n")
    insert_after(data / "dataset_settings.py", '    captions: str = "sample"\n', "    first_clip: int = 0\n")
    insert_after(checkout / "conf" / "dataset" / "_loader.yaml", "num_workers: 2", "\nfirst_clip: 0")
    insert_after(data / "clips.py", "listed = [own.select(np.arange(", "settings.first_clip, ")

    (checkout / "data" / "audio").mkdir(parents=True)
    for split in ("train", "val", "test"):
        (checkout / "data" / f"{split}.csv").write_text("file,caption\n")
        for number, caption in enumerate(CAPTIONS[:8]):
            name = f"{split}{number}.wav"
            soundfile.write(checkout / "data" / "audio" / name, make_tone(200 * number + 200, 1.0), 16_000)
            with (checkout / "data" / f"{split}.csv").open("a") as file:
                file.write(f'{name},"{caption}"\n')

    groups = ["audio_encoder=foo", "dataset=foo", "dataset.root=data", "evaluation=[foo]", "loss=foo"]
    log = train(checkout, *groups, "trainer.greeting=hello", "dataset.first_clip=2", "embed_dim=16")
    metrics = json.loads((checkout / "run" / "metrics.json").read_text())
    assert set(metrics) == {"val/foo/foo/cosine", "test/foo/foo/cosine"}
    protocols = json.loads((checkout / "run" / "evaluation" / "protocol.json").read_text())
    assert -1 <= protocols["test-foo-foo"]["chance"]["test/foo/foo/cosine"] <= 1
    assert "greeting: hello" in log and "6 of 6" in log
    config = yaml.safe_load((checkout / "run" / "checkpoints" / "best" / "config.yaml").read_text())
    assert config["audio_encoder"]["_target_"] == "clap.audio_encoder.foo.Foo"


@pytest.mark.slow
def test_raw_waveform_encoder_and_yaml_variant_train(checkout: Path):
    write(checkout, "audio_encoder", "foo", read_recipe("An audio encoder on the waveform"))
    train(checkout, "audio_encoder=foo", "audio_encoder.window=1.0")
    write(checkout, "audio_encoder", "cnn14_small", read_recipe("A variant of an encoder"))
    train(checkout, "audio_encoder=cnn14_small", "audio_encoder.frontend.window=1.0", "hydra.run.dir=small")
