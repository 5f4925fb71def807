"""Checks of a run's config that need neither torch nor Hydra, before slow imports and before the jobs of a sweep."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clap import checkpoint
from clap.config.values import TRAINED_PARTS, check_name
from clap.dataset.dataset_settings import read_dataset_settings
from clap.dataset.exclude import read_exclusions
from clap.published.hub import is_published
from clap.training.trainer_settings import TrainerSettings


def check_run(config: Mapping[str, Any]) -> None:
    """Check the settings of a run, and that the files exist that it starts from.

    Raises:
        ValueError: a setting is out of range.
        FileNotFoundError: a checkpoint or a list of clips does not exist.
    """
    TrainerSettings(**config["trainer"])
    settings = read_dataset_settings(config["dataset"])
    if unknown := [name for name in config["freeze"] if name not in TRAINED_PARTS]:
        raise ValueError(f"freeze={config['freeze']}: {unknown[0]!r} is not one of {', '.join(TRAINED_PARTS)}")
    if "name" in config["dataset"]:
        check_name(config["dataset"]["name"], "dataset.name")
    if settings.exclude is not None:
        read_exclusions(settings.exclude)
    if config["resume"] is not None:  # the run's checkpoint replaces the others
        checkpoint.find_resume(config["resume"], Path("nowhere"))
        return
    audio, text = config["audio_encoder"], config["text_encoder"]
    check_source("init_from", config["init_from"])
    check_source("audio_encoder.pretrained", audio.get("pretrained"))
    for key in ("pretrained", "tokenizer"):
        check_folder(f"text_encoder.{key}", text.get(key))


def check_source(key: str, source: str | bool | None) -> None:
    """FileNotFoundError if a checkpoint is neither a folder of this package nor possibly a published one."""
    if isinstance(source, str) and not is_published(source):
        try:
            checkpoint.find_file(checkpoint.find_best(Path(source)), checkpoint.CONFIG)
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{key}: {error}") from None


def check_folder(key: str, source: str | bool | None) -> None:
    """FileNotFoundError if a local path does not exist; other names may be of the Hugging Face hub."""
    if isinstance(source, str) and source.startswith(("/", "./", "../", "~")) and not Path(source).exists():
        raise FileNotFoundError(
            f"{key}={source}: no such folder; correct the path, or give the name of a hub repository"
        )
