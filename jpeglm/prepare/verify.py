"""Reads a whole prepared folder again and compares it with its manifest."""

import collections
import json
import os
from pathlib import Path

from jpeglm.core import retries
from jpeglm.core.errors import InputError, reading
from jpeglm.core.registry import CODECS
from jpeglm.data import records, tokenizers
from jpeglm.prepare import plan
from jpeglm.prepare.local import Pool, progress


def verify(folder: str | os.PathLike, workers: int | None = None) -> dict:
    """Checks everything that a prepared folder guarantees; returns its manifest.

    Checked are the checksum of the tokenizer and of each shard, the length of each chunk and the padding of the last;
    that each document detokenizes to a file that the codec's strict parser accepts, and is in the right split and
    shard and in the order of the keys; and all counts.

    Raises:
      InputError: the first problem found, with the file's name.
    """
    folder = Path(folder)
    manifest = records.read_manifest(folder)
    if tokenizers.load(folder, manifest["config"]).sha256 != manifest["tokenizer_sha256"]:
        raise InputError(f"{folder / tokenizers.FILE} is not the one that the manifest names")
    splits, counts = manifest["splits"], manifest["counts"]
    listed = [(split, index) for split in splits for index in range(len(records.shard_paths(folder, manifest, split)))]
    ranges: dict[str, list[bytes]] = {split: [] for split in splits}  # first and last key of each shard
    listed_documents = counts["kept"] + counts["variants"]
    with Pool(workers) as pool, progress(listed_documents, "doc", "verifying") as bar:
        for split, first_last, documents in pool.map_unordered(
            _verify_shard, ((str(folder), manifest, split, index) for split, index in listed)
        ):
            ranges[split] += first_last
            bar.update(documents)
    if max(ranges["heldout"]) >= min(ranges["train"]):
        raise InputError(f"{folder}: held-out and training documents are not separated in the order of their keys")
    for split in splits.values():
        for key in ("documents", "chunks", "tokens", "bytes"):
            if split[key] != sum(shard[key] for shard in split["shards"]):
                raise InputError(f"{folder}: the manifest's {key} do not add up")
    refused = _reasons(folder / plan.REFUSED)
    if refused != counts["refused"] or counts["seen"] != counts["kept"] + refused.total():
        raise InputError(f"{folder}: {plan.REFUSED} and the manifest's counts do not agree")
    if "passed_over" in counts and _reasons(folder / plan.PASSED_OVER) != counts["passed_over"]:  # not in old ones
        raise InputError(f"{folder}: {plan.PASSED_OVER} and the manifest's counts do not agree")
    if listed_documents != sum(split["documents"] for split in splits.values()):
        raise InputError(f"{folder}: the manifest says {listed_documents} documents in all, the splits hold others")
    return manifest


def _reasons(path: Path) -> collections.Counter[str]:
    """How many lines of refused.jsonl or passed_over.jsonl give each reason."""
    with reading(path, "list of files"):
        return collections.Counter(json.loads(line)["reason"] for line in path.read_bytes().splitlines())


def _verify_shard(folder: str, manifest: dict, split: str, index: int) -> tuple[str, list[bytes], int]:
    """Checks one shard; returns its split, its first and last key (none if empty) and its number of documents."""
    config = manifest["config"]
    shard = manifest["splits"][split]["shards"][index]
    path = Path(folder) / shard["name"]
    if retries.read(lambda: records.sha256_of(path), path) != shard["sha256"]:
        raise InputError(f"{path}: the checksum differs from the manifest's, the file is damaged")
    codec = CODECS.of(config)
    learnt = tokenizers.load(folder, config)
    first = last = b""
    documents = bytes_ = tokens = 0
    for ids in records.read_documents(Path(folder), shard, config["data"]["seq_len"]):
        document = learnt.decode(ids)
        try:
            codec.parse(document)
        except InputError as error:
            raise InputError(f"{path}: document {documents}: {error}") from error
        key = plan.document_key(config["data"]["seed"], document)
        if split == "train" and plan.shard_of(key, config["data"]["shards"]) != index:
            raise InputError(f"{path}: document {documents} belongs to another shard")
        if key < last:
            raise InputError(f"{path}: document {documents} is out of order")
        first, last = first or key, key
        documents += 1
        bytes_ += len(document)
        tokens += len(ids) + 2
    for name, found in (("documents", documents), ("bytes", bytes_), ("tokens", tokens)):
        if shard[name] != found:
            raise InputError(f"{path}: {found} {name}, the manifest says {shard[name]}")
    return split, [first, last] if documents else [], documents
