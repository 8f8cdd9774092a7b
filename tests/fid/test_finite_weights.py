"""Weights of the extractors that are not finite are refused by name, in each format that is read."""

import numpy as np
import pytest
import torch

from jpeglm.convert import inception as conversion
from jpeglm.core.errors import InputError
from jpeglm.fid.extractors import efficientnet, i3d, inception

NETWORKS = {  # what reads the weights, and a tensor
    "inception": (inception.read_weights, inception.expected_shapes, "Mixed_5b.branch1x1.bn.running_var"),
    "inception, a kernel": (inception.read_weights, inception.expected_shapes, "Conv2d_1a_3x3.conv.weight"),
    "efficientnet": (efficientnet.load, efficientnet._expected_shapes, "_fc.bias"),
    "efficientnet, a kernel": (efficientnet.load, efficientnet._expected_shapes, "_conv_stem.weight"),
    "i3d": (i3d.read_weights, i3d.expected_shapes, "Conv3d_1a_7x7.bn.running_mean"),
}


def poisoned(path, shapes, name, values):
    state = {key: torch.zeros(shape, dtype=torch.int64 if "num_b" in key else None) for key, shape in shapes.items()}
    state[name].view(-1)[: len(values)] = torch.tensor(values)
    torch.save(state, path)
    return state


@pytest.mark.parametrize("values", [[np.nan], [np.inf, -np.inf, np.nan, 0.0]], ids=["one", "three"])
@pytest.mark.parametrize("network", NETWORKS)
def test_weights_that_are_not_finite_are_refused_by_name(network, values, tmp_path):
    read, shapes, name = NETWORKS[network]
    path = tmp_path / "weights.pth"
    size = poisoned(path, shapes(), name, values)[name].numel()
    count = sum(not np.isfinite(value) for value in values)
    with pytest.raises(
        InputError, match=f"pth: tensor {name} holds {count} numbers of {size:,} that are NaN or infin"
    ):
        read(path)


def test_converting_inception_refuses_them_and_leaves_nothing(tmp_path):
    name = "fc.bias"
    state = poisoned(tmp_path / "weights.pth", inception.expected_shapes(), name, [np.nan])
    with pytest.raises(InputError, match=f"tensor {name} holds 1 numbers of 1,008 that are NaN or infinite"):
        conversion.convert(tmp_path / "weights.pth", tmp_path / "weights.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["weights.pth"]
    # Nor does a file that was converted before hold them.
    tensors = {key: tensor.numpy() for key, tensor in state.items()}
    inception.write_safetensors(tensors, "0" * 64, tmp_path / "weights.safetensors")
    with pytest.raises(InputError, match=f"safetensors: tensor {name} holds 1 numbers"):
        inception.read_weights(tmp_path / "weights.safetensors")
