"""Files and their bits as tables: a row for each file, or a row for each compressor."""

import dataclasses
from collections.abc import Iterator, Mapping

import numpy as np
from tabulate import tabulate
from tqdm import tqdm

from jpeglm.core.errors import printable
from jpeglm.data.codecs import Codec
from jpeglm.sample.scoring import Scorer
from jpeglm.score.compressors import DOCUMENT, FILE, Compressor, Sizes


@dataclasses.dataclass(frozen=True)
class Row:
    """A document and its bits under the model, which are its ideal code length.

    Attributes:
      size: bytes.
      bits: of all its tokens and EOS.
      header_bits: of those in `Codec.header_of` alone.
    """

    name: str
    size: int
    bits: float
    header_bits: float


def rows(scorer: Scorer, codec: Codec, documents: Mapping[str, bytes]) -> Iterator[Row]:
    """Scores documents, with a progress bar.

    Raises:
      InputError: see `Scorer.nats_of`.
    """
    results = tqdm(scorer.nats_of(documents.values()), total=len(documents), unit=codec.item, disable=None)
    for (name, document), nats in zip(documents.items(), results, strict=True):
        bits = nats.astype(np.float64) / np.log(2)
        header = bits[: scorer.num_tokens(codec.header_of(document))]
        yield Row(name, len(document), float(bits.sum()), float(header.sum()))


def print_table(scorer: Scorer, codec: Codec, documents: Mapping[str, bytes], left_out: Mapping[str, str]) -> None:
    """Scores documents and prints a row for each, their means, and what was left out.

    Args:
      documents: one or more canonical documents by name. Mean bits per byte are over all bytes, the others over files.
      left_out: by name, why other documents are not scored.

    Raises:
      InputError: see `Scorer.nats_of`.
    """
    table = [
        (row.name, row.size, row.bits / row.size, row.bits / codec.pixels, row.header_bits)
        for row in rows(scorer, codec, documents)
    ]
    sizes, per_byte, per_pixel, headers = (np.array(column) for column in list(zip(*table, strict=True))[1:])
    table.append(("mean", sizes.mean(), np.average(per_byte, weights=sizes), per_pixel.mean(), headers.mean()))
    print(
        tabulate(table, headers=(codec.item, "bytes", "bits a byte", "bits a pixel", "header's bits"), floatfmt=".4f")
    )
    _print_left_out(left_out, len(documents), "the mean")


def print_comparison(
    scorer: Scorer,
    codec: Codec,
    documents: Mapping[str, bytes],
    left_out: Mapping[str, str],
    compressors: Mapping[str, Compressor],
) -> None:
    """Prints the model's ideal code length and the sizes that compressors reach, a row each.

    The first columns are of whole files. Those that begin with "rest:" are of what differs from file to file. Bits a
    byte are those for each byte of a document; the ratio is that to the ordinary file.

    Args:
      scorer, codec, documents, left_out: as of `print_table`.
      compressors: by name.

    Raises:
      InputError: see `Scorer.nats_of` and `Compressor.sizes`.
    """
    scored = list(rows(scorer, codec, documents))
    given = list(documents.values())
    bits, header_bits = sum(row.bits for row in scored), sum(row.header_bits for row in scored)
    found = {"this model, ideal": Sizes(bits / 8, (bits - header_bits) / 8)}
    found |= {name: compressor.sizes(codec, given) for name, compressor in compressors.items()}
    document, file = DOCUMENT.sizes(codec, given), FILE.sizes(codec, given)

    def columns(size: float, document: float, file: float) -> tuple[float, ...]:
        return size / len(given), 8 * size / document, 8 * size / len(given) / codec.pixels, size / file

    table = [
        (name, *columns(each.whole, document.whole, file.whole), *columns(each.rest, document.rest, file.rest))
        for name, each in found.items()
    ]
    heads = [f"bytes a {codec.item}", "bits a byte", "bits a pixel", "ratio"]
    headers = ("", *heads, *(f"rest: {head}" for head in heads))
    headers = tuple(header.replace(" a ", "\na ").replace("rest: ", "rest:\n") for header in headers)
    print(tabulate(table, headers=headers, floatfmt=("", *(".2f", ".4f", ".4f", ".4f") * 2)))
    _print_left_out(left_out, len(documents), "the sums")


def _print_left_out(left_out: Mapping[str, str], kept: int, result: str) -> None:
    for name, why in left_out.items():
        print(f"left out: {printable(name)}: {why}")
    if left_out:
        print(f"{len(left_out)} of {kept + len(left_out)} left out, and not in {result}")
