"""`python -m clap push_to_hub` against a local server in the part of the hub, and the model card that it writes."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import run_command
from hub_server import TOKEN, Hub, serve_hub
from huggingface_hub import constants
from torch.testing import assert_close

from clap.atomic import write_json
from clap.checkpoint import TRAIN_CLIPS
from clap.evaluation.leak_check import read_train_clips
from clap.evaluation.query_scores import QueryScores
from clap.evaluation.results import Evaluation, hash_protocol, write_results
from clap.model import Clap
from clap.parts import read_saved_config
from clap.proportion import clip_interval
from clap.release.push import push_to_hub
from clap.release.run_facts import hide_path, read_run
from clap.run_folder import COST, METRICS, RECORD

REPO = "someone/small-clap"
RECALL = "test/clotho/text_to_audio/recall_at_1"
SECRET = "/home/someone/private"
HITS = np.arange(40) % 4 == 0


@pytest.fixture
def run_dir(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """A run folder with a best checkpoint and an evaluation of 40 clips, a quarter of which are hits."""
    best = tmp_path / "run" / "checkpoints" / "best"
    shutil.copytree(tiny_checkpoint, best)
    config = yaml.safe_load((best / "config.yaml").read_text())
    config["text_encoder"]["name"] = f"{SECRET}/weights"
    (best / "config.yaml").write_text(yaml.safe_dump(config | {"dataset": {"root": SECRET}}))
    np.save(best / TRAIN_CLIPS, np.arange(5, dtype=np.uint64))
    protocol = {"dataset": "clotho", "split": "test", "clips": "40 of 41", "left_out": {"x": "missing"}, "ties": "lose"}
    protocol |= {"leak_check": "unknown"}
    protocol |= {"hash": hash_protocol(protocol), "audio_manifest": "0", "chance": {RECALL: 0.025}}
    evaluation = Evaluation(
        {RECALL: HITS.mean(), "test/clotho/text_to_audio/median_rank": 3.0},
        [f"clip {i}" for i in range(40)],
        scores={RECALL: QueryScores(HITS, np.arange(40))},
        protocol=protocol,
        chance={RECALL: 0.025},
    )
    run_dir = best.parents[1]
    write_results(run_dir / "evaluation", {"clotho/retrieval": evaluation})
    write_json(run_dir / METRICS, evaluation.metrics)
    write_json(run_dir / COST, {"seconds": 7200.0, "parameters": 2_000_000, "steps": 20})
    tags = {"train/clotho/clips": "3839 of 3839 clips", "test/clotho/clips": "40 of 41 clips", "loss": "sigmoid"}
    tags |= {"git_commit": "0123abc", "machine": "1 GPU"}
    params = {"dataset.exclude": f"{SECRET}/list.txt", "dataset.exclude_evaluated": "True", "optimizer.lr": "0.001"}
    write_json(run_dir / RECORD, {"tags": tags, "params": params | {"init_from": f"{SECRET}/start", "freeze": "[]"}})
    return run_dir


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """The hub of this process is a local server."""
    with serve_hub() as server:
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        for name, value in {
            "ENDPOINT": server.address,
            "HUGGINGFACE_CO_URL_TEMPLATE": f"{server.address}/{{repo_id}}/resolve/{{revision}}/{{filename}}",
            "HF_HUB_CACHE": str(tmp_path / "cache"),
            "HF_HUB_OFFLINE": False,
        }.items():
            monkeypatch.setattr(constants, name, value)
        yield server


def test_pushed_model_is_loaded_from_the_hub(hub: Hub, run_dir: Path, capsys):
    run_command("push_to_hub", run_dir, "--repo", REPO, "--licence", "cc-by-nc-4.0", "--private")
    assert hub.private == {REPO: True}
    assert "pushed; Clap.from_ckpt('someone/small-clap') loads it" in capsys.readouterr().out
    before, after = Clap.from_ckpt(run_dir), Clap.from_ckpt(REPO)
    captions = ["a dog barks", "rain on a roof"]
    assert_close(after.get_text_embeddings(captions), before.get_text_embeddings(captions), atol=0, rtol=0)
    assert read_train_clips(REPO).tolist() == list(range(5))


def test_repository_has_no_paths_and_tokens_of_this_machine(hub: Hub, run_dir: Path):
    push_to_hub(run_dir, REPO, licence="mit")
    files = hub.repos[REPO]
    assert sorted(files) == [
        *("README.md", "config.yaml", "evaluation/protocol.json", "evaluation/test-clotho-retrieval.npz"),
        *("metrics.json", "model.safetensors", "tokenizer/tokenizer.json", "tokenizer/tokenizer_config.json"),
        TRAIN_CLIPS,
    ]
    everything = b"".join(files.values())
    assert SECRET.encode() not in everything and TOKEN.encode() not in everything
    assert str(run_dir).encode() not in everything


def test_second_push_replaces_the_files_of_the_first(hub: Hub, run_dir: Path):
    push_to_hub(run_dir, REPO, licence="mit")
    hub.repos[REPO] |= {"notes.txt": b"mine"}
    shutil.rmtree(run_dir / "evaluation")
    push_to_hub(run_dir, REPO, licence="mit")
    assert hub.repos[REPO]["notes.txt"] == b"mine" and len(hub.messages) == 2
    assert not [name for name in hub.repos[REPO] if name.startswith("evaluation")]
    assert b"No metric is recorded for this checkpoint." in hub.repos[REPO]["README.md"]


@pytest.mark.parametrize(
    "token, read_only, message",
    [
        ("hf_other", False, "refuses it .401, Invalid credentials.; the token is not valid; set HF_TOKEN"),
        (TOKEN, True, "refuses it .403, Forbidden.; the token may not write there; give a --repo of an owner"),
    ],
)
def test_refusal_says_what_to_change(hub: Hub, run_dir: Path, monkeypatch, token: str, read_only: bool, message: str):
    monkeypatch.setenv("HF_TOKEN", token)
    hub.read_only = read_only
    with pytest.raises(ValueError, match=f"{REPO}: the hub {message}") as raised:
        push_to_hub(run_dir, REPO, licence="mit")
    assert token not in str(raised.value)


def test_unreachable_hub_is_named(hub: Hub, run_dir: Path):
    with pytest.raises(ConnectionError, match=f"{REPO}: the hub cannot be reached .*refused.*; nothing is pushed"):
        push_to_hub(run_dir, REPO, licence="mit", endpoint="http://127.0.0.1:9")


def test_push_needs_a_token(run_dir: Path, monkeypatch, tmp_path: Path):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    with pytest.raises(ValueError, match="no token of the Hugging Face hub; set HF_TOKEN"):
        push_to_hub(run_dir, REPO, licence="mit")


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("--repo", REPO), "no licence is given; give that of the weights, such as mit"),
        (("--repo", REPO, "--licence", "My licence"), "licence='My licence' is not an identifier"),
        (("--repo", "small-clap", "--licence", "mit"), "repo='small-clap' is not a name on the hub; give owner/name"),
    ],
)
def test_arguments_are_checked(run_dir: Path, arguments: tuple[str, ...], message: str):
    with pytest.raises(SystemExit, match=message):
        run_command("push_to_hub", run_dir, *arguments)


def test_missing_run_is_named(tmp_path: Path):
    with pytest.raises(SystemExit, match="absent: no such checkpoint folder"):
        run_command("push_to_hub", tmp_path / "absent", "--repo", REPO, "--licence", "mit")


def test_dry_run_writes_the_card(run_dir: Path, tmp_path: Path, capsys):
    folder = tmp_path / "release"
    run_command("push_to_hub", run_dir, "--repo", REPO, "--licence", "cc-by-nc-4.0", "--dry-run", folder)
    assert "nothing is pushed" in capsys.readouterr().out
    _, metadata, body = (folder / "README.md").read_text().split("---\n", 2)
    metadata, interval = yaml.safe_load(metadata), clip_interval(HITS, np.ones(40))
    assert metadata["license"] == "cc-by-nc-4.0" and metadata["datasets"] == ["clotho"]
    assert metadata["pipeline_tag"] == "zero-shot-audio-classification"
    (entry,) = metadata["model-index"][0]["results"]
    assert entry["dataset"] == {"name": "clotho", "type": "clotho", "split": "test"}
    named = f"text-to-audio recall@1 (95 % interval {interval.low:.3f} to {interval.high:.3f})"
    assert entry["metrics"][0] == {"type": "recall_at_1", "value": 0.25, "name": named}
    protocol = json.loads((folder / "evaluation" / "protocol.json").read_text())["test-clotho-retrieval"]
    (row,) = [line for line in body.splitlines() if "recall@1" in line]
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    bounds = f"{interval.low:.3f} to {interval.high:.3f}"
    assert cells[1:] == ["text-to-audio recall@1", "0.250", bounds, "0.025", "40 of 41", f"`{protocol['hash']}`"]
    for text in (
        f'Clap.from_ckpt("{REPO}")',
        "clips that an evaluated corpus has too",
        "the clips of the list list.txt",
        "- ties: lose\n- skipped clips: 1\n- comparison with the training clips: not possible",
        "Evaluated on clotho only",
        "The weights: cc-by-nc-4.0, ",
    ):
        assert text in body, text
    settings = dict(line.strip("| ").split("|", 1) for line in body.splitlines() if line.count("|") == 3)
    settings = {key.strip(): value.strip() for key, value in settings.items()}
    assert settings["initial weights"] == "start" and settings["loss"] == "sigmoid" and "frozen parts" not in settings
    assert settings["hours"] == "2" and settings["machine"] == "1 GPU" and settings["commit"] == "`0123abc`"


def test_metrics_are_those_of_the_best_checkpoint(run_dir: Path):
    last = run_dir / "checkpoints" / "last"
    shutil.copytree(run_dir / "checkpoints" / "best", last)
    assert len(read_run(run_dir).results) == 2
    assert read_run(last).results == [] and read_run(last).tags["loss"] == "sigmoid"


def test_checkpoint_alone_has_no_run(tiny_checkpoint: Path):
    facts = read_run(tiny_checkpoint)
    assert facts.run_dir is None and facts.results == [] and facts.list_clips() == {}


def test_metrics_of_another_evaluation_are_refused(run_dir: Path):
    write_json(run_dir / METRICS, {RECALL: 0.9})
    with pytest.raises(ValueError, match=f"of this checkpoint has {RECALL}=0.900000"):
        read_run(run_dir)


@pytest.mark.parametrize(
    "value, shown",
    [
        ("laion/clap-htsat-unfused", "laion/clap-htsat-unfused"),
        ("/data/me/run", "run"),
        ("~/run/", "run"),
        ("C:\\data\\run", "run"),
        ("https://me:secret@host/a.pt", "https://***@host/a.pt"),
        (0.001, "0.001"),
    ],
)
def test_paths_and_passwords_are_hidden(value: object, shown: str):
    assert hide_path(value) == shown


def test_config_names_its_own_tokenizer(run_dir: Path, tmp_path: Path):
    run_command("push_to_hub", run_dir, "--repo", REPO, "--licence", "mit", "--dry-run", tmp_path / "release")
    saved = yaml.safe_load((tmp_path / "release" / "config.yaml").read_text())
    assert saved["text_encoder"]["tokenizer"] == "tokenizer" and "dataset" not in saved
    assert read_saved_config(tmp_path / "release")["text_encoder"]["tokenizer"] == str(tmp_path / "release/tokenizer")
