"""Sources of pictures and clips. A path names a source; `SOURCES` lists the kinds.

| path | source |
|---|---|
| `embedded:mnist` | 10,000 digits |
| `tfds:NAME[:SPLIT]` | a dataset of TensorFlow Datasets |
| a folder that `jpeglm.prepare` wrote | its held-out documents |
| a folder | the files below it, by the rule of `listing`; or the records of all `*.array_record` files in it |
| `*.zip`, `*.tar`, `*.tar.gz`, `*.tgz`, `*.tar.bz2`, `*.tbz2`, `*.tar.xz`, `*.txz` | the members, likewise |
| `*.array_record` | the records, each the bytes of a picture file |
| `*.npz`, `*.npy`, `*.npz:NAME` | one array of pictures, uint8 [n, h, w], [n, h, w, 1] or [n, h, w, 3] |

Suffixes may be in capitals. To add a source, write one file with a class that follows the protocol in `base`, and add
one line below. Some items of a source cannot be read, and some sources cannot be used:

| input | result |
|---|---|
| a pipe, socket, device with the name of a picture | refused, "not a regular file" |
| no permission, dangling link, gone since the folder was listed | refused, "unreadable" |
| a member of a zip or tar that is a link or a device, or has holes | refused, "not a regular file" |
| a member whose name is absolute or holds `..` | refused, "unsafe name" |
| an encrypted member of a zip, one compressed otherwise than by deflate | refused, "unreadable" |
| a file, a member, a record of more than 512 MiB | refused, "too large" |
| a member that is damaged, or longer than its header says | refused, "broken" |
| a folder that cannot be listed, a file of pictures that is cut off | an error: how much is missing is not known |
| an archive with anything but zeros after its end, or in front of a zip: another archive, perhaps | an error |
| a folder with pictures and record files side by side, arrays that are not uint8 pictures | an error |

A refusal has a reason, which is counted in the manifest, and a detail, which is listed beside the name. `pictures`
says how a picture is then converted.
"""

import functools
import os
from collections.abc import Iterator

from jpeglm.core.errors import InputError, printable
from jpeglm.core.registry import installed, resolved
from jpeglm.data.sources.base import Source

# The kinds, in the order in which they are asked whether they take a path. An entry is a class, or its path as text,
# which is imported on first use. Kinds of other packages come last; see jpeglm/core/registry.py.
SOURCES: list[type[Source] | str] = [
    "jpeglm.data.sources.embedded:EmbeddedMnist",
    "jpeglm.data.sources.tfds:TfdsDataset",
    "jpeglm.data.sources.heldout:HeldOut",
    "jpeglm.data.sources.arrays:Arrays",  # before other files: NAME in FILE.npz:NAME may have their suffix
    "jpeglm.data.sources.array_records:ArrayRecords",  # before folders: it also takes folders of records
    "jpeglm.data.sources.folders:Folder",
    "jpeglm.data.sources.zips:Zip",
    "jpeglm.data.sources.tars:Tar",
    *installed("sources").values(),
]


@functools.lru_cache(maxsize=1)
def open_source(path: str) -> Source:
    """`open_anew`, cached per process while the path stays the same."""
    return open_anew(path)


def open_anew(path: str) -> Source:
    """The source that `path` names.

    Raises:
      InputError: there is no such source, or it is damaged.
    """
    for kind in _kinds():
        if kind.takes(path):
            return kind(path)
    if os.path.exists(path):
        suffixes = ", ".join(suffix for kind in _kinds() for suffix in kind.suffixes)
        raise InputError(f"{printable(path)}: neither a folder nor a file of a kind that holds pictures ({suffixes})")
    raise InputError(f"no such folder: {printable(path)}")


def _kinds() -> Iterator[type[Source]]:
    """The classes of `SOURCES`, each imported only when reached."""
    return map(resolved, SOURCES)
