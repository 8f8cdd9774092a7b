"""Prints tables about prepared data: what was kept and refused, splits and shards, the tokenizer."""

from collections.abc import Mapping
from typing import Any

from tabulate import tabulate

from jpeglm.core.registry import CODECS
from jpeglm.data import records, tokenizers

_SHOWN_BYTES = 40  # of a merge


def print_tables(folder: str, num_merges: int) -> None:
    """Prints config, counts, splits, shards and the longest merges of prepared data.

    Args:
      folder: that `jpeglm.prepare` wrote.
      num_merges: how many of the longest merges to show.

    Raises:
      InputError: no manifest or tokenizer can be read there.
    """
    manifest = records.read_manifest(folder)
    learnt = tokenizers.load(folder, manifest["config"])
    config = manifest["config"]
    _print("Config", ["key", "value"], _settings(manifest))
    _print(f"{CODECS.of(config).item.capitalize()}s", ["", "number"], _counts(manifest["counts"]))
    _print(
        "Splits",
        ["split", "documents", "bytes", "tokens", "bytes a token", "chunks", "filled"],
        [_split_row(name, split, config["data"]["seq_len"]) for name, split in manifest["splits"].items()],
    )
    _print(
        "Shards",
        ["shard", "documents", "chunks", "tokens", "tokens a document: mean", "min", "max", "sha256"],
        [_shard_row(shard) for split in manifest["splits"].values() for shard in split["shards"]],
    )
    merges = [token for token, data in enumerate(learnt.token_bytes) if len(data) > 1]
    merges.sort(key=lambda token: -len(learnt.token_bytes[token]))
    _print(
        f"Tokenizer: {learnt.vocab_size} entries, {len(merges)} merges; the longest",
        ["id", "bytes", "hexadecimal"],
        [_merge_row(token, learnt.token_bytes[token]) for token in merges[:num_merges]],
    )


def _settings(manifest: Mapping[str, Any]) -> list[tuple]:
    sections = manifest["config"].items()
    settings = [(f"{name}.{key}", value) for name, section in sections for key, value in section.items()]
    return [*settings, ("source", manifest["source"]), *manifest["encoder_versions"].items()]


def _counts(counts: Mapping[str, Any]) -> list[tuple]:
    rows = [("seen", counts["seen"]), ("kept", counts["kept"]), ("duplicates among these", counts["duplicates"])]
    rows.append(("variants added", counts["variants"]))
    rows += [(f"refused: {key}", number) for key, number in counts["refused"].items()]
    return rows + [(f"passed over: {key}", number) for key, number in counts.get("passed_over", {}).items()]


def _split_row(name: str, split: Mapping[str, Any], seq_len: int) -> tuple:
    written = split["tokens"] - 2 * split["documents"]  # <s> and </s> stand for no bytes
    filled = split["tokens"] / (split["chunks"] * seq_len)
    sizes = split["documents"], split["bytes"], split["tokens"], f"{split['bytes'] / written:.3f}"
    return name, *sizes, split["chunks"], f"{filled:.1%}"


def _shard_row(shard: Mapping[str, Any]) -> tuple:
    mean = f"{shard['tokens'] / shard['documents']:.1f}" if shard["documents"] else "-"
    sizes = shard["documents"], shard["chunks"], shard["tokens"], mean, shard["shortest"], shard["longest"]
    return shard["name"], *sizes, shard["sha256"][:12]


def _merge_row(token: int, data: bytes) -> tuple:
    return token, len(data), data[:_SHOWN_BYTES].hex() + ("..." if len(data) > _SHOWN_BYTES else "")


def _print(title: str, headers: list[str], rows: list[tuple]) -> None:
    print(f"{title}\n\n{tabulate(rows, headers=headers, intfmt=',', disable_numparse=False)}\n")
