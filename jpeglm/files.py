"""Files and folders that a command writes: whole or not at all, by one command at a time, never inside its input."""

import contextlib
import errno
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from absl import logging
from etils import epath

from jpeglm.errors import InputError, writing

_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)


def write_whole(path: Path, content: bytes) -> None:
    """Writes a file beside its place and renames it there, so that it exists whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def check_outside(out: str | os.PathLike, **inputs: str | os.PathLike | None) -> None:
    """Refuses an output that lies in one of the inputs: the next start would take it for input.

    Args:
      out: a folder or file to be written.
      **inputs: paths by the names of their flags, or of positional arguments in capitals. None, and what is no folder
        here (an archive, `tfds:`, `gs://`), is passed over: nothing can be written into it.

    Raises:
      InputError: `out` is one of the folders or lies below one, links followed.
    """
    written = Path(os.path.realpath(out))
    for name, path in inputs.items():
        if path is None or not os.path.isdir(path):
            continue
        if written.is_relative_to(os.path.realpath(path)):
            named = f"{name}={path}" if name.isupper() else f"--{name}={path}"
            raise InputError(f"{out} lies in {named}: what is written there would be read as input next time")


def check_store(folder: epath.Path) -> None:
    """Refuses a workdir that is a file, or on a store that nothing here can reach, as s3:// without s3fs.

    Raises:
      InputError: which of them, and what must be installed.
    """
    try:
        is_file = folder.exists() and not folder.is_dir()
    except ImportError as error:
        raise InputError(f"{folder}: {error}") from error
    except OSError as error:
        raise InputError(f"{folder}: {error.strerror or error}") from error
    if is_file:
        raise InputError(f"{folder} is a file; a folder is needed")


@contextlib.contextmanager
def owned(folder: str | os.PathLike) -> Iterator[None]:
    """Makes `folder` and holds it, so that no second command writes there meanwhile. A killed command lets it go.

    The system's lock on FOLDER/.lock does that, also between the hosts of an NFS. Where a file system knows no locks,
    a warning says so and nothing is held.

    Raises:
      InputError: another command holds it, or it cannot be made.
    """
    with writing(folder):
        os.makedirs(folder, exist_ok=True)
        lock = os.open(os.path.join(folder, ".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise InputError(f"{folder}: another command is writing here; wait for it, or take another") from error
            logging.warning("%s: this file system has no locks; let no second command write here", folder)
        yield
    finally:
        os.close(lock)
