"""Registers a model in MLflow, ready to be served: `python -m clap register CHECKPOINT`.

A version is a folder with a copy of the checkpoint and of this package, pinned requirements and a signature. It
contains no pickle and does not depend on a checkout. Every call names its store; MLflow's global state is not changed.
"""

import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import pandas as pd

from clap import checkpoint
from clap.atomic import read_json
from clap.model import Clap
from clap.run_folder import METRICS, RECORD, find_outside
from clap.tracking.serve import DEFAULT_PARAMS
from clap.tracking.store import (
    DEFAULT_STORE,
    Metric,
    MlflowClient,
    MlflowException,
    error_summary,
    find_or_create_experiment,
    find_recorded_uri,
    open_store,
    resolve_uri,
)
from clap.tracking.tracker import recorded_run
from clap.tracking.upload import has_run

from mlflow import pyfunc  # isort: skip
from mlflow.entities import LoggedModel, LoggedModelOutput  # isort: skip
from mlflow.entities.model_registry import ModelVersion  # isort: skip
from mlflow.models import Model, ModelSignature  # isort: skip
from mlflow.types.schema import ColSpec, ParamSchema, ParamSpec, Schema  # isort: skip

EXPERIMENT = "clap"  # for models whose run is not in the store
# Imports of the served code, pinned to the versions that are installed at registration.
REQUIREMENTS = (
    *("mlflow", "torch", "torchaudio", "torchvision", "transformers", "tokenizers", "safetensors", "timm"),
    *("soundfile", "soxr", "numpy", "pandas", "tqdm", "omegaconf", "pyyaml", "psutil", "filelock"),
)


def register(ckpt: Path, *, name: str = "clap", uri: str | None = None) -> ModelVersion:
    """Register a checkpoint as the next version of a registered model.

    If the run of the checkpoint is in the store, the version is linked to it, and a best checkpoint gets its metrics.

    Args:
        uri: store; defaults to the one that the run was logged to, or else outputs/mlflow.db.

    Raises:
        FileNotFoundError, ValueError: the checkpoint does not load, uri is invalid, or the store refuses the name.
        ConnectionError: the store cannot be reached.
    """
    folder, run_dir = find_checkpoint_and_run(ckpt)
    uri = choose_store(ckpt, uri)
    with tempfile.TemporaryDirectory() as temporary:
        copy = copy_checkpoint(folder, Path(temporary, "checkpoint"))
        Clap.from_ckpt(copy)  # raises if it does not load
        client = open_store(uri)
        run_id = recorded_run(run_dir, uri)
        run_id = run_id if has_run(client, run_id, uri=uri) else None
        try:
            with ignore_existing():
                client.create_registered_model(name)
            model = log_checkpoint(client, copy, name=name, uri=uri, run_id=run_id)
            if run_id and folder.name == "best":
                copy_run_metrics(client, model, read_json(run_dir / METRICS))
            return create_version(client, model, name=name, source=folder)
        except MlflowException as error:
            raise ValueError(
                f"{uri} refuses {folder} as a version of {name!r} ({error_summary(error)}); set another --name or --uri"
            ) from error


def find_checkpoint_and_run(ckpt: Path) -> tuple[Path, Path]:
    """The folder of a checkpoint, and the folder of its run."""
    folder = checkpoint.find_best(Path(ckpt).resolve())
    return folder, folder.parent.parent if folder.parent.name == "checkpoints" else folder


def choose_store(ckpt: Path, uri: str | None) -> str:
    """The store to register in: `uri`, or else the store of the run, or else the default."""
    run_dir = find_checkpoint_and_run(ckpt)[1]
    uri = resolve_uri(uri or find_recorded_uri(run_dir, read_json(run_dir / RECORD)) or DEFAULT_STORE)
    if uri is None:
        raise ValueError(f"--uri none is not a store; set it to a path like {DEFAULT_STORE}, or to http://HOST:PORT")
    return uri


def copy_checkpoint(folder: Path, target: Path) -> Path:
    """Copy the files that load the model, without the training state.

    Raises:
        ValueError: a file of the tokenizer is a link out of its folder, to what may be private.
    """
    target.mkdir()
    for name in (checkpoint.CONFIG, checkpoint.WEIGHTS):
        shutil.copy(checkpoint.find_file(folder, name), target)
    tokenizer = checkpoint.find_file(folder, checkpoint.TOKENIZER)
    if (link := find_outside(tokenizer, tokenizer)) is not None:
        raise ValueError(f"{link} is a link out of {tokenizer}; replace it by the file of the tokenizer")
    shutil.copytree(tokenizer, target / checkpoint.TOKENIZER)
    return target


@contextmanager
def ignore_existing() -> Iterator[None]:
    """Ignore the error for an existing registered model."""
    try:
        yield
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def log_checkpoint(client: MlflowClient, copy: Path, *, name: str, uri: str, run_id: str | None) -> LoggedModel:
    """Write the folder of a logged model and upload it to the artifacts of the run's experiment."""
    experiment_id = (
        client.get_run(run_id).info.experiment_id if run_id else find_or_create_experiment(client, EXPERIMENT, uri=uri)
    )
    model = client.create_logged_model(experiment_id, name, source_run_id=run_id)
    if run_id:
        client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step=0)])
    written = copy.with_name("model")
    pyfunc.save_model(
        written,
        loader_module="clap.tracking.serve",
        data_path=str(copy),
        code_paths=[str(Path(__file__).resolve().parents[1])],
        mlflow_model=Model(model.artifact_location, run_id, model_uuid=model.model_id, model_id=model.model_id),
        signature=make_signature(),
        input_example=pd.DataFrame({"text": ["a dog barks"]}),
        pip_requirements=[f"{package}=={version(package).partition('+')[0]}" for package in REQUIREMENTS],
    )
    client.log_model_artifacts(model.model_id, str(written))
    return client.finalize_logged_model(model.model_id, "READY")


def make_signature() -> ModelSignature:
    """Columns and parameters of `ServedClap.predict`; the columns of its answers depend on class_names."""
    columns = [ColSpec("string", name, required=False) for name in ("text", "audio")]
    params = [ParamSpec(name, "string", default, shape=(-1,)) for name, default in DEFAULT_PARAMS.items()]
    return ModelSignature(inputs=Schema(columns), params=ParamSchema(params))


def copy_run_metrics(client: MlflowClient, model: LoggedModel, metrics: Mapping[str, float]) -> None:
    """Link metric values of the run to the model; no value is added to the run."""
    run_id = model.source_run_id
    points = [
        next((point for point in reversed(client.get_metric_history(run_id, name)) if point.value == value), None)
        for name, value in metrics.items()
    ]
    found = [Metric(p.key, p.value, p.timestamp, p.step, model_id=model.model_id) for p in points if p is not None]
    client.log_batch(run_id, metrics=found)


def create_version(client: MlflowClient, model: LoggedModel, *, name: str, source: Path) -> ModelVersion:
    """Create the next version of a registered model, tagged with the path of its checkpoint."""
    # A server requires the id of the model; a SQLite store would look it up in the globally set store.
    model_id = None if client.tracking_uri.startswith("sqlite:") else model.model_id
    found = client.create_model_version(
        name, model.artifact_location, model.source_run_id, tags={"checkpoint": str(source)}, model_id=model_id
    )
    versions = json.dumps([{"name": found.name, "version": found.version}])
    client.set_logged_model_tags(model.model_id, {"mlflow.modelVersions": versions})  # shown with the model in the UI
    return found
