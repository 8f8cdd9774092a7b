"""Writing files and folders: atomically, by one command at a time, and never inside the input."""

import contextlib
import errno
import fcntl
import io
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TypeVar

import numpy as np
from absl import logging
from etils import epath

from jpeglm.core.errors import InputError, writing

AnyPath = TypeVar("AnyPath", Path, epath.Path)
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)


@contextlib.contextmanager
def replacing(path: AnyPath, beside: AnyPath | None = None) -> Iterator[AnyPath]:
    """Yields a temporary file name to write to, which is then renamed to `path`: `path` is never half-written.

    If the block or the renaming fails, the temporary file is removed, and `path` stays as it was.

    Args:
      path: local, or on a store that etils knows (gs://).
      beside: the folder to write in, on the same file system; that of `path` if None.
    """
    # Not the process's number: that of a process on another host may be the same.
    temporary = (beside or path.parent) / f".{path.name}.{secrets.randbits(48)}"
    try:
        yield temporary
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def remove_unfinished(folder: epath.Path) -> None:
    """Removes what killed writers (`replacing`) left in a folder; a run that is often preempted would gather it."""
    for path in folder.iterdir():
        if re.fullmatch(r"\..+\.\d+", path.name) and not path.is_dir():
            path.unlink(missing_ok=True)


def write_whole(path: Path | epath.Path, content: bytes) -> None:
    """Writes a file by `replacing`."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def npz(arrays: Mapping[str, np.ndarray]) -> bytes:
    """The content of an npz file with these arrays, by name."""
    content = io.BytesIO()
    np.savez(content, **arrays)  # type: ignore[arg-type]  # for mypy an array could be the flag `allow_pickle`
    return content.getvalue()


@contextlib.contextmanager
def new_folder(path: AnyPath) -> Iterator[AnyPath]:
    """Yields a temporary folder to write in, which is then renamed to `path`: `path` is never half-written.

    Raises:
      InputError: `path` or PATH.partial exists, or the system refuses.
    """
    partial = path.with_name(path.name + ".partial")
    with writing(path):
        if path.exists():
            raise InputError(f"{path} exists; nothing is overwritten")
        if partial.exists():
            raise InputError(f"{partial} exists: another conversion is under way, or was killed; then remove it")
        partial.mkdir(parents=True)
        try:
            yield partial
            partial.rename(path)
        except BaseException:
            epath.Path(partial).rmtree(missing_ok=True)
            raise


def check_outside(out: str | os.PathLike, **inputs: str | os.PathLike | None) -> None:
    """Refuses an output that is inside one of the inputs, or on a store that is not mounted.

    Otherwise the next start would read its own output as input. Links directly in an input folder are followed, links
    in its subfolders are not.

    Args:
      out: a folder or file to be written.
      **inputs: paths by the names of their flags, or of positional arguments in capitals. None, and names that are not
        local paths (`tfds:`, `gs://`), are ignored.

    Raises:
      InputError: `out` is one of the inputs or inside one, or is not a local path.
    """
    if "://" in os.fspath(out):
        raise InputError(f"{out}: not a local path; write to one, then copy it there")
    written = Path(os.path.realpath(out))
    for name, path in inputs.items():
        if path is None or not os.path.exists(path):
            continue
        named = f"{name}={path}" if name.isupper() else f"--{name}={path}"
        if not os.path.isdir(path):
            if written == Path(os.path.realpath(path)):
                raise InputError(f"{out} is the file that {named} reads: it would be overwritten")
            continue
        folder = Path(os.path.realpath(path))
        entries = os.scandir(os.fspath(path))
        links = [os.path.realpath(entry.path) for entry in entries if entry.is_symlink() and entry.is_dir()]
        followed = [link for link in links if not folder.is_relative_to(link)]  # the listing skips a loop
        if any(written.is_relative_to(read) for read in (folder, *followed)):
            raise InputError(f"{out} lies in {named}: take a place outside; what lies there may be read as input")


def check_store(folder: epath.Path) -> None:
    """Refuses a workdir that is a file, is on an unreachable store (s3:// without s3fs), or is not UTF-8.

    Raises:
      InputError: names the cause, and what must be installed.
    """
    try:
        str(folder if "://" in str(folder) else folder.absolute()).encode()  # as the libraries for checkpoints do
    except UnicodeEncodeError as error:
        raise InputError(f"{folder}: the whole path of a run's folder must be UTF-8") from error
    try:
        is_file = folder.exists() and not folder.is_dir()
    except ImportError as error:
        raise InputError(f"{folder}: {error}") from error
    except OSError as error:
        raise InputError(f"{folder}: {error.strerror or error}") from error
    if is_file:
        raise InputError(f"{folder} is a file; a folder is needed")


@contextlib.contextmanager
def owned(folder: str | os.PathLike, is_shared: bool = False) -> Iterator[None]:
    """Makes `folder` and locks it, so that no second command writes there. A killed command releases the lock.

    If this made the folder and nothing was written to it, it is removed again.

    Args:
      folder: where the command writes.
      is_shared: whether other commands that share it may write there, too: see `parts.owned`.

    Raises:
      InputError: another command holds it, or it cannot be made.
    """
    is_new = not os.path.exists(folder)
    with writing(folder):
        os.makedirs(folder, exist_ok=True)
    busy = f"{folder}: another command is writing here; wait for it, or take another"
    try:
        with lock(Path(folder, ".lock"), busy, is_shared):
            yield
    finally:
        with contextlib.suppress(OSError, InputError):  # it may be gone; another may share it
            # the command was refused before it wrote anything
            if is_new and all(name.startswith(".lock") for name in os.listdir(folder)):
                with lock(Path(folder, ".lock"), busy):
                    shutil.rmtree(folder)


@contextlib.contextmanager
def lock(path: Path, busy: str = "", is_shared: bool = False, waits: bool = False) -> Iterator[None]:
    """Holds the system's lock on a file, which is made; it also works between the hosts of an NFS.

    On a file system without locks it only logs a warning.

    Args:
      path: of the file, in a folder that is to be locked.
      busy: the message if another command holds the lock.
      is_shared: whether others may hold it in the same way.
      waits: whether to wait for another command that holds it.

    Raises:
      InputError: another command holds it, or the file cannot be made.
    """
    with writing(path.parent):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        try:
            kind = fcntl.LOCK_SH if is_shared else fcntl.LOCK_EX
            fcntl.flock(descriptor, kind | (0 if waits else fcntl.LOCK_NB))
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                raise InputError(busy) from error
            if error.errno not in _NO_LOCKS:
                raise InputError(f"cannot lock {path.parent}: {error.strerror}") from error
            logging.warning("%s: this file system has no locks; let no second command write here", path.parent)
        yield
    finally:
        os.close(descriptor)
