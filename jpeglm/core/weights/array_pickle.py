"""Reads NumPy arrays from a pickle of nested dicts without running anything that the file asks for."""

import os
import pickle
import pickletools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from jpeglm.core.errors import InputError, reading

_PUTS = ("PUT", "BINPUT", "LONG_BINPUT")


class _Dtype:
    """Stands in for numpy.dtype while a file is read: kind and size, such as "f4", and byte order."""

    def __init__(self, kind: str, *_align_copy: Any):
        self.kind, self.order = kind, "<"

    def __setstate__(self, state: tuple) -> None:
        self.order = state[1]


class _Array:
    """Stands in for numpy.ndarray while a file is read."""

    def __init__(self, *_class_shape_kind: Any):
        self.state: tuple = ()

    def __setstate__(self, state: tuple) -> None:
        self.state = state


_GLOBALS = {
    ("numpy", "dtype"): _Dtype,
    ("numpy", "ndarray"): "numpy.ndarray",  # an argument of _reconstruct; as text it cannot be called
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy._core.multiarray", "_reconstruct"): _Array,
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _GLOBALS:
            raise InputError(f"refused: the file asks for {module}.{name}, which is not needed to hold arrays")
        return _GLOBALS[module, name]


def load_arrays(path: str | Path) -> dict[tuple[str, ...], np.ndarray]:
    """The float32 arrays of a pickle of dicts of dicts ... of arrays, by their keys from the outermost on.

    Raises:
      InputError: the file is absent, truncated, not such a pickle, or asks for a global that is not on the list.
    """
    with reading(path, "pickle of arrays"), open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        for code, argument, _ in pickletools.genops(file):
            if code.name in _PUTS and (argument or 0) > size:  # the unpickler allocates all slots up to this number
                raise InputError(f"asks for {argument:,} places in memory")
        file.seek(0)
        return dict(_flat(_Unpickler(file).load(), (), set()))


def _flat(tree: Any, keys: tuple[str, ...], met: set[int]) -> Iterator[tuple[tuple[str, ...], np.ndarray]]:
    if type(tree) is dict:
        if id(tree) in met:  # otherwise a few bytes could describe an endless tree
            raise InputError(f"{'/'.join(keys)} stands there twice")
        met.add(id(tree))
        for key, value in tree.items():
            if not isinstance(key, str):
                raise InputError(f"{key!r} is a key and not a name")
            yield from _flat(value, (*keys, key), met)
    elif isinstance(tree, _Array):
        yield keys, _array("/".join(keys), tree.state)
    else:
        raise InputError(f"{'/'.join(keys) or 'the whole'} is a {type(tree).__name__}, neither a dict nor an array")


def _array(name: str, state: tuple) -> np.ndarray:
    _version, shape, dtype, is_fortran, data = state
    if not isinstance(dtype, _Dtype) or (dtype.order, dtype.kind) != ("<", "f4") or type(data) is not bytes:
        raise InputError(f"{name} is no array of float32")
    return np.frombuffer(data, "<f4").reshape(shape, order="F" if is_fortran else "C")
