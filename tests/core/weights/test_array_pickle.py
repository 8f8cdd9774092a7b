"""Arrays of pickles are numpy's own, and nothing in a pickle is run."""

import os
import pickle

import numpy as np
import pytest

from jpeglm.core.errors import InputError
from jpeglm.core.weights.array_pickle import load_arrays

RANDOM = np.random.default_rng(0)
TREE = {
    "params": {
        "a": {"kernel": RANDOM.normal(size=(2, 3, 4)).astype(np.float32)},
        "b": np.float32(RANDOM.normal(size=0)),
    },
    "stats": {"fortran": np.asfortranarray(RANDOM.normal(size=(3, 5)).astype(np.float32))},
}


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_arrays_are_those_that_pickle_itself_reads(tmp_path, protocol):
    path = tmp_path / "tree.ckpt"
    path.write_bytes(pickle.dumps(TREE, protocol))
    if protocol == 2:  # keeps bytes as text, by another global
        with pytest.raises(InputError, match="tree.ckpt: refused: the file asks for _codecs.encode"):
            load_arrays(path)
        return
    found = load_arrays(path)
    expected = {
        ("params", "a", "kernel"): TREE["params"]["a"]["kernel"],
        ("params", "b"): TREE["params"]["b"],
        ("stats", "fortran"): TREE["stats"]["fortran"],
    }
    assert found.keys() == expected.keys()
    for keys, array in expected.items():
        np.testing.assert_array_equal(found[keys], array, strict=True)


class Runs:
    def __reduce__(self):
        return os.system, ("touch /tmp/should-not-be-there",)


@pytest.mark.parametrize(
    "tree, words",
    [
        (Runs(), "refused: the file asks for posix.system"),
        ({"a": Runs()}, "refused: the file asks for posix.system"),
        ({"a": np.zeros(2, np.float64)}, "a is no array of float32"),
        ({"a": np.zeros(2, ">f4")}, "a is no array of float32"),
        ({"a": np.array([Runs()], object)}, "refused|no array of float32"),
        ({"a": [1, 2]}, "a is a list, neither a dict nor an array"),
        ({1: np.zeros(2, np.float32)}, "1 is a key and not a name"),
        (7, "the whole is a int"),
    ],
)
def test_all_else_is_refused_in_one_line(tmp_path, tree, words):
    path = tmp_path / "tree.ckpt"
    path.write_bytes(pickle.dumps(tree, 4))
    with pytest.raises(InputError, match=words) as caught:
        load_arrays(path)
    assert "\n" not in str(caught.value) and not os.path.exists("/tmp/should-not-be-there")


def test_a_few_bytes_do_not_fill_the_memory(tmp_path):
    tree = {"leaf": np.zeros(1, np.float32)}
    for _ in range(60):
        tree = {"a": tree, "b": tree}
    path = tmp_path / "tree.ckpt"
    path.write_bytes(pickle.dumps(tree, 4))
    with pytest.raises(InputError, match="stands there twice"):
        load_arrays(path)
    path.write_bytes(b"\x80\x02}r\x00\x00\x00\x40.")
    with pytest.raises(InputError, match="asks for 1,073,741,824 places in memory"):
        load_arrays(path)


def test_damage_is_refused_or_changes_numbers_alone(tmp_path):
    whole, path = pickle.dumps(TREE, 4), tmp_path / "tree.ckpt"
    for _ in range(2_000):
        data = bytearray(whole)
        at = int(RANDOM.integers(len(data)))
        if RANDOM.random() < 0.5:
            data[at] ^= 1 << int(RANDOM.integers(8))
        else:
            del data[at:]
        path.write_bytes(data)
        try:
            found = load_arrays(path)
        except InputError:
            continue
        assert all(array.dtype == np.float32 for array in found.values())
    with pytest.raises(InputError, match="No such file"):
        load_arrays(tmp_path / "nothing.ckpt")
