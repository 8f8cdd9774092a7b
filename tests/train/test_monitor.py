"""The arithmetic of speed: peaks and MFU."""

from types import SimpleNamespace

import pytest

from jpeglm.core import hardware
from jpeglm.models.llama import LlamaConfig
from jpeglm.train import monitor

KINDS = {  # as the devices name themselves
    "NVIDIA A100-SXM4-40GB": 312, "NVIDIA A100-SXM4-80GB": 312, "NVIDIA A100-PCIE-40GB": 312,
    "NVIDIA A100 80GB PCIe": 312, "NVIDIA H100 80GB HBM3": 989, "NVIDIA H100 PCIe": 756, "NVIDIA H100 NVL": 835,
    "NVIDIA H200": 989, "NVIDIA H200 NVL": 835, "TPU v4": 275, "TPU v5 lite": 197, "TPU v5e": 197, "TPU v5": 459,
    "TPU v5p": 459, "TPU v6 lite": 918, "TPU v6e": 918,
}  # fmt: skip
# Whose names hold, begin or end with another's.
OTHERS = [
    "cpu", "NVIDIA GH200 480GB", "NVIDIA GH200 144G HBM3e", "NVIDIA H20", "NVIDIA H800", "NVIDIA A100X",
    "NVIDIA A100-SXM4-40GB MIG 1g.5gb", "NVIDIA H100 80GB HBM3 MIG 3g.40gb", "NVIDIA GH100", "TPU v4 lite", "TPU v3",
    "TPU7x", "TPU v50", "H200", "",
]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_each_accelerator_has_its_peak(kind):
    assert hardware.peak_flops(SimpleNamespace(device_kind=kind)) == KINDS[kind] * 1e12


def test_no_two_chips_share_a_name_or_a_kind():
    kinds = [kind for chip in hardware.CHIPS for kind in chip.kinds]
    assert len({chip.name for chip in hardware.CHIPS}) == len(hardware.CHIPS) and len(set(kinds)) == len(kinds)
    assert set(kinds) == set(KINDS)


@pytest.mark.parametrize("kind", OTHERS)
def test_another_chip_has_no_peak_and_so_no_mfu(kind):
    assert hardware.peak_flops(SimpleNamespace(device_kind=kind)) is None
    assert "mfu" not in monitor.speed(100, 1.0, 1, 1e9, None)


def test_mfu_of_the_7b_is_that_of_a_calculation_by_hand():
    model = LlamaConfig(
        vocab_size=320, num_layers=32, width=4096, num_heads=32, num_kv_heads=32, head_dim=128, ffn_width=11_008
    )
    # A layer's matrices: 4 x 4096^2 + 3 x 4096 x 11008; the head 4096 x 320; scores and mixing over half of 12,289.
    by_hand = 6 * (32 * (4 * 4096**2 + 3 * 4096 * 11_008) + 4096 * 320) + 6 * 32 * 4096 * 12_289
    assert model.flops_per_token(12_288) == by_hand
    speed = monitor.speed(3_145_728, 20.0, 64, by_hand, 459e12)
    assert speed["tokens_per_second"] == 157_286.4
    assert speed["tokens_per_second_per_device"] == 2_457.6
    assert speed["mfu"] == pytest.approx(157_286.4 * by_hand / (64 * 459e12))
    assert 0.2 < speed["mfu"] < 0.3
