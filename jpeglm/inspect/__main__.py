"""What is in prepared data: `python -m jpeglm.inspect DIR`."""

from absl import flags
from tabulate import tabulate

from jpeglm.core import cli
from jpeglm.core.registry import CODECS
from jpeglm.data import records, tokenizers

_SHOWN_BYTES = 40  # of a merge


def main(folder: str) -> None:
    manifest = records.read_manifest(folder)
    learnt = tokenizers.load(folder, manifest["config"])
    config, counts, splits = manifest["config"], manifest["counts"], manifest["splits"]

    settings = [(f"{name}.{key}", value) for name, section in config.items() for key, value in section.items()]
    settings += [("source", manifest["source"]), *manifest["encoder_versions"].items()]
    _print("Config", ["key", "value"], settings)

    rows = [("seen", counts["seen"]), ("kept", counts["kept"]), ("duplicates among these", counts["duplicates"])]
    rows.append(("variants added", counts["variants"]))
    rows += [(f"refused: {key}", number) for key, number in counts["refused"].items()]
    rows += [(f"passed over: {key}", number) for key, number in counts.get("passed_over", {}).items()]
    _print(f"{CODECS.of(config).item.capitalize()}s", ["", "number"], rows)

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
            for token, data in ((token, learnt.token_bytes[token]) for token in merges[: _MERGES.value])
        ],
    )


def _print(title: str, headers: list[str], rows: list[tuple]) -> None:
    print(f"{title}\n\n{tabulate(rows, headers=headers, intfmt=',', disable_numparse=False)}\n")


if __name__ == "__main__":
    _MERGES = flags.DEFINE_integer("merges", 10, "How many of the longest merges to show.", 0)
    cli.run(main, positional=("DIR",))
