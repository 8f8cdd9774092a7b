"""Reads a PyTorch state dict without PyTorch and without running anything that the file asks for.

Both formats of `torch.save` are pickles that refer to raw storages: the older one is a series of pickles followed by
the storages, the newer one a zip archive with one record per storage. The unpickler here knows a handful of globals by
name and refuses everything else. The storages are memory-mapped, so a file may be larger than memory.
"""

import io
import mmap
import os
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import ml_dtypes
import numpy as np

from jpeglm.core.errors import InputError, reading

_MAGIC = 0x1950A86A20F9469CFC6C
_PROTOCOL = 1001
_DTYPES = {
    "FloatStorage": np.dtype(np.float32),
    "HalfStorage": np.dtype(np.float16),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "DoubleStorage": np.dtype(np.float64),
    "LongStorage": np.dtype(np.int64),
    "IntStorage": np.dtype(np.int32),
    "ShortStorage": np.dtype(np.int16),
    "CharStorage": np.dtype(np.int8),
    "ByteStorage": np.dtype(np.uint8),
    "BoolStorage": np.dtype(np.bool_),
}


class _Storage(NamedTuple):
    key: str
    dtype: np.dtype
    elements: int


class _Tensor(NamedTuple):
    storage: _Storage
    offset: int  # in elements, like the strides
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def load_state_dict(path: str | Path) -> dict[str, np.ndarray]:
    """Reads the state dict that `torch.save` wrote to `path`, in its zip or its older format.

    Tensors that share a storage share memory here too. The arrays are read-only memory maps of the file, with the
    shape, strides and dtype of the tensors; bfloat16 is `ml_dtypes.bfloat16`. The checksums of the zip format are
    verified.

    Raises:
        InputError: the file is absent, truncated, not a torch file, holds something else than named tensors, or
            asks for a global that is not on the list.
    """
    path = Path(path)
    with reading(path, "torch file"), path.open("rb") as file:
        is_zip = file.read(4) == b"PK\x03\x04"
        file.seek(0)
        contents, storages = _read_zip(file) if is_zip else _read_legacy(file)
        return _arrays(contents, storages)


def check_state_dict(
    path: str | Path, tensors: Mapping[str, np.ndarray], expected: Mapping[str, tuple[int, ...]], network: str
) -> None:
    """Raises InputError unless keys and shapes match and all tensors but batch-norm counters are finite float32."""
    missing, unexpected = sorted(expected.keys() - tensors.keys()), sorted(tensors.keys() - expected.keys())
    if missing or unexpected:
        first = f"lacks {missing[0]}" if missing else f"holds {unexpected[0]}"
        raise InputError(
            f"{path}: not the weights of {network}: {first} "
            f"({len(missing)} keys missing, {len(unexpected)} unexpected)"
        )
    for name, shape in expected.items():
        dtype = np.int64 if name.endswith(".num_batches_tracked") else np.float32
        if tensors[name].shape != shape or tensors[name].dtype != dtype:
            found = f"{tensors[name].dtype} {list(tensors[name].shape)}"
            raise InputError(f"{path}: {name} is {found}, expected {np.dtype(dtype)} {list(shape)}")
        with reading(path, "file of weights"):
            check_finite(name, tensors[name])


def check_finite(name: str, array: np.ndarray) -> None:
    """Raises InputError, with the tensor's name and their number, if values are NaN or infinite."""
    odd = array.size - np.count_nonzero(np.isfinite(array))
    if odd:
        raise InputError(f"tensor {name} holds {odd:,} numbers of {array.size:,} that are NaN or infinite")


def _read_legacy(file: BinaryIO) -> tuple[Any, dict[str, np.ndarray]]:
    try:
        magic = _Unpickler(file).load()
    except InputError:
        raise
    except Exception:
        magic = None
    if magic != _MAGIC:
        raise InputError("not a torch file: neither a zip archive nor the magic number of the older format")
    protocol = _Unpickler(file).load()
    if protocol != _PROTOCOL:
        raise InputError(f"protocol {protocol!r} of the older torch format is unknown; expected {_PROTOCOL}")
    if not _Unpickler(file).load()["little_endian"]:
        raise InputError("written on a big-endian machine, which is not supported")
    unpickler = _Unpickler(file)
    contents = unpickler.load()
    storages = {}
    for key in _Unpickler(file).load():
        if key not in unpickler.storages:
            raise InputError(f"storage {key!r} belongs to no tensor")
        storage = unpickler.storages[key]
        (count,) = struct.unpack("<q", _read_exactly(file, 8, key))
        if count != storage.elements:
            raise InputError(f"storage {key!r} holds {count} elements where its tensors expect {storage.elements}")
        storages[key] = _map(file, storage, file.tell())
        file.seek(count * storage.dtype.itemsize, io.SEEK_CUR)
    return contents, storages


def _read_exactly(file: BinaryIO, size: int, key: str) -> bytes:
    _check_left(file, file.tell(), size, key)
    return file.read(size)


def _check_left(file: BinaryIO, offset: int, size: int, key: str) -> None:
    left = os.fstat(file.fileno()).st_size - offset
    if size > left:
        raise InputError(f"truncated: storage {key!r} needs {size} bytes at offset {offset}, {left} are left")


def _map(file: BinaryIO, storage: _Storage, offset: int) -> np.ndarray:
    _check_left(file, offset, storage.elements * storage.dtype.itemsize, storage.key)
    whole = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    return np.frombuffer(whole, storage.dtype, storage.elements, offset)


def _read_zip(file: BinaryIO) -> tuple[Any, dict[str, np.ndarray]]:
    try:
        archive = zipfile.ZipFile(file)
    except zipfile.BadZipFile as error:
        raise InputError(f"truncated or damaged zip archive ({error})") from error
    pickles = [name for name in archive.namelist() if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise InputError("a zip archive, but not one that torch.save wrote: no data.pkl")
    root = pickles[0].removesuffix("data.pkl")
    if root + "constants.pkl" in archive.namelist():
        raise InputError("a TorchScript archive, which is a program with its tensors, and is not run")
    if root + "byteorder" in archive.namelist() and archive.read(root + "byteorder") != b"little":
        raise InputError("written on a big-endian machine, which is not supported")
    unpickler = _Unpickler(io.BytesIO(archive.read(pickles[0])))
    contents = unpickler.load()
    storages = {}
    for key, storage in unpickler.storages.items():
        try:
            record = archive.getinfo(f"{root}data/{key}")
        except KeyError:
            raise InputError(f"storage {key!r} is not in the archive") from None
        expected = storage.elements * storage.dtype.itemsize
        if record.file_size != expected or record.compress_type != zipfile.ZIP_STORED:
            raise InputError(f"storage {key!r} has {record.file_size} bytes, expected {expected}, uncompressed")
        with archive.open(record) as stream:  # verifies the checksum at the end
            while stream.read(1 << 20):
                pass
        file.seek(record.header_offset + 26)  # the lengths of name and extra field in front of the data
        lengths = struct.unpack("<HH", file.read(4))
        storages[key] = _map(file, storage, record.header_offset + 30 + sum(lengths))
    return contents, storages


class _Unpickler(pickle.Unpickler):
    """Builds plain containers and records of tensors; the data of the storages is read afterwards."""

    def __init__(self, file: BinaryIO):
        super().__init__(file)
        self.storages: dict[str, _Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        # A hostile pickle may try to set attributes or the state of any object that it gets here (numpy's dtypes would
        # allow it). So a storage class is returned as its name, and nothing else on the list can be changed.
        if module == "torch" and name in _DTYPES:
            return name
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return self._rebuild_tensor
        if (module, name) == ("torch._utils", "_rebuild_parameter"):
            return self._rebuild_parameter
        raise InputError(f"refused: the file asks for {module}.{name}, which is not needed to hold tensors")

    def persistent_load(self, pid: Any) -> _Storage:
        kind, storage_class, key, _location, count, *view = pid
        if kind != "storage" or storage_class not in _DTYPES or not isinstance(key, str) or any(view):
            raise InputError(f"refused: unknown reference {pid!r}")
        if not _is_size(count):
            raise InputError(f"storage {key!r} has an impossible size {count!r}")
        storage = _Storage(key, _DTYPES[storage_class], count)
        if self.storages.setdefault(key, storage) != storage:
            raise InputError(f"storage {key!r} is described in two ways")
        return storage

    def _rebuild_tensor(
        self, storage: Any, offset: Any, shape: Any, strides: Any, *_requires_grad_hooks_metadata: Any
    ) -> _Tensor:
        return _Tensor(storage, offset, shape, strides)

    def _rebuild_parameter(self, data: Any, *_requires_grad_hooks: Any) -> Any:
        return data


def _is_size(value: Any) -> bool:
    return type(value) is int and value >= 0


def _arrays(contents: Any, storages: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    if not isinstance(contents, dict):
        raise InputError(f"holds a {type(contents).__name__}, not a state dict")
    arrays = {}
    for name, value in dict.items(contents):
        if not isinstance(name, str) or not isinstance(value, _Tensor):
            raise InputError(f"not a plain state dict: {name!r} is a {type(value).__name__}, not a tensor")
        arrays[name] = _array(name, value, storages)
    return arrays


def _array(name: str, tensor: _Tensor, storages: dict[str, np.ndarray]) -> np.ndarray:
    storage, offset, shape, strides = tensor
    sizes = (offset, *shape, *strides)
    if not isinstance(storage, _Storage) or len(shape) != len(strides) or not all(map(_is_size, sizes)):
        raise InputError(f"tensor {name!r} is malformed")
    if storage.key not in storages:
        raise InputError(f"storage {storage.key!r} of tensor {name!r} is missing")
    if 0 in shape:
        return np.zeros(shape, storage.dtype)
    last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    if last >= storage.elements:
        raise InputError(f"tensor {name!r} reaches past the end of its storage of {storage.elements} elements")
    data = storages[storage.key][offset:]
    bytes_apart = [stride * storage.dtype.itemsize for stride in strides]
    return np.lib.stride_tricks.as_strided(data, shape, bytes_apart, writeable=False)
