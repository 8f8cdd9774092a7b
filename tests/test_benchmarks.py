"""The benchmarks' own arithmetic and choices; what they measure is faked here."""

import hashlib
import json
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks import agreement, decode, report, train_step
from jpeglm.core.errors import InputError
from jpeglm.models.llama import LlamaConfig
from tests.tiny_config import get_config

GIB = 2**30


def fake_child(monkeypatch, most_layers=99, rates=None):
    """In the place of processes: out of memory above so many layers, else so many tokens a second."""
    asked = []

    def child(module, job, cache, timeout, **_):
        ours = module == "benchmarks.ours"
        model = job["config"]["model"] if ours else job["model"]
        how = model["remat"] if ours else job["recompute"]
        asked.append((module.rpartition(".")[2], how, model["num_layers"]))
        if model["num_layers"] > most_layers:
            return {"failed": report.OUT_OF_MEMORY, "detail": "CUDA out of memory"}
        rate = (rates or {}).get(how, 100.0)
        facts = {"peak_flops": 1e9, "predicted_bytes": 3 * GIB} if ours else {}
        return {"tokens_per_second": rate, "step_seconds": [0.1], "peak_bytes": 2 * GIB, "versions": {}, **facts}

    monkeypatch.setattr(report, "child", child)
    monkeypatch.setattr(report, "gpu", lambda: {"gpu": "pretended", "driver": "1", "memory": 80 * GIB})
    return asked


def test_the_number_of_layers_shrinks_until_both_sides_fit(monkeypatch, tiny_data, tmp_path):
    config = get_config()
    config.model.num_layers = 32
    asked = fake_child(monkeypatch, most_layers=27)
    plan = train_step.Plan(["model.remat=full"], ["recompute=all"], layers="fit", rounds=2, out=str(tmp_path))
    train_step.run(plan, config, tiny_data)
    assert [layers for _, _, layers in asked] == [32, 32, 28, 28, 25, 25, 25, 25]
    text = (tmp_path / "report.md").read_text()
    assert "25 layers of width" in text and "32 layers do not fit: CUDA out of memory" in text
    assert "ratio of the fastest of each, ours over theirs: 1.00" in text


def test_each_way_runs_once_and_the_fastest_of_each_side_again(monkeypatch, tiny_data, tmp_path):
    asked = fake_child(monkeypatch, rates={"none": 300.0, "full": 200.0, "all": 150.0})
    plan = train_step.Plan(
        ["model.remat=full", "model.remat=none"], ["recompute=all"], rounds=3, out=str(tmp_path), name="some"
    )
    table = train_step.run(plan, get_config(), tiny_data)
    assert [(side, how) for side, how, _ in asked] == [
        ("ours", "full"), ("peer", "all"), ("ours", "none"), *[("ours", "none"), ("peer", "all")] * 2
    ]  # fmt: skip
    assert table.fastest("ours") == "model.remat=none"
    result = json.loads((tmp_path / "some.json").read_text())
    mfu = 300 * LlamaConfig.of(get_config()).flops_per_token(64) / 1e9
    assert result["rows"][2][:4] == ["jpeglm model.remat=none", "300", "300 to 300", f"{mfu:.1%}"]
    assert any("theirs: 2.00" in note for note in result["notes"])


def test_results_are_on_disk_after_each_measurement(monkeypatch, tiny_data, tmp_path):
    fake_child(monkeypatch)
    measured = report.child

    def interrupted(module, *arguments, **settings):
        if module == "benchmarks.peer":
            raise KeyboardInterrupt
        return measured(module, *arguments, **settings)

    monkeypatch.setattr(report, "child", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train_step.run(train_step.Plan([""], [""], out=str(tmp_path)), get_config(), tiny_data)
    assert [row[0] for row in json.loads((tmp_path / "train.json").read_text())["rows"]] == ["jpeglm"]
    assert "jpeglm" in (tmp_path / "report.md").read_text()


def test_a_child_that_fails_says_why():
    failed = report.child("benchmarks.absent", {}, "/nowhere")
    assert failed["failed"].endswith("No module named benchmarks.absent")
    failed = report.child("unittest", {}, "/nowhere")  # takes its job for the name of a test
    assert failed["failed"] == "ModuleNotFoundError: No module named '{}'"
    slow = report.child("http.server", 0, "/nowhere", timeout=2)
    assert slow == {"failed": "not done in 2 s"}


def test_layers_that_fit_count_sixteen_bytes_a_parameter():
    from configs.jpeglm_7b import get_config as get_7b

    config = get_7b()
    config.optim.batch_size = 1
    a_layer = 16 * (4 * 4096**2 + 3 * 4096 * 11_008 + 2 * 4096) + 2 * 12_288 * 4096
    few, more = (train_step.layers_that_fit(config, 40 * GIB + extra) for extra in (0, 5 * a_layer))
    assert more == few + 5 and 8 < few < 13
    assert train_step.layers_that_fit(config, 1000 * GIB) == 32


def test_a_step_of_decoding_reads_all_matrices_but_the_embedding_and_the_past():
    config = LlamaConfig(
        vocab_size=320, num_layers=2, width=64, num_heads=4, num_kv_heads=2, head_dim=16, ffn_width=96,
        dtype="bfloat16",
    )  # fmt: skip
    matrices = 2 * (64 * 16 * (4 + 2 + 2 + 4) + 3 * 64 * 96 + 2 * 64) + 64 * 320 + 64
    assert decode.bytes_a_step(config, 3, 100) == 2 * matrices + 2 * 3 * 100 * 2 * (2 * 2 * 16)
    turn = {"seconds": [4.0], "prefill_seconds": [1.0]}
    prefill, rate = decode.rates(turn, slots=3, prompt=50, length=101)
    assert (prefill, rate) == (3 * 50 / 1.0, 3 * 50 / 3.0)
    taken = {(3, "jpeglm"): [turn], (3, "transformers"): [{"failed": report.OUT_OF_MEMORY}]}
    [row] = decode.table(config, taken, 50, 101, bandwidth=1e6)
    share = rate / 3 * decode.bytes_a_step(config, 3, 75.5) / 1e6
    assert row == ["3", "150", "out of memory", "", "50", "out of memory", "", "", f"{share:.1%}", "not known"]


def samples_folder(folder, rows):
    """What jpeglm.sample leaves: for each row its file's bytes, whether it is valid, and its original."""
    lines = []
    for number, (file, valid, original) in enumerate(rows):
        (folder / f"digit-s{number}.jpg").write_bytes(file)
        row = {"name": f"digit-s{number}", "valid": valid, "original": original}
        lines.append(json.dumps(row | {"sha256": hashlib.sha256(file).hexdigest()}))
    (folder / "samples.jsonl").write_text("".join(line + "\n" for line in lines))
    return str(folder)


def test_an_invalid_file_agrees_with_nothing(tmp_path):
    rows = [(b"3", True, "a"), (b"5", True, "a"), (b"3", False, "a"), (b"5", True, "b")]
    samples = agreement.read_samples(samples_folder(tmp_path, rows))
    digits = SimpleNamespace(labels={"a": 3, "b": 5}, classify=lambda files: np.array([int(file) for file in files]))
    assert agreement.measure(digits, samples) == {"valid": 0.75, "agree": 0.5, "guess": 0.75}
    digits.classify = lambda files: 1 / 0  # nothing to classify
    assert agreement.measure(digits, samples[2:3]) == {"valid": 0, "agree": 0, "guess": 1}


def test_samples_that_complete_nothing_or_were_altered_are_refused(tmp_path):
    folder = samples_folder(tmp_path, [(b"3", True, "a")])
    (tmp_path / "digit-s0.jpg").write_bytes(b"4")
    with pytest.raises(InputError, match="digit-s0 is no completion, or not the file"):
        agreement.read_samples(folder)
    with pytest.raises(InputError, match="is no completion"):
        agreement.read_samples(samples_folder(tmp_path, [(b"3", True, None)]))
    with pytest.raises(InputError, match="holds no samples"):
        agreement.read_samples(samples_folder(tmp_path, [(b"3", True, "a")][:0]))
    with pytest.raises(InputError, match="No such file"):
        agreement.read_samples(str(tmp_path / "none"))
