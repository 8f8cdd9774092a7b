"""On a GPU: the same losses, logits and gradients as on a CPU, documents kept apart, and the same bits on each resume.

    ./launch/test.sh --gpu, or python -m pytest -m gpu

GPU_TESTS_ON=cpu has the CPU stand in for the GPU, to try the tests themselves where there is none. Each test runs its
programs in processes of their own, so that nothing holds the GPU's memory between them.
"""

import json
import os
import shutil

import numpy as np
import pytest

from tests.commands import run
from tests.runs import losses, state, train_flags
from tests.tiny_config import get_config

pytestmark = pytest.mark.gpu

SMALL = {"num_layers": 4, "width": 256, "num_heads": 4, "num_kv_heads": 2, "head_dim": 64, "ffn_width": 512}
WIDE = {"num_layers": 2, "width": 4096, "num_heads": 32, "num_kv_heads": 32, "head_dim": 128, "ffn_width": 11_008}
STANDS_IN = os.environ.get("GPU_TESTS_ON", "gpu") == "cpu"
if STANDS_IN:  # the 7B's width would take two cores many minutes
    WIDE |= {"width": 512, "num_heads": 4, "num_kv_heads": 4, "ffn_width": 1_376}
HALF = {"dtype": "bfloat16"}
MASKED = {"mask_documents": True}
REFERENCES = {  # computed on the CPU
    "small": SMALL, "small masked": SMALL | MASKED, "wide": WIDE,
    "small half": SMALL | HALF | {"attention": "blockwise"},
    "small masked half": SMALL | MASKED | HALF | {"attention": "blockwise"},
}  # fmt: skip
FOUND = {  # computed on the GPU
    "small": SMALL, "small masked": SMALL | MASKED, "wide": WIDE,
    "small half": SMALL | HALF, "small masked half": SMALL | MASKED | HALF,
    "small half triton": SMALL | HALF | {"attention": "triton"},
    "small half blockwise": SMALL | HALF | {"attention": "blockwise"},
    "small half, all computed again": SMALL | HALF | {"remat": "full"},
    "small half, attention kept": SMALL | HALF | {"remat": "attention"},
    "wide half": WIDE | HALF,
}  # fmt: skip
LENGTH = 256
HEADS = {"heads": 4, "kv_heads": 2, "head_dim": 128, "length": 1024}


@pytest.fixture(scope="session")
def platform() -> str:
    """JAX's name of the platform under test: cuda, or cpu where that stands in. No GPU is a failure, never a skip."""
    if STANDS_IN:
        return "cpu"
    found = run("tests.gpu.device", JAX_PLATFORMS="cuda", **NO_PREALLOCATION)
    if found.returncode:
        why = (found.stderr.strip().splitlines() or ["nothing"])[-1]
        pytest.fail(f"no GPU that JAX can use (it says: {why}); GPU_TESTS_ON=cpu tries these tests on a CPU", False)
    return "cuda"


NO_PREALLOCATION = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}


def computed(cases: dict, platform: str, folder) -> dict[str, np.ndarray]:
    """What `tests.gpu.values` finds of models on a platform."""
    cases = {name: case | {"length": LENGTH} for name, case in cases.items()}
    out = folder / f"{platform}.npz"
    done = run("tests.gpu.values", "model", json.dumps(cases), str(out), JAX_PLATFORMS=platform, **NO_PREALLOCATION)
    assert done.returncode == 0, done.stderr
    return dict(np.load(out))


@pytest.fixture(scope="session")
def expected(platform, tmp_path_factory) -> dict[str, np.ndarray]:
    return computed(REFERENCES, "cpu", tmp_path_factory.mktemp("expected"))


@pytest.fixture(scope="session")
def found(platform, tmp_path_factory) -> dict[str, np.ndarray]:
    return computed(FOUND, platform, tmp_path_factory.mktemp("found"))


def of(values: dict[str, np.ndarray], case: str) -> dict[str, np.ndarray]:
    """The arrays of one case: loss, logits and gradients."""
    own = {name.split("/", 1)[1]: x for name, x in values.items() if name.startswith(f"{case}/")}
    return {name: x for name, x in own.items() if name != "leak"}


def distance(a: np.ndarray, b: np.ndarray) -> float:
    """|a - b| / |b|, Euclidean."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


@pytest.mark.parametrize("case", ["small", "small masked", "wide"])
def test_float32_gives_the_cpus_loss_logits_and_gradients(case, expected, found, record_property):
    ours, theirs = of(found, case), of(expected, case)
    assert len(ours) > 8 and ours.keys() == theirs.keys()
    errors = {name: np.abs(ours[name] - theirs[name]).max() / np.abs(theirs[name]).max() for name in theirs}
    record_property("largest error of the largest value", f"{max(errors.values()):.1e}")
    record_property("of the loss", f"{errors['loss']:.1e}")
    assert max(errors.values()) < 1e-4, errors
    assert errors["loss"] < 1e-5


@pytest.mark.parametrize("case", [case for case in FOUND if case.startswith("small") and "half" in case])
def test_bfloat16_is_as_near_to_float32_as_on_a_cpu(case, expected, found, record_property):
    """The CPU's own distance is the measure: other kernels may round elsewhere, but no more often than twice."""
    plain = "small masked" if "masked" in case else "small"
    exact, rounded, ours = of(expected, plain), of(expected, f"{plain} half"), of(found, case)
    ratios = {name: distance(ours[name], exact[name]) / distance(rounded[name], exact[name]) for name in exact}
    record_property("logits off by", f"{distance(ours['logits'], exact['logits']):.1e}")
    record_property("largest gradient's error over the CPU's", f"{max(ratios.values()):.2f}")
    loss = ratios.pop("loss")  # one number may be near by chance
    assert max(ratios.values()) < 2, ratios
    assert abs(ours["loss"] - exact["loss"]) < 2e-3 * exact["loss"], loss


def test_bfloat16_at_the_7bs_width_is_near_float32(expected, found, record_property):
    """On a CPU, at an eighth of the width, logits are off by 0.8%, gradients by up to 1.4%; twice that is allowed."""
    ours, exact = of(found, "wide half"), of(expected, "wide")
    errors = {name: distance(ours[name], exact[name]) for name in exact}
    record_property("logits off by", f"{errors['logits']:.1e}")
    record_property("worst gradient off by", f"{max(errors.values()):.1e}")
    assert errors["logits"] < 0.016 and max(errors.values()) < 0.028, errors


@pytest.mark.parametrize("case", [case for case in FOUND if "masked" in case])
def test_another_documents_tokens_change_no_bit_of_a_models_logits(case, found):
    assert found[f"{case}/leak"] == 0
    assert found["small/leak"] > 1e-3  # without the mask they do


ATTENTION = [
    {"implementation": "blockwise", "dtype": "float32", "documents": True, **HEADS},
    {"implementation": "blockwise", "dtype": "float32", "documents": True, **HEADS, "length": 1700},
    {"implementation": "blockwise", "dtype": "bfloat16", "documents": True, **HEADS},
    {"implementation": "triton", "dtype": "bfloat16", "documents": True, **HEADS},
    {"implementation": "triton", "dtype": "bfloat16", "documents": False, **HEADS},
    {"implementation": "triton", "dtype": "bfloat16", "documents": True, **HEADS, "head_dim": 64, "length": 640},
    {"implementation": "cudnn", "dtype": "bfloat16", "documents": False, **HEADS},
    {"implementation": "cudnn", "dtype": "bfloat16", "documents": True, **HEADS},
    {"implementation": "auto", "dtype": "bfloat16", "documents": True, **HEADS},
    {"implementation": "auto", "dtype": "bfloat16", "documents": False, **HEADS, "length": 1000},
]


@pytest.fixture(scope="session")
def attended(platform) -> list[dict]:
    """What `tests.gpu.values` finds of ATTENTION."""
    both = platform if platform == "cpu" else f"{platform},cpu"
    done = run("tests.gpu.values", "attention", json.dumps(ATTENTION), JAX_PLATFORMS=both, **NO_PREALLOCATION)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize(
    "number",
    range(len(ATTENTION)),
    ids=lambda n: "{implementation}-{dtype}-{documents}-{length}".format(**ATTENTION[n]),
)
def test_each_attention_is_a_softmax_in_float64_and_keeps_documents_apart(number, attended, platform, record_property):
    case, result = ATTENTION[number], attended[number]
    if case["implementation"] == "cudnn" and (case["documents"] or platform == "cpu"):
        assert ("cannot mask documents" if platform != "cpu" else "does not run on cpu") in result["refused"]
        return
    record_property("output and gradients off by", " ".join(f"{error:.1e}" for error in result["errors"]))
    # In bfloat16 probabilities, their gradients and the results are rounded, each to 2^-9 at most.
    assert max(result["errors"]) < (2**-7 if case["dtype"] == "bfloat16" else 1e-5), result
    assert result.get("leak", 0) == 0


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """300 digits in chunks of 128 tokens, the least that Pallas' kernel takes."""
    from jpeglm.data import sources
    from jpeglm.prepare import plan

    pictures, out = tmp_path_factory.mktemp("digits"), tmp_path_factory.mktemp("gpu") / "data"
    digits = sources.open_source("embedded:mnist")
    for name, _ in zip(digits.names(), range(300), strict=False):
        digits.load(name).save(pictures / f"{name.replace('/', '_')}.png")
    config = get_config()
    config.data.seq_len = 128
    plan.prepare(config, str(pictures), out, workers=1)
    return out


def test_features_of_the_inception_are_the_cpus(platform, tmp_path, record_property):
    modes, features = ["clean", "legacy_tensorflow", "legacy_pytorch"], {}
    for where in ("cpu", platform):
        out = tmp_path / f"{where}.npz"
        done = run(
            "tests.gpu.values", "inception", json.dumps(modes), str(out), JAX_PLATFORMS=where, **NO_PREALLOCATION
        )
        assert done.returncode == 0, done.stderr
        features[where] = dict(np.load(out))
    for mode in modes:
        expected, found = features["cpu"][mode], features[platform][mode]
        error = np.abs(found - expected).max() / np.abs(expected).max()
        record_property(mode, f"{error:.1e}")
        assert error < 1e-5


@pytest.mark.parametrize(
    "changes",
    [HALF, HALF | MASKED, {"dtype": "float32"}],
    ids=["bfloat16", "bfloat16, documents masked", "float32"],
)
def test_a_resumed_deterministic_run_is_bit_for_bit_an_undisturbed_one(changes, data, platform, tmp_path):
    """Compiled anew in each process, so that nothing is the same by a cache."""
    model = {f"model.{key}": value for key, value in (changes | {"head_dim": 64}).items()}
    settings = {"data.seq_len": 128, "deterministic": True, "checkpoint.every": 10, **model}
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    for workdir in (whole, resumed):
        programs = {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / f"{workdir.name} programs")}
        done = run("jpeglm.train", *train_flags(data, workdir, **settings), JAX_PLATFORMS=platform, **programs)
        assert done.returncode == 0, done.stderr
        if workdir == whole:
            shutil.copytree(whole, resumed)
            shutil.rmtree(resumed / "checkpoints" / "20")
    assert "starts at step    10" in done.stderr
    mine, undisturbed = state(resumed, 20), state(whole, 20)
    assert any("opt_state" in name for name in undisturbed) and any("wq" in name for name in undisturbed)
    different = [name for name, array in undisturbed.items() if mine[name].tobytes() != array.tobytes()]
    assert not different
    assert losses(whole, 20).tobytes() == losses(resumed, 20).tobytes()
    assert losses(whole, 20)[-1] < losses(whole, 20)[0] - 0.1  # it learns


def test_the_compiler_predicts_the_memory_of_training(data, platform, record_property):
    """Within an eighth: what comes beside the step (batches ahead, evaluation) is small."""
    config = get_config()
    config.data.path, config.data.seq_len, config.steps, config.optim.warmup_steps = str(data), 128, 4, 1
    wide = platform != "cpu"
    config.model.width, config.model.ffn_width, config.model.num_layers = (1024, 2816, 8) if wide else (128, 256, 2)
    job = {"do": "train", "config": config.to_dict(), "warm": 1}
    done = run("benchmarks.ours", json.dumps(job), JAX_PLATFORMS=platform)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    state_bytes = 12 * 2 * config.model.num_layers * config.model.width * config.model.ffn_width  # of two matrices
    assert result["predicted_bytes"] > state_bytes
    if platform == "cpu":
        assert result["peak_bytes"] is None  # a CPU does not count
    else:
        ratio = result["peak_bytes"] / result["predicted_bytes"]
        record_property("peak bytes over predicted ones", f"{ratio:.3f}")
        assert 7 / 8 < ratio < 9 / 8, result
