"""Contrastive language-audio pretraining: train, compare, evaluate and use audio-text dual encoders."""

import importlib
from typing import Any

__version__ = "0.1.0"
__all__ = [
    "Clap",
    "ClapAudioClassifier",
    "ClapDataset",
    "ClapTrainer",
    "Evaluator",
    "SigmoidLoss",
    "SymmetricCrossEntropyLoss",
    "Tracker",
    "TrainerSettings",
    "export_onnx",
    "load_model",
    "open_loader",
    "push_to_hub",
    "write_release",
]

_HOMES = {
    "Clap": "clap.model",
    "ClapAudioClassifier": "clap.classifier",
    "ClapDataset": "clap.dataset.clips",
    "ClapTrainer": "clap.training.trainer",
    "Evaluator": "clap.evaluation.evaluator",
    "SigmoidLoss": "clap.loss",
    "SymmetricCrossEntropyLoss": "clap.loss",
    "Tracker": "clap.tracking.tracker",
    "TrainerSettings": "clap.training.trainer_settings",
    "export_onnx": "clap.release.onnx_export",
    "load_model": "clap.classifier",
    "open_loader": "clap.dataset.loader",
    "push_to_hub": "clap.release.push",
    "write_release": "clap.release.push",
}


def __getattr__(name: str) -> Any:
    """Import a public name on first use, so that importing one encoder imports neither MLflow nor the trainer."""
    if name not in _HOMES:
        raise AttributeError(f"module 'clap' has no attribute {name!r}; public names: {', '.join(__all__)}")
    return getattr(importlib.import_module(_HOMES[name]), name)
