"""The canonical documents of a set of pictures or clips, by name.

The codec decides what an item of a source is and how it becomes documents: `Codec.items`.
"""

import hashlib
import os
from collections.abc import Container

from absl import logging

from jpeglm.core.config import DEFAULT_BACKGROUND
from jpeglm.core.errors import InputError, Refused, printable
from jpeglm.data import records, sources
from jpeglm.data.codecs import Codec
from jpeglm.data.sources.base import Source
from jpeglm.data.sources.listing import PassedOver


def check(source: Source, codec: Codec) -> None:
    """Raises InputError if the source cannot have what the codec encodes."""
    if records.is_prepared(source.path):
        raise InputError(f"{printable(source.path)} holds prepared data: documents, and no {codec.item}s to encode")
    codec.items.check_source(source)


def read(path: str, codec: Codec, limit: int | None = None, background: str = DEFAULT_BACKGROUND) -> dict[str, bytes]:
    """The canonical documents of a set of pictures or clips, by names that can be used as file names.

    Args:
      path: as for `sources.open_source`; for a folder from `jpeglm.prepare`, its held-out documents are read.
      codec: of the documents.
      limit: the most documents to read.
      background: of transparent pictures, as the run's config says (`data.background`).

    Raises:
      InputError: there are none, or they belong to another codec.
    """
    source, left_out, passed_over = sources.open_source(path), 0, PassedOver()
    found: dict[str, bytes] = {}
    if (prepared := source.documents(codec, limit)) is not None:
        found = {f"heldout-{number:05d}": document for number, document in enumerate(prepared)}
        if not found:
            raise InputError(f"{printable(path)} was prepared without held-out {codec.item}s")
        return found
    check(source, codec)
    for name in codec.items.names(source, passed_over):
        if limit is not None and len(found) == limit:
            break
        try:
            document = codec.items.documents(source, name, background=background)[0]
        except Refused as error:
            logging.warning("left out %s: %s", printable(name), error)
            left_out += 1
            continue
        found[_file_name(name, found)] = document
    if left_out:
        logging.warning("%d files left out, %d %ss read", left_out, len(found), codec.item)
    if passed_over.counts:
        logging.warning("%s: %d %ss read%s", printable(path), len(found), codec.item, passed_over.after("; "))
    if not found:
        raise InputError(f"{printable(path)} holds no {codec.item} that can be read{passed_over.after('; ')}")
    return found


def _file_name(name: str, taken: Container[str]) -> str:
    """The file name for samples of an item: its name without slashes, or a hash if that is not usable."""
    flat = name.rstrip("/").replace("/", "_")
    try:
        is_short = len(os.fsencode(flat)) <= 200
    except UnicodeEncodeError:  # the locale lacks these characters
        is_short = False
    if is_short and not flat.startswith(".") and flat.isprintable() and flat not in taken:
        return flat
    chosen = "picture-" + hashlib.sha256(name.encode(errors="surrogateescape")).hexdigest()[:16]
    logging.info("%s is called %s here", printable(name), chosen)
    return chosen
