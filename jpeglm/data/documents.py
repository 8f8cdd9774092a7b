"""The canonical documents of a set of pictures or clips, by name.

What an item of a source is, and how it becomes documents, the codec says: `Codec.items`.
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
    """`InputError` if the source cannot hold what the codec encodes."""
    if records.is_prepared(source.path):
        raise InputError(f"{printable(source.path)} holds prepared data: documents, and no {codec.item}s to encode")
    codec.items.check_source(source)


def read(path: str, codec: Codec, limit: int | None = None, background: str = DEFAULT_BACKGROUND) -> dict[str, bytes]:
    """The canonical documents of a set of pictures or clips, by names that are good as those of files.

    Args:
      path: what `sources.open_source` understands; of what `jpeglm.prepare` wrote, they are the held-out documents.
      codec: of the documents.
      limit: at most so many.
      background: of transparent pictures, as the run's config says (`data.background`).

    Raises:
      InputError: there is none, or the documents are another codec's.
    """
    source, left_out, passed_over = sources.open_source(path), 0, PassedOver()
    found: dict[str, bytes] = {}
    if (prepared := source.documents(codec, limit)) is not None:
        return {f"heldout-{number:05d}": document for number, document in enumerate(prepared)}
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
    """What the samples of an item are called: its name without slashes, or a hash where that would be no good name."""
    flat = name.rstrip("/").replace("/", "_")
    try:
        is_short = len(os.fsencode(flat)) <= 200
    except UnicodeEncodeError:  # in a locale without these characters
        is_short = False
    if is_short and not flat.startswith(".") and flat.isprintable() and flat not in taken:
        return flat
    chosen = "picture-" + hashlib.sha256(name.encode(errors="surrogateescape")).hexdigest()[:16]
    logging.info("%s is called %s here", printable(name), chosen)
    return chosen
