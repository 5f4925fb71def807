"""Writes a checkpoint with its model card and evaluation into a folder, and pushes it to the Hugging Face hub."""

import os
import shutil
import tempfile
from pathlib import Path

from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, HTTPError

from clap import checkpoint, saving
from clap.config.secrets import hide_secrets
from clap.model import Clap
from clap.release.model_card import make_card
from clap.release.repository import check_licence, check_repository
from clap.release.run_facts import RunFacts, read_run, without_paths
from clap.run_folder import METRICS, PROTOCOL

CARD = "README.md"
OWN_FILES = (  # in a repository, replaced as a whole by each push
    *(CARD, METRICS, checkpoint.CONFIG, checkpoint.WEIGHTS, checkpoint.TRAIN_CLIPS),
    *(checkpoint.TOKENIZER, checkpoint.HUGGING_FACE, "evaluation"),
)


def push_to_hub(
    run: str | os.PathLike, repo: str, *, licence: str, private: bool = False, endpoint: str | None = None
) -> str:
    """Push a checkpoint to a repository of the hub, in one commit; returns the address of the repository.

    The repository gets the files of `write_release`, from which `Clap.from_ckpt(repo)` loads the model. The token is
    that of the environment variable HF_TOKEN or of `hf auth login`.

    Args:
        run: run folder (its best checkpoint), or a checkpoint folder.
        repo: owner/name; created if it does not exist.
        licence: of the weights, an identifier of the hub, such as mit or cc-by-nc-4.0.
        private: whether a new repository is private.
        endpoint: address of the hub.

    Raises:
        ValueError: repo or licence is invalid, there is no token, or the hub refuses it.
        FileNotFoundError: there is no such checkpoint.
        ConnectionError: the hub cannot be reached.
    """
    check_repository(repo)
    if (token := get_token()) is None:
        raise ValueError("no token of the Hugging Face hub; set HF_TOKEN to one that may write, or run `hf auth login`")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch, "release")
        write_release(run, folder, repo=repo, licence=licence)
        api = HfApi(endpoint=endpoint, token=token)
        try:
            address = api.create_repo(repo, private=private, exist_ok=True)
            patterns = [pattern for name in OWN_FILES for pattern in (name, f"{name}/*")]
            message = f"Push {repo.rpartition('/')[2]}"
            api.upload_folder(repo_id=repo, folder_path=folder, commit_message=message, delete_patterns=patterns)
        except HfHubHTTPError as error:
            raise ValueError(f"{repo}: {explain_refusal(error)}") from None
        except (HTTPError, OSError) as error:
            reason = hide_secrets(" ".join(str(error).split()))[:200]
            raise ConnectionError(f"{repo}: the hub cannot be reached ({reason}); nothing is pushed") from None
    return str(address)


def explain_refusal(error: HfHubHTTPError) -> str:
    """What the hub answered, and what to change."""
    status = error.response.status_code if error.response is not None else None
    reason = hide_secrets(" ".join(str(error.server_message or error).split()))[:200]
    advice = {
        401: "the token is not valid; set HF_TOKEN to one that may write",
        403: "the token may not write there; give a --repo of an owner that it may write to",
        404: "there is no such owner, or the token may not see it",
    }
    return f"the hub refuses it ({status}, {reason})" + (f"; {advice[status]}" if status in advice else "")


def write_release(run: str | os.PathLike, folder: str | os.PathLike, *, repo: str, licence: str) -> RunFacts:
    """Write what a repository gets into a folder, atomically: model, card, metrics and evaluation.

    The model is written by itself, with merged adapters and without the paths of this machine; a subfolder
    `huggingface` is for transformers' ClapModel, if it supports all parts.

    Args:
        folder: a new folder, or an earlier one to replace.

    Raises:
        as `push_to_hub`.
    """
    check_repository(repo)
    check_licence(licence)
    folder, facts = Path(folder).resolve(), read_run(Path(run))
    checkpoint.refuse_other_files(folder, OWN_FILES)
    clap = Clap.from_ckpt(facts.checkpoint)
    clap.config = without_paths(clap.config)

    def write(target: Path) -> None:
        clap.save(target)
        saving.export_huggingface(clap, target / checkpoint.HUGGING_FACE)
        copy_results(facts, target)
        has_huggingface = (target / checkpoint.HUGGING_FACE).is_dir()
        has_text = clap.text_encoder is not None
        card = make_card(facts, repo=repo, licence=licence, has_text=has_text, has_huggingface=has_huggingface)
        (target / CARD).write_text(card, encoding="utf-8")

    checkpoint.write_folder(folder, write)
    return facts


def copy_results(facts: RunFacts, target: Path) -> None:
    """Copy the digests of training clips, and metrics, protocols and scores of each clip."""
    if (digests := facts.checkpoint / checkpoint.TRAIN_CLIPS).is_file():
        shutil.copy(digests, target)
    if facts.results:
        (target / PROTOCOL).parent.mkdir()
        names = [f"evaluation/{stem}.npz" for stem in facts.protocols]
        for name in (METRICS, PROTOCOL, *names):
            shutil.copy(facts.run_dir / name, target / name)
