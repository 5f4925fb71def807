"""Files of an index: a Parquet table of embeddings and file facts, and its embeddings as a matrix that can be mapped.

    embeddings.parquet     a row for each window: COLUMNS and its embedding, in order of path and start
    vectors-DIGEST.npy     the embeddings again, (windows, embed_dim) float32; it is named in the metadata of the table
    errors.jsonl           files that cannot be read: path, size, mtime_ns, error

A kill leaves either the old or the new table. A matrix that is missing or truncated is written again from the
table. Imports no torch.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from clap.atomic import PARTIAL, atomic_path, name_file, read_json_lines, remove_partial_files, write_atomic

TABLE, ERRORS = "embeddings.parquet", "errors.jsonl"
BLOCK = 2**15  # rows in memory at once
COLUMNS = pa.schema(
    [
        ("path", pa.string()),  # relative to the folder, with forward slashes
        ("start", pa.float64()),  # seconds, of the window
        ("end", pa.float64()),
        ("duration", pa.float64()),  # seconds, of the file
        ("sample_rate", pa.int32()),  # Hz, of the file
        ("channels", pa.int32()),
        ("size", pa.int64()),  # bytes
        ("mtime_ns", pa.int64()),  # modification time, nanoseconds since 1970
    ]
)


def write_table(index: Path, facts: pa.Table, blocks: Iterable[np.ndarray], *, embed_dim: int, record: str) -> None:
    """Replace the table and the matrix of an index.

    Args:
        facts: the COLUMNS of all rows.
        blocks: embeddings (n, embed_dim) float32 of consecutive rows.
        record: JSON text that becomes the metadata `clap` of the Parquet file.
    """
    for path in index.glob(f"{TABLE}.*{PARTIAL}"):
        path.unlink()  # of a writer that was killed: only the owner of the index writes the table
    vectors = write_vectors(index, blocks, shape=(len(facts), embed_dim))
    schema = COLUMNS.append(pa.field("embedding", pa.list_(pa.float32(), embed_dim)))
    schema = schema.with_metadata({"clap": record, "vectors": vectors})
    matrix = map_vectors(index / vectors)
    options = {
        "compression": "zstd",
        "use_dictionary": ["path", "duration", "sample_rate", "channels", "size", "mtime_ns"],
    }
    with atomic_path(index / TABLE) as partial, pq.ParquetWriter(partial, schema, **options) as writer:
        for start in range(0, len(facts), BLOCK):
            rows = matrix[start : start + BLOCK]
            embedding = pa.FixedSizeListArray.from_arrays(pa.array(rows.reshape(-1)), embed_dim)
            columns = facts.slice(start, BLOCK).combine_chunks().columns
            writer.write_table(pa.table([*columns, embedding], schema=schema))
    for path in index.glob("vectors-*"):
        if path.name != vectors:
            path.unlink()  # a process that has mapped it can still read it


def write_vectors(index: Path, blocks: Iterable[np.ndarray], *, shape: tuple[int, int]) -> str:
    """Write the matrix of all blocks; returns its name, which contains a digest of its content."""
    remove_partial_files(index, name="vectors")
    digest, partial = hashlib.sha256(), index / f"vectors.{os.getpid()}{PARTIAL}"
    with name_file(partial), partial.open("wb") as file:
        header = {"descr": np.dtype(np.float32).str, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        for block in blocks:
            content = np.ascontiguousarray(block, np.float32).tobytes()
            digest.update(content)
            file.write(content)
    name = f"vectors-{digest.hexdigest()[:16]}.npy"
    partial.replace(index / name)
    return name


def map_vectors(path: Path) -> np.ndarray:
    """The matrix of an index, read from disk where it is used."""
    return np.load(path, mmap_mode="r")


def is_complete(path: Path, shape: tuple[int, int]) -> bool:
    """Whether a matrix exists, and is not truncated."""
    try:
        return map_vectors(path).shape == shape
    except (FileNotFoundError, ValueError, EOFError):
        return False


def open_table(index: Path, embed_dim: int) -> tuple[pa.Table, np.ndarray]:
    """File facts, the COLUMNS, and embeddings (windows, embed_dim) of an index; no rows if there is no table yet."""
    if not (index / TABLE).exists():
        return COLUMNS.empty_table(), np.empty((0, embed_dim), np.float32)
    try:
        with pq.ParquetFile(index / TABLE) as file:
            facts = file.read(columns=COLUMNS.names).replace_schema_metadata(None)
            name = file.schema_arrow.metadata[b"vectors"].decode()
            shape = (len(facts), file.schema_arrow.field("embedding").type.list_size)
            if not is_complete(index / name, shape):
                batches = file.iter_batches(BLOCK, columns=["embedding"])
                blocks = (batch["embedding"].flatten().to_numpy().reshape(-1, shape[1]) for batch in batches)
                name = write_vectors(index, blocks, shape=shape)
    except pa.ArrowInvalid as error:
        raise ValueError(f"{index / TABLE}: damaged ({error}); restore it, or index again with --rebuild") from None
    return facts, map_vectors(index / name)


def read_errors(index: Path) -> list[dict[str, Any]]:
    """Files that cannot be read: path, size, mtime_ns, error."""
    path = index / ERRORS
    return list(read_json_lines(path)) if path.exists() else []


def write_errors(index: Path, errors: Iterable[dict[str, Any]]) -> None:
    write_atomic(index / ERRORS, "".join(json.dumps(error) + "\n" for error in errors).encode())


def gather_rows(old: np.ndarray, new: np.ndarray, order: np.ndarray) -> Iterator[np.ndarray]:
    """Blocks of the rows `order` of two matrices, the second after the first."""
    for start in range(0, len(order), BLOCK):
        rows = order[start : start + BLOCK]
        block = np.empty((len(rows), old.shape[1]), np.float32)
        is_old = rows < len(old)
        block[is_old], block[~is_old] = old[rows[is_old]], new[rows[~is_old] - len(old)]
        yield block
