"""Prepared data as tables: what was kept and refused, its splits and shards, its tokenizer."""

from pathlib import Path

from tabulate import tabulate

from jpeglm.data import codecs, records
from jpeglm.data.tokenizers.bpe import Tokenizer

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
    learnt = Tokenizer.load(Path(folder) / records.TOKENIZER)
    config, counts, splits = manifest["config"], manifest["counts"], manifest["splits"]

    settings = [(f"{name}.{key}", value) for name, section in config.items() for key, value in section.items()]
    settings += [("source", manifest["source"]), *manifest["encoder_versions"].items()]
    _print("Config", ["key", "value"], settings)

    rows = [("seen", counts["seen"]), ("kept", counts["kept"]), ("duplicates among these", counts["duplicates"])]
    rows.append(("variants added", counts["variants"]))
    rows += [(f"refused: {key}", number) for key, number in counts["refused"].items()]
    rows += [(f"passed over: {key}", number) for key, number in counts.get("passed_over", {}).items()]
    _print(f"{codecs.make(config['codec']).item.capitalize()}s", ["", "number"], rows)

    _print(
        "Splits",
        ["split", "documents", "bytes", "tokens", "bytes a token", "chunks", "filled"],
        [
            (
                name,
                split["documents"],
                split["bytes"],
                split["tokens"],
                # <s> and </s> stand for no bytes
                f"{split['bytes'] / (split['tokens'] - 2 * split['documents']):.3f}",
                split["chunks"],
                f"{split['tokens'] / (split['chunks'] * config['data']['seq_len']):.1%}",
            )
            for name, split in splits.items()
        ],
    )
    _print(
        "Shards",
        ["shard", "documents", "chunks", "tokens", "tokens a document: mean", "min", "max", "sha256"],
        [
            (
                shard["name"],
                shard["documents"],
                shard["chunks"],
                shard["tokens"],
                f"{shard['tokens'] / shard['documents']:.1f}" if shard["documents"] else "-",
                shard["shortest"],
                shard["longest"],
                shard["sha256"][:12],
            )
            for split in splits.values()
            for shard in split["shards"]
        ],
    )
    merges = [token for token, data in enumerate(learnt.token_bytes) if len(data) > 1]
    merges.sort(key=lambda token: -len(learnt.token_bytes[token]))
    _print(
        f"Tokenizer: {learnt.vocab_size} entries, {len(merges)} merges; the longest",
        ["id", "bytes", "hexadecimal"],
        [
            (token, len(data), data[:_SHOWN_BYTES].hex() + ("..." if len(data) > _SHOWN_BYTES else ""))
            for token, data in ((token, learnt.token_bytes[token]) for token in merges[:num_merges])
        ],
    )


def _print(title: str, headers: list[str], rows: list[tuple]) -> None:
    print(f"{title}\n\n{tabulate(rows, headers=headers, intfmt=',', disable_numparse=False)}\n")
