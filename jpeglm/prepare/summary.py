"""The summary that `jpeglm.prepare` prints at the end."""

import os
from collections.abc import Mapping
from typing import Any

from tabulate import tabulate

from jpeglm.core.registry import CODECS
from jpeglm.prepare import plan


def print_summary(manifest: Mapping[str, Any], out: str | os.PathLike) -> None:
    """Prints how many items were kept, refused and skipped, and the sizes of the splits.

    Args:
      manifest: of the prepared data.
      out: its folder.
    """
    counts = manifest["counts"]
    refused = ", ".join(f"{count} {reason}" for reason, count in counts["refused"].items())
    items = f"{CODECS.of(manifest['config']).item}s"
    print(f"{counts['kept']} of {counts['seen']} {items} kept; refused: {refused or 'none'}")
    if passed_over := counts.get("passed_over"):
        found = ", ".join(f"{count} {kind}" for kind, count in passed_over.items())
        print(f"passed over, as they are no {items}: {found}; named in {out}/{plan.PASSED_OVER}")
    rows = [
        [name, split["documents"], split["bytes"], split["tokens"], split["chunks"], len(split["shards"])]
        for name, split in manifest["splits"].items()
    ]
    print(tabulate(rows, headers=["split", "documents", "bytes", "tokens", "chunks", "shards"], intfmt=","))
