"""What MLflow shows of a training run: its name, color, factors, tags and description."""

import zlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from filelock import FileLock
from hydra.core.hydra_config import HydraConfig

from clap.atomic import read_json, write_json
from clap.plotting import PALETTE, pick_color
from clap.run_folder import LOCK, SWEEP_FILE
from clap.study.factors import GROUPS, SEED, drop_repeats
from clap.study.job import THEN, job_tags, name_job, name_source, read_swept_levels
from clap.tracking.description import COLOR, NOTE, describe

MODEL = ("audio_encoder", "text_encoder", "fusion")
DEFAULT_FUSION = "none"  # not in the name of a run
NO_TEXT = "none"  # the text encoder of a classifier


@dataclass(frozen=True)
class RunDescription:
    """Name, tags and factors of a run in MLflow.

    Attributes:
        factors: options of groups, the seed and swept keys, logged as parameters under these short names.
        what: the first sentence of its description.
    """

    name: str
    tags: dict[str, Any]
    factors: dict[str, str]
    what: str

    def note(self, result: str = "") -> str:
        """The description in Markdown."""
        hydra = HydraConfig.get()
        command = ["python", f"{hydra.job.name}.py", *hydra.overrides.task]
        return describe(self.what, command=command, folder=Path(hydra.runtime.output_dir), result=result)


def describe_run(
    settings: Mapping[str, Any], *, options: Mapping[str, str] = {}, origin: Mapping[str, Sequence[str]] = {}
) -> RunDescription:
    """Describe the training run of the current Hydra job.

    Args:
        settings: the settings that its result depends on, {dotted key: value}.
        options: the options of the model's encoders and fusion, if they are not those that were composed.
        origin: commits and machines, in order; more than one if the run was resumed with others.
    """
    choices, init_from = HydraConfig.get().runtime.choices, settings.get("init_from")
    (job, tags), levels = job_tags(), read_swept_levels()
    factors = {group: choices[group] for group in GROUPS if group in choices} | dict(options)
    factors |= {SEED: str(settings.get(SEED))} | {key: level for key, level in levels.items() if key not in factors}
    name = name_run(factors, levels, groups=choices, init_from=init_from)
    if job is None:
        color = hash_name(name.rpartition("-s")[0])  # equal for all seeds
    else:
        color = find_index(Path(HydraConfig.get().sweep.dir), levels)
    tags = {"init_from": init_from} | tags | factors | {"role": "train", COLOR: pick_color(color)}
    tags |= {key: THEN.join(names) or None for key, names in origin.items()}
    described = RunDescription(name, tags, factors, describe_model(factors, settings))
    return replace(described, tags=tags | {NOTE: described.note()})


def describe_evaluation(source: str, *, corpus: str, split: str) -> RunDescription:
    """Describe the run of `evaluate.py` on a checkpoint."""
    name = f"{name_source(source)}-{corpus}-{split}"
    what = f"Evaluates `{source}` on the {split} split of **{corpus}**."
    tags = {"role": "evaluate", "dataset": corpus, "checkpoint": source, COLOR: pick_color(hash_name(source))}
    described = RunDescription(name, tags, {"dataset": corpus}, what)
    return replace(described, tags=tags | {NOTE: described.note()})


def hash_name(name: str) -> int:
    """Index of a color; of a run outside of a sweep, the same in every process."""
    return zlib.crc32(name.encode()) % len(PALETTE)


def name_run(
    factors: Mapping[str, str], levels: Mapping[str, str], *, groups: Collection[str], init_from: str | None
) -> str:
    """Name of a run by model, data, initial weights, swept keys and seed: `htsat_nano-gpt2_nano-esc50-from-630k-s0`."""
    fusion = factors.get("fusion") if factors.get("fusion") != DEFAULT_FUSION else None
    text = factors.get("text_encoder") if factors.get("text_encoder") != NO_TEXT else "classifier"
    parts = [factors.get("audio_encoder"), text, fusion, factors.get("dataset")]
    parts += [None if init_from is None else f"from-{name_source(init_from)}"]
    named = (*MODEL, "dataset", "init_from")
    rest = {key: level for key, level in levels.items() if key not in named} | {SEED: factors[SEED]}
    return "-".join([*filter(None, parts), name_job(rest, groups=groups)])


def describe_model(factors: Mapping[str, str], settings: Mapping[str, Any]) -> str:
    """`Trains **htsat_nano** and **gpt2_nano** on **esc50** from random weights: fusion none, loss ..., seed 0.`"""
    named = [f"**{factors[group]}**" for group in MODEL[:2] if factors.get(group) not in (None, NO_TEXT)]
    model = " and ".join(named) or "a model"
    model += " as a classifier" if factors.get("text_encoder") == NO_TEXT else ""
    data = f" on **{factors['dataset']}**" if "dataset" in factors else ""
    weights = {group: settings.get(f"{group}.pretrained") for group in MODEL[:2]}
    pretrained = [group if name is True else f"{group} `{name}`" for group, name in weights.items() if name]
    source = settings.get("init_from")
    start = f"`{source}`" if source is not None else f"pretrained {' and '.join(pretrained)}" if pretrained else ""
    rest = ", ".join(f"{key} {factors[key]}" for key in factors if key not in (*MODEL[:2], "dataset"))
    return f"Trains {model}{data} from {start or 'random weights'}: {rest}."


def find_index(sweep_dir: Path, levels: Mapping[str, str]) -> int:
    """Index of a job's configuration in its sweep: as listed by the sweep, otherwise in order of arrival."""
    own = drop_repeats(levels)
    with FileLock(sweep_dir / LOCK):
        sweep = read_json(sweep_dir / SWEEP_FILE)
        known = sweep.get("configurations", [])
        if own not in known:
            known = [*known, own]
            write_json(sweep_dir / SWEEP_FILE, sweep | {"configurations": known})
    return known.index(own)
