"""Our side of the benchmarks: runs jpeglm's training loop or sampling engine.

    python -m benchmarks.ours '{"do": "train", ...}'

is started by `benchmarks.train_step` and `benchmarks.decode`, and prints one line of JSON.
"""

import dataclasses
import json
import statistics
import sys
import tempfile
from typing import Any
from unittest import mock

import flax
import jax
import numpy as np
from etils import epath

from benchmarks import report
from jpeglm.core import checkpoint, config, hardware, sharding
from jpeglm.core.workdir import read_metrics
from jpeglm.models import llama, networks
from jpeglm.sample.engine import Engine, Request
from jpeglm.sample.settings import Settings
from jpeglm.train.loop import set_up, take_steps


class _Unsaved:
    """Replaces `checkpoint.Saver` and saves nothing, because the states of these runs are large and not needed."""

    def __init__(self, *_: object):
        pass

    def save(self, *_: object) -> None:
        pass

    def check(self) -> None:
        pass

    def close(self) -> None:
        pass


def train(job: dict[str, Any]) -> dict[str, Any]:
    """Runs all of `jpeglm.train`, without saving. The numbers come from its own metrics.

    Args:
      job: config (a whole one, nested), and warm (number of first steps that do not count).

    Returns:
      tokens per second (the median), seconds of each step, losses, seconds of compiling, the bytes per device that the
      compiler predicted, and the most bytes in use.
    """
    run = config.base()
    run.update(job["config"])
    with tempfile.TemporaryDirectory() as folder, mock.patch.object(checkpoint, "Saver", _Unsaved):
        workdir = epath.Path(folder) / "run"
        training = set_up(run, workdir)
        take_steps(training, run.steps)
        rows = [row for row in read_metrics(workdir) if "tokens_per_second" in row]
    counted = [row for row in rows if row["step"] > job["warm"]]
    per_step = run.optim.batch_size * run.data.seq_len
    return {
        "tokens_per_second": statistics.median(row["tokens_per_second"] for row in counted),
        "step_seconds": [per_step / row["tokens_per_second"] for row in counted],
        "losses": [row["loss"] for row in rows],
        "compile_seconds": rows[-1]["seconds/compile"],
        "predicted_bytes": sum(training.memory),
        "peak_bytes": _peak_bytes(),
    }


def decode(job: dict[str, Any]) -> dict[str, Any]:
    """Samples from random prompts to exactly `length` tokens with the engine; no id ends a sequence.

    Args:
      job: model (fields of LlamaConfig), slots, prompt and length (in tokens), repeats, and settings (temperature,
        top_k, top_p).

    Returns:
      seconds of whole calls, seconds of calls for one new token, and the most bytes in use on the device.
    """
    model, slots = llama.LlamaConfig(**job["model"]), job["slots"]
    mesh = sharding.make_mesh({}, jax.devices()[:1])
    settings = Settings(job["length"], slots=slots, **job["settings"])
    whole = Engine(model, jax.jit(lambda: networks.init(model, 0))(), mesh, settings, eos=-1)
    first = whole.with_settings(dataclasses.replace(settings, max_tokens=job["prompt"] + 1))
    prompts = np.random.default_rng(0).integers(3, model.vocab_size, (slots, job["prompt"]), np.int32)
    requests = [Request(prompt, np.array([0, slot], np.uint32)) for slot, prompt in enumerate(prompts)]

    def timed(engine: Engine) -> list[float]:
        def run() -> None:
            new = engine.settings.max_tokens - job["prompt"]
            assert [len(written.ids) for written in engine.generate(requests)] == [new] * slots

        run()  # compiles
        return [report.seconds(run) for _ in range(job["repeats"])]

    return {"seconds": timed(whole), "prefill_seconds": timed(first), "peak_bytes": _peak_bytes()}


def _peak_bytes() -> int | None:
    """The most bytes of the device in use at once; None for a CPU, which does not report them."""
    return (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use")


def main() -> None:
    """Runs the job of the command line and prints its result."""
    job = json.loads(sys.argv[1])
    result = {"train": train, "decode": decode}[job["do"]](job)
    device = jax.local_devices()[0]
    chip = hardware.chip_of(device)
    facts = {"device": device.device_kind, "peak_flops": chip and chip.flops, "bandwidth": chip and chip.bandwidth}
    print(json.dumps(result | facts | {"versions": {"jax": jax.__version__, "flax": flax.__version__}}))


if __name__ == "__main__":
    main()
