"""What an index was made from: folder, model and windows. Imports no torch."""

from dataclasses import asdict, dataclass, fields
from pathlib import Path

from clap.atomic import read_json, write_json

RECORD = "index.json"
REPLACE = "give another --output, or --rebuild to discard the index"
FORMAT = 1  # of the files of an index


@dataclass(frozen=True)
class IndexRecord:
    """The first file of an index, index.json.

    Args:
        folder: absolute path of the recordings.
        checkpoint: path or name of the model.
        weights: digest of the weights, see `digest_weights`.
        window, hop: seconds.
    """

    folder: str
    checkpoint: str
    weights: str
    embed_dim: int
    sample_rate: int
    window: float
    hop: float
    format: int = FORMAT

    @classmethod
    def read(cls, index: Path) -> "IndexRecord":
        """The record of an index.

        Raises:
            FileNotFoundError: the folder is missing or not an index. ValueError: its format is not known.
        """
        if not index.is_dir():
            raise FileNotFoundError(
                f"{index}: no such index; write it with `python -m clap index FOLDER --output {index}`"
            )
        values = read_json(index / RECORD)
        if values.get("format", FORMAT) != FORMAT:
            raise ValueError(
                f"{index} has format {values['format']}, this version reads {FORMAT}; index the folder again"
            )
        if not {field.name for field in fields(cls)} <= values.keys():
            raise FileNotFoundError(
                f"{index} is not an index: {RECORD} is missing or damaged; give the --output of `index`"
            )
        return cls(**{field.name: values[field.name] for field in fields(cls)})

    def write(self, index: Path) -> None:
        write_json(index / RECORD, asdict(self))

    def describe_model(self) -> str:
        """Checkpoint and start of the digest of its weights."""
        return f"{self.checkpoint} (weights {self.weights[:12]})"

    def describe_windows(self) -> str:
        return f"window {self.window:g} s, hop {self.hop:g} s"


def check_folder(record: IndexRecord, folder: Path, index: Path) -> None:
    """Refuse another folder than that of the index, unless that has moved.

    Raises:
        ValueError: the folder differs, and that of the index exists.
    """
    if record.folder != str(folder) and Path(record.folder).exists():
        raise ValueError(f"{index} is the index of {record.folder}, and {folder} is given; {REPLACE}")


def check_weights(record: IndexRecord, weights: str, checkpoint: str, *, advice: str) -> None:
    """Refuse a model with other weights than those of the index.

    Raises:
        ValueError: the digests differ.
    """
    if weights != record.weights:
        raise ValueError(
            f"{checkpoint} (weights {weights[:12]}) is not the model of the index, {record.describe_model()}; {advice}"
        )


def locate_checkpoint(checkpoint: str) -> str:
    """Absolute path of a local checkpoint; the name or URL of another unchanged."""
    return str(Path(checkpoint).absolute()) if Path(checkpoint).exists() else checkpoint
