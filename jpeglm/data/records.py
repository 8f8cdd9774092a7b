"""A prepared folder on disk: ArrayRecord shards of token chunks, and the manifest that describes them.

    DIR/manifest.json       written last: a folder without it is not finished
    DIR/tokenizer.json
    DIR/refused.jsonl       every refused picture: name, reason, detail
    DIR/passed_over.jsonl   every file of the source that was skipped: name, reason
    DIR/train-00000-of-00008.array_record ...
    DIR/heldout-00000-of-00001.array_record

A record is one chunk: exactly `seq_len` tokens, little-endian uint16. The last chunk of a shard is padded with 0; the
shard's token count in the manifest tells how many tokens are real.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter
from tqdm import tqdm

from jpeglm.core import retries
from jpeglm.core.errors import InputError
from jpeglm.core.registry import TOKENIZERS
from jpeglm.data import tokenizers
from jpeglm.data.tokenizers import BOS, EOS

FORMAT_VERSION = 1
SPLITS = ("train", "heldout")
MANIFEST = "manifest.json"
_TOKEN = np.dtype("<u2")


def shard_name(split: str, index: int, count: int) -> str:
    return f"{split}-{index:05d}-of-{count:05d}.array_record"


def is_prepared(folder: str | os.PathLike) -> bool:
    """Whether `jpeglm.prepare` has finished this folder."""
    return all(os.path.isfile(os.path.join(folder, name)) for name in (MANIFEST, tokenizers.FILE))


def sha256_of(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_manifest(folder: str | os.PathLike) -> dict:
    """The manifest of a finished prepared folder; InputError if there is none or it is of another version."""
    if "://" in str(folder):
        raise InputError(f"{folder}: prepared data are read as files: mount the bucket, or copy it to each host")
    path = Path(folder) / MANIFEST
    text = retries.read_text(path)
    if text is None:
        raise InputError(f"{folder} holds no finished prepared data ({MANIFEST} is missing)")
    try:
        manifest = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"cannot read {path}: {error}") from error
    version = manifest.get("format_version") if isinstance(manifest, dict) else None
    if version != FORMAT_VERSION:
        raise InputError(f"{path}: format version {version}, this program reads {FORMAT_VERSION}")
    with_names(manifest)
    return manifest


def with_names(record: dict) -> None:
    """Adds the names that the config of an older manifest lacks, from when there was one kind of tokenizer."""
    record["config"]["tokenizer"].setdefault("name", TOKENIZERS.default)


def shard_paths(folder: str | os.PathLike, manifest: dict, split: str) -> list[Path]:
    """The files of a split in order; InputError if one is missing or has another size than when written."""
    paths = []
    for shard in manifest["splits"][split]["shards"]:
        paths.append(Path(folder) / shard["name"])
        try:
            size = retries.read(paths[-1].stat, paths[-1]).st_size
        except retries.Damaged as error:
            raise InputError(f"{folder}: shard {shard['name']} is missing") from error
        if size != shard["file_size"]:
            raise InputError(f"{paths[-1]} has {size} bytes, the manifest says {shard['file_size']}")
    return paths


def check_checksums(folder: str | os.PathLike, manifest: dict, part: int = 0, parts: int = 1) -> None:
    """Verifies the SHA-256 of every `parts`-th shard from number `part` on, over both splits.

    Raises:
      InputError: a shard is missing, of another size, or altered.
    """
    listed = [
        (path, shard)
        for split in SPLITS
        for path, shard in zip(shard_paths(folder, manifest, split), manifest["splits"][split]["shards"], strict=True)
    ]
    listed = listed[part::parts]
    total = sum(shard["file_size"] for _, shard in listed)
    with (
        ThreadPoolExecutor() as pool,
        tqdm(total=total, unit="B", unit_scale=True, desc="check data", disable=None) as bar,
    ):
        checksums = pool.map(lambda entry: retries.read(lambda: sha256_of(entry[0]), entry[0]), listed)
        for (path, shard), found in zip(listed, checksums, strict=True):
            if found != shard["sha256"]:
                raise InputError(f"{path}: the checksum differs from the manifest's, the shard is damaged")
            bar.update(shard["file_size"])


def write_shard(path: Path, documents: Iterable[np.ndarray], seq_len: int) -> dict:
    """Packs tokenized documents into one shard.

    Args:
      path: a local file; incomplete until the function returns.
      documents: ids of each document, uint16 [n], without `<s>` and `</s>`, which are put around it here.
      seq_len: tokens a chunk.

    Returns:
      {documents, chunks, tokens, shortest, longest, file_size, sha256}: the tokens are the real ones, `<s>` and `</s>`
      included; the shortest and longest document in tokens (0 in a shard without documents); the size in bytes.
    """
    # One record per group, because chunks are read in random order.
    writer = ArrayRecordWriter(str(path), "group_size:1")
    if not writer.ok():  # the constructor does not report errors
        raise OSError(f"cannot write {path}")
    lengths, chunks = [], 0
    pending, held = [], 0  # pieces not yet written, and their total number of tokens
    for document in documents:
        pending.append(np.concatenate([[BOS], document, [EOS]]).astype(_TOKEN))
        lengths.append(len(pending[-1]))
        held += lengths[-1]
        if held >= seq_len:
            tokens = np.concatenate(pending)
            whole = held // seq_len
            for chunk in tokens[: whole * seq_len].reshape(whole, seq_len):
                writer.write(chunk.tobytes())
            chunks += whole
            pending, held = [tokens[whole * seq_len :]], held % seq_len
    if held:
        last = np.concatenate(pending)
        writer.write(np.pad(last, (0, seq_len - held)).tobytes())
        chunks += 1
    writer.close()
    if not path.stat().st_size:
        raise OSError(f"cannot write {path}")
    return {
        "documents": len(lengths),
        "chunks": chunks,
        "tokens": sum(lengths),
        "shortest": min(lengths, default=0),
        "longest": max(lengths, default=0),
        "file_size": path.stat().st_size,
        "sha256": sha256_of(path),
    }


def read_chunks(path: Path, num_chunks: int, seq_len: int) -> Iterator[np.ndarray]:
    """The chunks of one shard in order, uint16 [seq_len] each.

    Raises:
      InputError: there are not `num_chunks`, a record is damaged, or the file cannot be read.
    """
    reader = None

    def records(start: int) -> list[bytes]:
        nonlocal reader
        try:
            reader = reader or _open_reader(path, num_chunks)
            return reader.read(start, min(start + 64, num_chunks))
        except Exception:
            reader = None  # a reader that has failed repeats its error
            raise

    for start in range(0, num_chunks, 64):
        for record in retries.read(partial(records, start), path):
            if len(record) != seq_len * _TOKEN.itemsize:
                raise InputError(f"{path}: a chunk of {len(record)} bytes, not {seq_len * _TOKEN.itemsize}")
            yield np.frombuffer(record, _TOKEN)


def _open_reader(path: Path, num_chunks: int) -> ArrayRecordReader:
    reader = ArrayRecordReader(str(path))
    if not reader.ok():
        reader.close()  # raises why
    if reader.num_records() != num_chunks:
        raise InputError(f"{path}: {reader.num_records()} chunks, the manifest says {num_chunks}")
    return reader


def read_documents(folder: Path, shard: dict, seq_len: int) -> Iterator[np.ndarray]:
    """The documents of one shard in order, ids uint16 [n] without `<s>` and `</s>`.

    Args:
      shard: its entry in the manifest.

    Raises:
      InputError: the tokens around the documents are not as `write_shard` writes them.
    """
    path = folder / shard["name"]
    left = shard["tokens"]
    rest = np.empty(0, _TOKEN)  # the document that the last chunk did not finish
    for chunk in read_chunks(path, shard["chunks"], seq_len):
        if chunk[left:].any():
            raise InputError(f"{path}: padding is not 0")
        tokens = np.concatenate([rest, chunk[:left]])
        left -= min(left, seq_len)
        ends = np.flatnonzero(tokens == EOS) + 1
        for start, end in zip(np.concatenate([[0], ends])[:-1], ends, strict=True):
            if tokens[start] != BOS or (tokens[start + 1 : end - 1] <= EOS).any():
                raise InputError(f"{path}: a document is not <s>, bytes, </s>")
            yield tokens[start + 1 : end - 1]
        rest = tokens[ends[-1] :] if len(ends) else tokens
    if left or len(rest):
        raise InputError(f"{path}: the last document is not finished")
