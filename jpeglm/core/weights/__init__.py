"""Named tensors in the files of a Hugging Face directory, read and written one at a time.

Reads `model.safetensors` or `pytorch_model.bin`, each whole or in shards with an index, and writes safetensors. At
most one tensor is in memory at a time: files are memory-mapped for reading and written in place.
"""

import json
import reprlib
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes  # noqa: F401  gives NumPy the name bfloat16, which safetensors asks for
import numpy as np
from safetensors import SafetensorError, safe_open

from jpeglm.core.errors import InputError, reading
from jpeglm.core.weights.torch_file import check_finite, load_state_dict

SHARD_BYTES = 5 * 10**9  # as transformers' max_shard_size="5GB"
_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 100
_SAFETENSORS_NAMES = {"float32": "F32", "bfloat16": "BF16"}


class Tensor(NamedTuple):
    """A tensor in a file. `dtype` is NumPy's name, or the file's own if NumPy has none."""

    file: Path
    name: str
    shape: tuple[int, ...]
    dtype: str
    stored: Callable[[], np.ndarray]

    def read(self) -> np.ndarray:
        """The values in float32. Raises InputError if they cannot be read or are not finite."""
        with reading(self.file, "file of weights"):
            array = self.stored().astype(np.float32)
            check_finite(self.name, array)
        return array


def open_folder(folder: Path) -> dict[str, Tensor]:
    """The tensors of a Hugging Face directory by name.

    Raises:
      InputError: there are none, a shard is missing or damaged, or an index does not match its shards.
    """
    for name, open_file in (("model.safetensors", _open_safetensors), ("pytorch_model.bin", _open_torch)):
        if (folder / name).exists():
            return open_file(folder / name)
        index = folder / f"{name}.index.json"
        if index.exists():
            return _open_shards(index, open_file)
    raise InputError(f"{folder} holds no weights: neither model.safetensors nor pytorch_model.bin, nor their index")


def _open_shards(index: Path, open_file: Callable[[Path], dict[str, Tensor]]) -> dict[str, Tensor]:
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(name, str) for name in places.values()):
        raise InputError(f"{index}: no weight_map from the names of tensors to files")
    named: dict[str, set[str]] = {}  # by file
    for name, file_name in places.items():
        named.setdefault(file_name, set()).add(name)
    with reading(index.parent, "folder"):
        beside = {path.name for path in index.parent.iterdir() if path.is_file()}
    for file_name in sorted(named):
        if file_name in ("", ".", "..") or "/" in file_name:
            raise InputError(f"{index}: {shown(file_name)} is not the name of a file beside it")
        if file_name not in beside:
            raise InputError(f"{index.parent / file_name[:255]} is missing; {index.name} names it")
    tensors: dict[str, Tensor] = {}
    for file_name in sorted(named):
        path = index.parent / file_name
        found = open_file(path)
        for name in sorted(found.keys() ^ named[file_name]):
            where = "is in it but not in" if name in found else "is not in it but in"
            raise InputError(f"{path}: tensor {name[:100]} {where} {index.name}")
        tensors |= found
    return tensors


def _open_torch(path: Path) -> dict[str, Tensor]:
    def tensor(name: str, array: np.ndarray) -> Tensor:
        return Tensor(path, name, array.shape, array.dtype.name, lambda: array)

    return {name: tensor(name, array) for name, array in load_state_dict(path).items()}


def _open_safetensors(path: Path) -> dict[str, Tensor]:
    # Reopened for each tensor, so that what has been read does not stay mapped.
    def tensor(name: str, shape: list[int], dtype: str) -> Tensor:
        return Tensor(path, name, tuple(shape), _DTYPES.get(dtype, dtype), lambda: read(name))

    def read(name: str) -> np.ndarray:
        with safe_open(path, framework="numpy") as file:
            return file.get_tensor(name)

    try:
        with safe_open(path, framework="numpy") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118  not a dict
            return {name: tensor(name, part.get_shape(), part.get_dtype()) for name, part in slices.items()}
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: not a whole safetensors file: {error}") from error


def read_json(path: Path) -> dict:
    """The object in a JSON file. Raises InputError if the file cannot be read or is not a JSON object."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    except RecursionError as error:
        raise InputError(f"{path}: not JSON that can be read: too many brackets inside each other") from error
    except ValueError as error:
        raise InputError(f"{path}: not JSON: {error}") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: not a JSON object")
    return content


def shown(value: Any) -> str:
    """A value from a JSON file for a message, shortened if it is long or deeply nested."""
    return _SHORT.repr(value)


class SafetensorsWriter:
    """Writes `model.safetensors` into a folder, or shards and their index, tensor by tensor in any order.

    The offset of each tensor is fixed before the first is written.
    """

    def __init__(self, folder: Path, shapes: Mapping[str, tuple[int, ...]], dtype: np.dtype, shard_bytes: int):
        """`shapes`: of all tensors by name, in the order in which shards are filled. `dtype`: of all of them."""
        self._folder, self._dtype = folder, dtype
        sizes = {name: int(np.prod(shape)) * dtype.itemsize for name, shape in shapes.items()}
        shards: list[list[str]] = [[]]
        for name in shapes:
            if shards[-1] and sum(sizes[other] for other in shards[-1]) + sizes[name] > shard_bytes:
                shards.append([])
            shards[-1].append(name)
        self._places: dict[str, tuple[Path, int]] = {}  # file and offset
        for number, names in enumerate(shards, 1):
            of = f"-{number:05d}-of-{len(shards):05d}" if len(shards) > 1 else ""
            self._start_file(folder / f"model{of}.safetensors", {name: shapes[name] for name in names})
        if len(shards) > 1:
            index = {
                "metadata": {"total_size": sum(sizes.values())},
                "weight_map": {name: path.name for name, (path, _) in self._places.items()},
            }
            (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")

    def _start_file(self, path: Path, shapes: Mapping[str, tuple[int, ...]]) -> None:
        header: dict[str, dict] = {"__metadata__": {"format": "pt"}}  # transformers requires it
        end = 0
        for name, shape in shapes.items():
            start, end = end, end + int(np.prod(shape)) * self._dtype.itemsize
            header[name] = {
                "dtype": _SAFETENSORS_NAMES[self._dtype.name],
                "shape": list(shape),
                "data_offsets": [start, end],
            }
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)  # the data begins at a multiple of 8
        path.write_bytes(struct.pack("<Q", len(text)) + text)
        for name in shapes:
            self._places[name] = (path, 8 + len(text) + header[name]["data_offsets"][0])

    def put(self, name: str, array: np.ndarray) -> None:
        """Writes one tensor, rounded to the writer's dtype."""
        path, offset = self._places[name]
        with path.open("r+b") as file:
            file.seek(offset)
            file.write(np.ascontiguousarray(array, self._dtype).view(np.uint8).data)
