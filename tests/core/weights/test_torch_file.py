"""The reader of torch files against torch itself."""

import builtins
import io
import os
import pickle
import zipfile
from collections import OrderedDict

import ml_dtypes
import numpy as np
import pytest
import torch

from jpeglm.core.errors import InputError
from jpeglm.core.weights.torch_file import load_state_dict

FORMATS = pytest.mark.parametrize("zip_format", [True, False], ids=["zip", "older"])


def save(tmp_path, state, zip_format):
    path = tmp_path / "weights.pth"
    torch.save(state, path, _use_new_zipfile_serialization=zip_format)
    return path


@FORMATS
@pytest.mark.parametrize(
    "dtype", ["float32", "float64", "float16", "int64", "int32", "int16", "int8", "uint8", "bool", "bfloat16"]
)
def test_every_dtype_comes_back_bit_for_bit(tmp_path, dtype, zip_format):
    tensor = (torch.randn(3, 5) * 40).to(getattr(torch, dtype))
    array = load_state_dict(save(tmp_path, {"x": tensor}, zip_format))["x"]
    assert array.dtype == (ml_dtypes.bfloat16 if dtype == "bfloat16" else np.dtype(dtype))
    expected = tensor.view(torch.uint8).numpy()
    np.testing.assert_array_equal(np.ascontiguousarray(array).view(np.uint8), expected)


@FORMATS
def test_views_keep_their_strides_and_offsets(tmp_path, zip_format):
    base = torch.arange(60, dtype=torch.float32).reshape(3, 4, 5)
    views = {
        "transposed": base.permute(2, 0, 1),
        "strided": base[:, 1::2, ::2],
        "last": base[2, 3, 4],
        "expanded": base[0, 0, :1].expand(7),
        "empty": base[:, :0],
        "scalar": torch.tensor(2.5),
    }
    arrays = load_state_dict(save(tmp_path, views, zip_format))
    assert arrays.keys() == views.keys()
    for name, view in views.items():
        np.testing.assert_array_equal(arrays[name], view.numpy(), strict=True)


@FORMATS
def test_tensors_that_share_a_storage_share_memory(tmp_path, zip_format):
    base = torch.randn(8, 8)
    arrays = load_state_dict(save(tmp_path, {"all": base, "row": base[3], "other": torch.randn(8)}, zip_format))
    assert np.shares_memory(arrays["all"], arrays["row"])
    assert not np.shares_memory(arrays["all"], arrays["other"])
    assert not arrays["all"].flags.writeable


@FORMATS
def test_a_module_s_state_dict_with_metadata_and_parameters_is_read(tmp_path, zip_format):
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    state = module.state_dict()
    assert isinstance(state, OrderedDict) and state._metadata
    state["parameter"] = torch.nn.Parameter(torch.randn(5))
    arrays = load_state_dict(save(tmp_path, state, zip_format))
    assert list(arrays) == list(state)
    for name, tensor in state.items():
        np.testing.assert_array_equal(arrays[name], tensor.detach().numpy(), strict=True)


class Hostile:
    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


@FORMATS
@pytest.mark.parametrize(
    ("function", "argument", "named"),
    [
        (os.system, "touch {}", "system"),
        (builtins.eval, "open({!r}, 'w')", "eval"),
        (torch.load, "{}", "torch.serialization.load"),
        (np.fromfile, "{}", "numpy.fromfile"),
    ],
)
def test_a_malicious_pickle_is_refused_by_name_and_does_nothing(tmp_path, function, argument, named, zip_format):
    trace = tmp_path / "trace"
    state = {"x": torch.zeros(2), "y": Hostile(function, argument.format(str(trace)))}
    path = save(tmp_path, state, zip_format)
    with pytest.raises(InputError, match=f"refused: .*{named}"):
        load_state_dict(path)
    assert not trace.exists()


def test_a_malicious_first_pickle_is_refused_too(tmp_path):
    path = tmp_path / "weights.pth"
    path.write_bytes(pickle.dumps(Hostile(os.system, f"touch {tmp_path / 'trace'}")))
    with pytest.raises(InputError, match="refused"):
        load_state_dict(path)
    assert not (tmp_path / "trace").exists()


def test_attributes_reached_through_allowed_globals_are_refused(tmp_path):
    dotted = b"\x80\x04\x8c\x0bcollections\x8c\x14OrderedDict.__init__\x93."
    with zipfile.ZipFile(tmp_path / "weights.pth", "w") as archive:
        archive.writestr("archive/data.pkl", dotted)
    with pytest.raises(InputError, match="refused"):
        load_state_dict(tmp_path / "weights.pth")


def test_a_pickle_cannot_change_the_state_of_a_dtype(tmp_path):
    # GLOBAL torch.FloatStorage, then BUILD with a state that would swap the byte order of a NumPy dtype.
    evil = b"\x80\x02ctorch\nFloatStorage\n(K\x03U\x01>NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb."
    with zipfile.ZipFile(tmp_path / "weights.pth", "w") as archive:
        archive.writestr("archive/data.pkl", evil)
    with pytest.raises(InputError):
        load_state_dict(tmp_path / "weights.pth")
    assert np.dtype(np.float32).isnative and np.frombuffer(b"\0\0\x80\x3f", np.float32)[0] == 1.0


@FORMATS
def test_a_truncated_file_is_refused_wherever_it_ends(tmp_path, zip_format):
    path = save(tmp_path, {"a": torch.randn(50), "b": torch.randn(3, 4)}, zip_format)
    data = path.read_bytes()
    for size in {0, 1, 4, 14, 20, 100, len(data) // 2, len(data) - 200, len(data) - 1}:
        path.write_bytes(data[:size])
        with pytest.raises(InputError, match="weights.pth"):
            load_state_dict(path)


def test_a_truncated_storage_is_named_with_its_place(tmp_path):
    path = save(tmp_path, {"a": torch.randn(50)}, False)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(InputError, match="truncated: storage .* needs 200 bytes at offset .*, 199 are left"):
        load_state_dict(path)


@pytest.mark.parametrize(
    "data",
    [b"", b"hello, this is text", pickle.dumps({"a": 1}), pickle.dumps(0x1950A86A20F9469CFC6D), b"\x89PNG\r\n"],
    ids=["empty", "text", "plain pickle", "wrong magic", "png"],
)
def test_other_files_are_told_apart_by_the_magic_number(tmp_path, data):
    path = tmp_path / "weights.pth"
    path.write_bytes(data)
    with pytest.raises(InputError, match="not a torch file"):
        load_state_dict(path)


def test_an_absent_file_and_a_foreign_zip_are_one_clear_line(tmp_path):
    with pytest.raises(InputError, match="No such file"):
        load_state_dict(tmp_path / "absent.pth")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(InputError, match="no data.pkl"):
        load_state_dict(tmp_path / "a.zip")


@FORMATS
@pytest.mark.parametrize(
    "state", [{"epoch": 3, "x": torch.zeros(1)}, [torch.zeros(1)], {"net": {"x": torch.zeros(1)}}]
)
def test_anything_but_named_tensors_is_refused(tmp_path, state, zip_format):
    with pytest.raises(InputError, match="state dict"):
        load_state_dict(save(tmp_path, state, zip_format))


def test_a_tensor_larger_than_its_storage_is_refused(tmp_path):
    path = save(tmp_path, {"x": torch.arange(12.0).reshape(3, 4)}, True)
    with zipfile.ZipFile(path) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    name = next(name for name in records if name.endswith("data.pkl"))
    assert records[name].count(b"K\x03K\x04\x86") == 1  # the shape (3, 4) as a pickled tuple
    records[name] = records[name].replace(b"K\x03K\x04\x86", b"K\x04K\x04\x86")
    with zipfile.ZipFile(path, "w") as archive:
        for key, value in records.items():
            archive.writestr(key, value)
    with pytest.raises(InputError, match="'x' reaches past the end of its storage of 12"):
        load_state_dict(path)


def test_a_big_endian_file_is_refused(tmp_path):
    path = save(tmp_path, {"x": torch.zeros(2)}, True)
    with zipfile.ZipFile(path) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for key, value in records.items():
            archive.writestr(key, b"big" if key.endswith("byteorder") else value)
    path.write_bytes(buffer.getvalue())
    with pytest.raises(InputError, match="big-endian"):
        load_state_dict(path)
