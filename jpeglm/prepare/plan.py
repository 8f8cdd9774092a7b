"""From pictures or clips to packed shards, in three stages that all processes share and that survive a kill.

1. Encode. The source's names are listed once and cut into units of `unit_items` names. A unit becomes one file of
   concatenated documents and one index with their offsets and keys. With `data.augment`=N, N variants of each picture
   (jpeglm/data/augment.py), or at most N later windows of each clip, follow it as separate documents.
2. Order. All documents are sorted by key = SHA-256(f"{seed}:" + SHA-256(document)). The
   first K pictures are held out, K = `data.holdout` (a number, or below 1 a fraction of them, rounded, at least
   one); the boundary moves past copies of the same document, so no document is on both sides. Variants are never held
   out. A variant is kept if its picture is a training document and its own key is in the training part, so that no
   variant equals a held-out document. A training document belongs to shard (last 8 bytes of its key, big-endian)
   modulo `data.shards`. The tokenizer is learnt from the first `tokenizer.documents` training documents in this order,
   never from a held-out one, or taken from a file.
3. Pack. Each shard is written independently (`records.write_shard`), its documents in the same order.

Every file depends only on (source, config, tokenizer file) and is written atomically, so neither the number of workers
nor a kill matters. Stages 1 and 2 use `DIR/.work`, which is removed after the manifest is written; it has all
documents, so the disk needs room for them twice. Keys and offsets of all documents (about 200 bytes each) are in
memory, the documents themselves never. If nothing can be prepared, because the source is empty or the config does not
fit its documents, the folder may be used for another source or config.
"""

import collections
import contextlib
import dataclasses
import hashlib
import itertools
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from absl import logging
from ml_collections import ConfigDict
from tqdm import tqdm

from jpeglm.core import ranges
from jpeglm.core.config import base, check
from jpeglm.core.errors import InputError, Refused, writing
from jpeglm.core.files import check_outside, replacing, write_whole
from jpeglm.core.registry import CODECS, TOKENIZERS
from jpeglm.data import documents, records, sources, tokenizers
from jpeglm.data.sources import listing
from jpeglm.data.tokenizers import Tokenizer
from jpeglm.prepare.local import Pool, progress

REFUSED = "refused.jsonl"
PASSED_OVER = "passed_over.jsonl"
_WORK = ".work"
_NAMES_IN_MANIFEST = 100
_BATCH = 64  # documents tokenized at a time
_PLACE = np.dtype([("unit", "<u4"), ("offset", "<u8"), ("length", "<u4")])  # the location of a document


@dataclasses.dataclass(frozen=True)
class Job:
    """Everything that the result depends on; sent to every worker. `config`: the sections of `config_sections`."""

    source: str
    out: str
    config: dict
    unit_items: int

    @property
    def data(self) -> dict:
        return self.config["data"]

    @property
    def work(self) -> Path:
        return Path(self.out) / _WORK


def prepare(
    config: ConfigDict,
    source: str,
    out: str | os.PathLike,
    tokenizer_path: str | None = None,
    workers: int | None = None,
    unit_items: int | None = None,
) -> dict:
    """Prepares `source` in the folder `out`, or continues a run that was killed there; returns the manifest.

    Args:
      config: the sections codec, tokenizer and data are used.
      source: as for `sources.open_source`.
      out: a local folder, empty, or with a killed or finished run of the same config and source.
      tokenizer_path: a tokenizer.json to use instead of learning one.
      workers: number of processes; all cores if None. Does not affect the result.
      unit_items: names per unit of work; about a minute's work if None. Does not affect the result either.

    Raises:
      InputError: a source without usable pictures, a folder with something else in it or that cannot be written (on a
        full disk, finished work is kept for the next start), a config that does not fit.
    """
    check(config)
    sections = config_sections(config)
    codec = CODECS.of(config)
    given = TOKENIZERS.kind_of(config).load(tokenizer_path) if tokenizer_path else None
    if given and given.vocab_size != config.tokenizer.vocab_size:
        raise InputError(
            f"{tokenizer_path} has {given.vocab_size} entries, tokenizer.vocab_size is {config.tokenizer.vocab_size}"
        )
    codec.items.check_data(sections["data"])
    check_outside(out, source=source)
    identity = {"config": sections, "source": source, "given_tokenizer": given.sha256 if given else None}
    out = Path(out)
    unit_items = unit_items or codec.items.a_minute(config.data.augment)
    job = Job(source, str(out), sections, unit_items)
    if (out / records.MANIFEST).exists():
        manifest = records.read_manifest(out)
        _refuse_other(out, _with_defaults(manifest), identity)
        shutil.rmtree(job.work, ignore_errors=True)  # left if a run was killed between manifest and cleanup
        logging.info("%s is finished already; nothing to do", out)
        return manifest

    documents.check(sources.open_source(source), codec)  # before anything is written
    with writing(out):
        return _prepare(job, identity, given, workers)


def _prepare(job: Job, identity: dict, given: Tokenizer | None, workers: int | None) -> dict:
    """The three stages, and the manifest that marks their end."""
    _begin(job, identity)
    unit_starts, num_items, passed_over = _list_names(job)
    with Pool(workers) as pool:
        _encode_all(pool, job, unit_starts, num_items)
        with _vacating(job):
            places, held_out, shard, counts = _order(job, len(unit_starts))
            learnt = _make_tokenizer(job, places[held_out:], given)
        entries = _pack_all(pool, job, places, held_out, shard)

    manifest = {
        "format_version": records.FORMAT_VERSION,
        **identity,
        "tokenizer_sha256": learnt.sha256,
        "encoder_versions": CODECS.of(job.config).encoder_versions(),
        "counts": {"seen": num_items, **counts, "passed_over": passed_over},
        "splits": {
            split: {
                key: sum(entry[key] for entry in entries[split]) for key in ("documents", "chunks", "tokens", "bytes")
            }
            | {"shards": entries[split]}
            for split in records.SPLITS
        },
    }
    write_whole(job.work / records.MANIFEST, json.dumps(manifest, indent=1).encode() + b"\n")
    for name in (PASSED_OVER, records.MANIFEST):
        os.replace(job.work / name, Path(job.out) / name)
    shutil.rmtree(job.work)
    return manifest


def config_sections(config: ConfigDict) -> dict:
    """The part of a config that prepared data depends on: codec, tokenizer and data, without the keys for reading."""
    sections = {name: config[name].to_dict() for name in ("codec", "tokenizer", "data")}
    del sections["data"]["path"], sections["data"]["verify"]
    return sections


def _refuse_other(out: Path, found: dict, wanted: dict) -> None:
    """Raises InputError that names the first key in which the data in `out` differs from the request (both flat)."""
    wanted = ranges.flat(wanted)
    for key in sorted(wanted, key=lambda key: not key.endswith(".name")):  # other keys depend on the names
        value = wanted[key]
        if found.get(key) != value:
            raise InputError(
                f"{out} was prepared with {key}={found.get(key)}, now {value} is asked for: "
                "give another folder, or delete this one"
            )


def _begin(job: Job, identity: dict) -> None:
    """Makes the work folder, or checks that an existing one belongs to this job."""
    out = Path(job.out)
    identity = identity | {"unit_items": job.unit_items}
    record, names = job.work / "job.json", job.work / "names.jsonl"
    if record.exists() and names.exists() and names.stat().st_size > 0:  # otherwise nothing has been done yet
        _refuse_other(out, _with_defaults(json.loads(record.read_bytes())), identity)
        logging.info("going on with the run that was interrupted in %s", out)
        return
    if out.exists() and (not out.is_dir() or set(os.listdir(out)) - {_WORK, REFUSED}):
        raise InputError(f"{out} holds something else: give an empty or a new folder")
    shutil.rmtree(job.work, ignore_errors=True)  # left by a source or config from which nothing could be prepared
    try:
        job.work.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot make {job.work}: {error.strerror}") from error
    write_whole(record, json.dumps(identity).encode())


def _with_defaults(record: dict) -> dict:
    """A flat manifest or record of a job; keys of the section data newer than it have the defaults of `base()`."""
    records.with_names(record)
    defaults = {"config": {"data": config_sections(base())["data"]}}
    return ranges.flat(defaults) | ranges.flat(record)


@contextlib.contextmanager
def _vacating(job: Job) -> Iterator[None]:
    """For code that fails only because of source or config: the next start in this folder may then use others."""
    try:
        yield
    except InputError:
        if not (Path(job.out) / tokenizers.FILE).exists():  # otherwise source and config were good before
            (job.work / "job.json").unlink(missing_ok=True)
        raise


# Stage 1: encode


def _list_names(job: Job) -> tuple[list[int], int, dict[str, int]]:
    """Lists the source in `names.jsonl`, and the skipped files in `passed_over.jsonl`.

    Returns:
      the byte offset of each unit in it; the number of names; the counts of skipped files.
    """
    path = job.work / "names.jsonl"
    starts, count, codec = [], 0, CODECS.of(job.config)
    with replacing(path) as temporary:
        with open(temporary, "wb") as file, open(job.work / PASSED_OVER, "wb") as others:
            passed_over = listing.PassedOver(
                lambda name, reason: others.write(json.dumps({"name": name, "reason": reason}).encode() + b"\n")
            )
            names = codec.items.names(sources.open_source(job.source), passed_over)
            for name in tqdm(names, desc="listing", unit="file", dynamic_ncols=True):
                if count % job.unit_items == 0:
                    starts.append(file.tell())
                file.write(json.dumps(name).encode() + b"\n")
                count += 1
        if path.exists() and records.sha256_of(path) != records.sha256_of(temporary):
            raise InputError(f"{job.source} changed since the interrupted run: delete {job.out} and start again")
    if not count:
        raise InputError(f"{job.source} holds no files that are {codec.item}s{passed_over.after('; ')}")
    return starts, count, dict(sorted(passed_over.counts.items()))


def _documents_path(job: Job, unit: int) -> Path:
    return job.work / f"unit-{unit:06d}.documents"


def _index_path(job: Job, unit: int) -> Path:
    return job.work / f"unit-{unit:06d}.npz"


def _refused_path(job: Job, unit: int) -> Path:
    return job.work / f"unit-{unit:06d}.refused.jsonl"


def _encode_all(pool: Pool, job: Job, unit_starts: list[int], num_items: int) -> None:
    sizes = [min(job.unit_items, num_items - unit * job.unit_items) for unit in range(len(unit_starts))]
    todo = [unit for unit in range(len(unit_starts)) if not _index_path(job, unit).exists()]
    with progress(num_items, CODECS.of(job.config).item, "encoding") as bar:
        bar.update(num_items - sum(sizes[unit] for unit in todo))
        for unit in pool.map_unordered(encode_unit, ((job, unit, unit_starts[unit]) for unit in todo)):
            bar.update(sizes[unit])


def encode_unit(job: Job, unit: int, start: int) -> int:
    """Encodes the names of one unit. The index is written last: if it exists, the unit is complete."""
    codec = CODECS.of(job.config)
    source = sources.open_source(job.source)
    encoded, is_variant, refused = [], [], []
    with open(job.work / "names.jsonl", "rb") as file:
        file.seek(start)
        names = [json.loads(line) for line in itertools.islice(file, job.unit_items)]
    for name in names:
        try:
            data = job.data
            found = codec.items.documents(source, name, data["augment"], data["stride"], data["background"])
        except Refused as refusal:
            refused.append({"name": name, "reason": refusal.reason, "detail": refusal.detail})
            continue
        encoded += found
        is_variant += [False] + [True] * (len(found) - 1)
    keys = [document_key(job.data["seed"], document) for document in encoded]
    write_whole(_documents_path(job, unit), b"".join(encoded))
    write_whole(_refused_path(job, unit), b"".join(json.dumps(line).encode() + b"\n" for line in refused))
    with replacing(_index_path(job, unit)) as temporary, open(temporary, "wb") as file:
        np.savez(
            file,
            keys=np.frombuffer(b"".join(keys), ">u8").reshape(-1, 4),
            lengths=np.array([len(document) for document in encoded], np.uint32),
            is_variant=np.array(is_variant, bool),
        )
    return unit


def document_key(seed: int, document: bytes) -> bytes:
    """The 32 bytes by which documents are ordered, split and assigned to shards."""
    return hashlib.sha256(f"{seed}:".encode() + hashlib.sha256(document).digest()).digest()


def shard_of(key: bytes, num_shards: int) -> int:
    """The training shard of the document with this key."""
    return int.from_bytes(key[-8:]) % num_shards


# Stage 2: order


def _order(job: Job, num_units: int) -> tuple[np.ndarray, int, np.ndarray, dict]:
    """Orders and splits all documents, and writes `refused.jsonl`.

    Returns:
      places: _PLACE [kept], by key.
      held_out: how many of them, from the first, are held out.
      shard: int64 [kept - held_out], the training shard of each of the others.
      counts: pictures or clips kept, duplicates among them and refused, and variants, for the manifest.
    """
    all_keys, all_places, all_variants = [], [], []
    refused: collections.Counter[str] = collections.Counter()
    first_refused: list[str] = []
    with replacing(Path(job.out) / REFUSED, job.work) as temporary, open(temporary, "wb") as refused_file:
        for unit in range(num_units):
            with np.load(_index_path(job, unit)) as index:
                keys, lengths = index["keys"], index["lengths"]
                all_variants.append(index["is_variant"])
            places = np.empty(len(lengths), _PLACE)
            places["unit"], places["length"] = unit, lengths
            places["offset"] = np.cumsum(lengths, dtype=np.uint64) - lengths
            all_keys.append(keys)
            all_places.append(places)
            for line in _refused_path(job, unit).read_bytes().splitlines():
                refused_file.write(line + b"\n")
                entry = json.loads(line)
                refused[entry["reason"]] += 1
                if len(first_refused) < _NAMES_IN_MANIFEST:
                    first_refused.append(f"{entry['name']}: {entry['reason']}")
    keys, places = np.concatenate(all_keys), np.concatenate(all_places)
    if not len(keys):
        reasons = ", ".join(f"{count} {reason}" for reason, count in refused.most_common())
        item = CODECS.of(job.config).item
        raise InputError(f"no {item} of {job.source} can be used ({reasons}); see {Path(job.out) / REFUSED}")

    is_variant = np.concatenate(all_variants)
    # the picture of each variant; a picture itself
    item = np.maximum.accumulate(np.where(is_variant, 0, np.arange(len(keys))))
    order = np.lexsort(keys.T[::-1])  # by the first 8 bytes, then the next ...
    in_order = keys[order]
    repeats = np.concatenate([[False], (in_order[1:] == in_order[:-1]).all(axis=1)])
    rank = np.empty(len(keys), np.int64)  # by key; equal for equal documents
    rank[order] = np.cumsum(~repeats)

    items = order[~is_variant[order]]
    is_copy = np.concatenate([[False], rank[items[1:]] == rank[items[:-1]]])
    held_out = _num_held_out(job.data["holdout"], is_copy)
    trains = rank > rank[items[held_out - 1]]
    stays = ~is_variant | (trains & trains[item])
    order = order[stays[order]]
    keys, places = keys[order], places[order]
    shard = keys[held_out:, 3] % np.uint64(job.data["shards"])
    counts = {
        "kept": len(items),
        "duplicates": int(is_copy.sum()),
        "variants": len(keys) - len(items),
        "refused": dict(sorted(refused.items())),
        "first_refused": first_refused,
    }
    return places, held_out, shard.astype(np.int64), counts


def _num_held_out(holdout: float, is_copy: np.ndarray) -> int:
    """The number of held-out documents, the first in order. `is_copy`: equal to the previous document."""
    kept = len(is_copy)
    count = int(holdout) if holdout >= 1 else max(1, round(holdout * kept))
    while count < kept and is_copy[count]:
        count += 1
    if count >= kept:
        raise InputError(f"data.holdout={holdout} leaves nothing of {kept} documents for training")
    return count


def _read_places(job: Job, places: np.ndarray) -> Iterator[bytes]:
    for unit, offset, length in places.tolist():
        with open(_documents_path(job, unit), "rb") as file:
            file.seek(offset)
            yield file.read(length)


def _make_tokenizer(job: Job, training: np.ndarray, given: Tokenizer | None) -> Tokenizer:
    path = Path(job.out) / tokenizers.FILE
    if path.exists():  # from before a kill
        return tokenizers.load(job.out, job.config)
    if given is None:
        settings = job.config["tokenizer"]
        wanted = settings.get("documents", 0)  # a kind without this key learns nothing
        sample = training[:wanted]
        if wanted:
            logging.info("learning %d entries from %d training documents", settings["vocab_size"], len(sample))
        if len(sample) < wanted:
            logging.info("(tokenizer.documents asks for %d, there are no more)", wanted)
        kind = TOKENIZERS.kind_of(job.config)
        given = kind.learn(settings, _read_places(job, sample), CODECS.of(job.config))
    given.save(job.work / tokenizers.FILE)
    os.replace(job.work / tokenizers.FILE, path)
    return given


# Stage 3: pack


def _pack_all(pool: Pool, job: Job, places: np.ndarray, held_out: int, shard: np.ndarray) -> dict[str, list[dict]]:
    """Writes all shards; returns their manifest entries by split, in order."""
    count = job.data["shards"]
    training = places[held_out:][np.argsort(shard, kind="stable")]
    bounds = np.concatenate([[0], np.cumsum(np.bincount(shard, minlength=count))])

    def tasks() -> Iterator[tuple]:
        yield job, "heldout", 0, 1, places[:held_out]
        for index in range(count):
            yield job, "train", index, count, training[bounds[index] : bounds[index + 1]]

    entries: dict[str, list[dict]] = {split: [] for split in records.SPLITS}
    with progress(len(places), "doc", "packing") as bar:
        for split, entry in pool.map_unordered(_pack_shard, tasks()):
            entries[split].append(entry)
            bar.update(entry["documents"])
    return {split: sorted(found, key=lambda entry: entry["name"]) for split, found in entries.items()}


def _pack_shard(job: Job, split: str, index: int, count: int, places: np.ndarray) -> tuple[str, dict]:
    """Writes one shard, then its manifest entry in the work folder: if that exists, the shard is complete."""
    path = Path(job.out) / records.shard_name(split, index, count)
    record = job.work / f"{path.name}.json"
    if record.exists():
        return split, json.loads(record.read_bytes())
    learnt = tokenizers.load(job.out, job.config)
    batches = (list(_read_places(job, places[start : start + _BATCH])) for start in range(0, len(places), _BATCH))
    documents = itertools.chain.from_iterable(map(learnt.encode_batch, batches))
    entry = {"name": path.name, "bytes": int(places["length"].sum(dtype=np.int64))}
    with replacing(path, job.work) as temporary:
        entry |= records.write_shard(temporary, documents, job.data["seq_len"])
    write_whole(record, json.dumps(entry).encode())
    return split, entry
