"""Untrusted files: read as tensors and plain data, or refused in one line; no code in them is executed."""

import json
import os
import pickle
import struct
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import published_models as models
import pytest
import torch
import yaml
from safetensors.torch import save_file
from torch import Tensor, nn

from clap import Clap
from clap.published.files import Placeholder, read_json_file, read_pickle, read_state_dict
from clap.published.hub import fetch_source

WEIGHTS = {"a.weight": torch.arange(6.0).view(2, 3), "a.count": torch.tensor(3)}


class Touch:
    """An object that runs a command when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.system, (f"touch '{self.path}'",)


class Import(Touch):
    """An object that calls the function `name` with a path when it is unpickled."""

    def __init__(self, name: str, path: Path) -> None:
        super().__init__(path)
        self.name = name

    def __reduce__(self) -> tuple:
        module, _, attribute = self.name.rpartition(".")
        return getattr(sys.modules[module], attribute), (str(self.path),)


def refuse(path: Path, match: str | None = None) -> str:
    """The error message of a refused checkpoint, in one line."""
    with pytest.raises(ValueError, match=match) as error:
        Clap.from_ckpt(path)
    message = str(error.value)
    assert message.startswith(str(path)) and "\n" not in message and len(message) < 600
    return message


# Untrusted files


SAVES: dict[str, Callable[[object, Path], object]] = {
    "zip": torch.save,
    "old": lambda value, path: torch.save(value, path, _use_new_zipfile_serialization=False),
    "pickle": lambda value, path: path.write_bytes(pickle.dumps(value)),
    "pickle protocol 0": lambda value, path: path.write_bytes(pickle.dumps(value, protocol=0)),
}


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("save", SAVES.values(), ids=SAVES)
@pytest.mark.parametrize("name", ["a.pt", "a.ckpt", "a.bin", "a.safetensors"])
def test_pickle_that_runs_a_command_is_refused(tmp_path: Path, name: str, save: Callable) -> None:
    save({"state_dict": WEIGHTS, "hook": Touch(tmp_path / "ran")}, tmp_path / name)
    refuse(tmp_path / name)
    assert not (tmp_path / "ran").exists()


def test_message_names_the_import_of_the_pickle(tmp_path: Path) -> None:
    torch.save({"state_dict": WEIGHTS, "hook": Touch(tmp_path / "ran")}, tmp_path / "a.pt")
    message = refuse(tmp_path / "a.pt")
    assert "refused, it imports posix.system; no code was executed" in message or "nt.system" in message


@pytest.mark.parametrize("name", ["builtins.eval", "builtins.getattr", "torch.hub.load", "torch.load", "numpy.load"])
def test_other_functions_are_refused(tmp_path: Path, name: str) -> None:
    torch.save({"model": WEIGHTS, "hook": Import(name, tmp_path / "ran")}, tmp_path / "a.pt")
    refuse(tmp_path / "a.pt", "refused, it imports")


def test_pickle_in_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    torch.save({"hook": Touch(tmp_path / "ran")}, tmp_path / "pytorch_model.bin")
    refuse(tmp_path, "refused, it imports")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "target", ["os.system", "torch.hub.load", "clap.audio.torch.load", "clap.published.files.pickle"]
)
@pytest.mark.parametrize("part", ["audio_encoder", "text_encoder", "fusion", "projection"])
def test_config_that_names_foreign_code_is_refused(tmp_path: Path, part: str, target: str) -> None:
    parts = {name: {} for name in ("audio_encoder", "text_encoder", "fusion", "projection")}
    parts |= {"fusion": {"_target_": "clap.fusion.OneWindow"}, "embed_dim": 8, "init_logit_scale": 10.0}
    parts["projection"] = {"_target_": "clap.model.MLPProjection", "_partial_": True}
    frontend = {
        "_target_": "clap.audio.LogMelSpectrogram",
        "sample_rate": 16000,
        "window": 1.0,
        "hop_length": 160,
        "f_max": 8000.0,
    }
    parts["audio_encoder"] = {"_target_": "clap.audio_encoder.cnn14.Cnn14", "width": 1, "frontend": frontend}
    sizes = {
        "model_type": "roberta",
        "vocab_size": 60,
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
    }
    parts["text_encoder"] = {"_target_": "clap.text_encoder.TextEncoder", "pretrained": False, "model": sizes}
    parts[part] = {"_target_": target, "command": f"touch {tmp_path / 'ran'}", "_args_": [f"touch {tmp_path / 'ran'}"]}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(parts))
    (tmp_path / "tokenizer").mkdir()
    save_file(WEIGHTS, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=f"_target_ '{target}' is refused") as error:
        Clap.from_ckpt(tmp_path)
    assert "\n" not in str(error.value) and not (tmp_path / "ran").exists()


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("name", ["a.pt", "a.safetensors", "old.pt"])
def test_truncated_file_is_refused(tmp_path: Path, name: str, share: float) -> None:
    path, weights = tmp_path / name, {"a.weight": torch.ones(5000)}
    if name == "a.safetensors":
        save_file(weights, path)
    else:
        torch.save({"model": weights}, path, _use_new_zipfile_serialization=name == "a.pt")
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    refuse(path, "damaged|truncated")


@pytest.mark.parametrize("name", ["a.pt", "a.ckpt", "a.safetensors"])
def test_renamed_zip_is_refused(tmp_path: Path, name: str) -> None:
    with zipfile.ZipFile(tmp_path / name, "w") as archive:
        archive.writestr("archive/notes.txt", "text")
    refuse(tmp_path / name, "damaged")


@pytest.mark.parametrize(
    "text", ["", "<html>not found</html>", "version https://git-lfs.github.com/spec/v1\noid sha256:0"]
)
@pytest.mark.parametrize("name", ["a.pt", "a.safetensors"])
def test_text_is_refused(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    refuse(tmp_path / name, "damaged|truncated")


def write_safetensors(path: Path, header: bytes, *, length: int | None = None, data: bytes = b"\0" * 24) -> Path:
    path.write_bytes(struct.pack("<Q", len(header) if length is None else length) + header + data)
    return path


INCONSISTENT = {
    "offsets past the end": {"dtype": "F32", "shape": [2, 300], "data_offsets": [0, 2400]},
    "shape larger than its bytes": {"dtype": "F32", "shape": [2, 300], "data_offsets": [0, 24]},
    "huge shape": {"dtype": "F32", "shape": [2**62, 2**62], "data_offsets": [0, 24]},
    "offsets reversed": {"dtype": "F32", "shape": [2, 3], "data_offsets": [24, 0]},
    "negative offset": {"dtype": "F32", "shape": [2, 3], "data_offsets": [-24, 0]},
    "unknown type": {"dtype": "F33", "shape": [2, 3], "data_offsets": [0, 24]},
    "no offsets": {"dtype": "F32", "shape": [2, 3]},
}


@pytest.mark.parametrize("name", INCONSISTENT)
def test_inconsistent_safetensors_header_is_refused(tmp_path: Path, name: str) -> None:
    header = json.dumps({"a.weight": INCONSISTENT[name]}).encode()
    refuse(write_safetensors(tmp_path / "a.safetensors", header), "damaged or truncated")


@pytest.mark.parametrize("length", [0, 7, 10**6, 2**40, 2**64 - 1])
def test_safetensors_header_of_another_length_is_refused(tmp_path: Path, length: int) -> None:
    header = json.dumps({"a.weight": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}}).encode()
    refuse(write_safetensors(tmp_path / "a.safetensors", header, length=length), "damaged or truncated")


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")
@pytest.mark.parametrize(
    "value",
    [torch.eye(2).to_sparse(), torch.empty(2, device="meta"), torch.ones(2, dtype=torch.complex64)],
    ids=["sparse", "meta", "complex"],
)
def test_sparse_meta_and_complex_tensors_are_refused(tmp_path: Path, value: Tensor) -> None:
    torch.save({"a.weight": value}, tmp_path / "a.pt")
    refuse(tmp_path / "a.pt", "a.weight is .*; weights must be dense and real")


@pytest.mark.parametrize("value", [{}, [], 3, {"epoch": 3}, {"model": {"a": 1}}, {"state_dict": [torch.ones(2)]}])
def test_file_without_weights_is_refused(tmp_path: Path, value: object) -> None:
    torch.save(value, tmp_path / "a.pt")
    refuse(tmp_path / "a.pt", "no weights but .*; allowed: tensors at the top level, in `state_dict` or in `model`")


def test_config_that_is_not_a_mapping_is_refused(tmp_path: Path) -> None:
    for text in ("[1, 2]", '"os.system"', "{", "[" * 100_000, "\x00\xff"):
        (tmp_path / "config.json").write_text(text, encoding="latin-1")
        with pytest.raises(ValueError, match="config.json: (contains a|not readable as JSON)") as error:
            read_json_file(tmp_path / "config.json")
        assert "\n" not in str(error.value)


# Files that are read


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("wrapper", [None, "state_dict", "model"])
def test_weights_are_read_from_their_wrappers(tmp_path: Path, wrapper: str | None, prefix: str) -> None:
    weights = OrderedDict((f"{prefix}{key}", value) for key, value in WEIGHTS.items())
    torch.save({wrapper: weights, "epoch": 3} if wrapper else weights, tmp_path / "a.pt")
    read = read_state_dict(tmp_path / "a.pt")
    assert list(read) == list(WEIGHTS) and all(torch.equal(read[key], WEIGHTS[key]) for key in WEIGHTS)


@pytest.mark.parametrize("name", ["a.pt", "a.safetensors"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_are_converted_to_float32(tmp_path: Path, dtype: torch.dtype, name: str) -> None:
    weights = {"a": torch.tensor([1.5, -2.0], dtype=dtype), "n": torch.tensor(3)}
    (save_file if name == "a.safetensors" else torch.save)(weights, tmp_path / name)
    read = read_state_dict(tmp_path / name)
    assert read["a"].dtype == torch.float32 and read["a"].tolist() == [1.5, -2.0]
    assert read["n"].dtype == torch.long and read["n"].item() == 3


def test_numbers_of_numpy_are_read(tmp_path: Path) -> None:
    """LAION-CLAP and PANNs store metrics and a sampler's state with their weights."""
    ragged = np.array([[1, 2], [3]], dtype=object)
    sampler = {"best": np.float64(0.5), "flag": np.bool_(True), "indexes": np.arange(9), "per_class": ragged}
    torch.save({"model": WEIGHTS, "sampler": sampler, "state": np.random.RandomState(1).get_state()}, tmp_path / "a.pt")
    read = read_pickle(tmp_path / "a.pt")["sampler"]
    assert read["best"] == 0.5 and read["indexes"].tolist() == list(range(9)) and read["per_class"][1] == [3]


def test_array_of_hostile_objects_is_refused(tmp_path: Path) -> None:
    array = np.array([Touch(tmp_path / "ran")], dtype=object)
    torch.save({"model": WEIGHTS, "sampler": array}, tmp_path / "a.pt")
    refuse(tmp_path / "a.pt", "refused, it imports")
    assert not (tmp_path / "ran").exists()


def make_foreign(monkeypatch: pytest.MonkeyPatch, name: str, base: type = object) -> type:
    """A class of another project, importable while it is pickled only."""
    module_name, _, class_name = name.rpartition(".")
    foreign = type(class_name, (base,), {"__module__": module_name})
    module = ModuleType(module_name)
    setattr(module, class_name, foreign)
    monkeypatch.setitem(sys.modules, module_name, module)
    return foreign


CUSTOM_CLAP = {
    "clap.model.symmetric_cross_entropy.SymmetricCrossEntropyLoss": nn.Module,
    "clap.training.symmetric_cross_entropy.SymmetricCrossEntropyLoss": nn.Module,
    "clap.metrics.retrieval_metrics.EpochRetrievalMetrics": object,
    "clap.training.metrics.EpochMetrics": object,
}


@pytest.mark.parametrize("name", CUSTOM_CLAP)
def test_objects_of_custom_clap_become_placeholders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    with monkeypatch.context() as patch:
        foreign = make_foreign(patch, name, CUSTOM_CLAP[name])()
        foreign.losses = [0.5, np.float64(0.25)]
        torch.save({"model": WEIGHTS, "object": foreign, "epoch": 3}, tmp_path / "a.ckpt")
    read = read_pickle(tmp_path / "a.ckpt")
    assert type(read["object"]) is Placeholder and not vars(read["object"])
    assert list(read_state_dict(tmp_path / "a.ckpt")) == list(WEIGHTS)


@pytest.mark.parametrize("name", ["clap.metrics.retrieval_metrics.Other", "clap.utils.run", "stranger.Thing"])
def test_other_classes_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    with monkeypatch.context() as patch:
        torch.save({"model": WEIGHTS, "object": make_foreign(patch, name)()}, tmp_path / "a.ckpt")
    refuse(tmp_path / "a.ckpt", f"refused, it imports {name};")


def test_safetensors_are_preferred_in_a_folder(tmp_path: Path) -> None:
    save_file(WEIGHTS, tmp_path / "model.safetensors")
    torch.save({"other": torch.ones(1)}, tmp_path / "pytorch_model.bin")
    assert set(read_state_dict(tmp_path)) == set(WEIGHTS)


def test_files_of_a_folder_without_weights_are_listed(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match="neither model.safetensors nor pytorch_model.bin; found: config.json"):
        Clap.from_ckpt(tmp_path)


def test_file_of_an_unknown_family_is_refused(tmp_path: Path) -> None:
    torch.save(WEIGHTS, tmp_path / "a.pt")
    message = refuse(tmp_path / "a.pt", "unknown checkpoint")
    assert "the 2 keys start with a.weight, a.count" in message


# Sources


def test_existing_path_is_returned_unchanged(tmp_path: Path) -> None:
    assert fetch_source(str(tmp_path)) == tmp_path


@pytest.mark.parametrize(
    "source", ["owner/repository", "owner/repository/file.pt", "absent.pt", "a//b", "../x", "/absent/x"]
)
def test_absent_source_is_named(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=source.replace(".", r"\.")) as error:
        fetch_source(source)
    assert "\n" not in str(error.value)


def test_checkpoint_is_loaded_by_a_relative_file_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models.write_checkpoint(tmp_path, "msclap_2022")
    monkeypatch.chdir(tmp_path)
    assert Clap.from_ckpt("msclap_2022.pt").embed_dim == 8
