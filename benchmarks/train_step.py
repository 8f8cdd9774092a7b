"""Training against transformers and torch: tokens a second, and the ratio.

    python -m benchmarks.train_step --config=configs/jpeglm_demo.py --data=DATA

DATA is prepared for the config. Ours is the real command, `jpeglm.train`, in a process of its own: its own log lines
count, loader and logging included, without the first. Theirs is a bare loop over the same chunks with AdamW, clipping
and the model's own loss. The two take turns, `--rounds` times; the median counts. QK-norm is left out, which
transformers' Llama does not have.
"""

import dataclasses
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from absl import app, flags
from ml_collections import ConfigDict, config_flags
from tabulate import tabulate

from benchmarks import peer
from jpeglm import metrics
from jpeglm.data import pipeline
from jpeglm.model import llama

_CONFIG = config_flags.DEFINE_config_file("config", "configs/jpeglm_demo.py")
_DATA = flags.DEFINE_string("data", None, "Folder that jpeglm.prepare wrote for the config.", required=True)
_STEPS = flags.DEFINE_integer("steps", 60, "Of a turn; the first third warms up.", lower_bound=6)
_ROUNDS = flags.DEFINE_integer("rounds", 3, "Turns of each.")


def ours(config_file: str, overrides: list[str], data: str, steps: int) -> float:
    """Tokens a second of the real command, the median of its log lines after the first third."""
    with tempfile.TemporaryDirectory() as folder:
        workdir = Path(folder) / "run"
        flags_ = [
            f"--config={config_file}", *overrides, f"--workdir={workdir}", f"--config.data.path={data}",
            f"--config.steps={steps}", "--config.log.every=2", "--config.optim.warmup_steps=1",
            "--config.model.qk_norm=False",
            f"--config.eval.every={steps + 1}", f"--config.checkpoint.every={steps + 1}",
        ]  # fmt: skip
        command = [sys.executable, "-m", "jpeglm.train", *flags_]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(done.stderr)
        rows = [row for row in metrics.read_metrics(workdir) if "tokens_per_second" in row]
    return statistics.median(row["tokens_per_second"] for row in rows if row["step"] > steps // 3)


def theirs(config: ConfigDict, data: str, steps: int) -> float:
    """Tokens a second of a bare torch loop, the median of pairs of steps after the first third."""
    shapes = llama.LlamaConfig.of(config)
    seq_len, batch_size = config.data.seq_len, config.optim.batch_size
    model = peer.huggingface_llama(dataclasses.replace(shapes, dtype="float32"), seq_len).train()
    optim = config.optim
    optimizer = torch.optim.AdamW(model.parameters(), optim.lr, (optim.b1, optim.b2), optim.eps, optim.weight_decay)
    chunks = pipeline.Chunks(data, "train", seq_len)
    rates, started = [], time.perf_counter()
    for step in range(1, steps + 1):
        rows = [(step * batch_size + row) % len(chunks) for row in range(batch_size)]
        tokens = torch.from_numpy(chunks.batch(rows)["tokens"].astype(np.int64)).to(model.device)
        with torch.autocast(model.device.type, torch.bfloat16, enabled=shapes.dtype == "bfloat16"):
            loss = model(input_ids=tokens, labels=tokens).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), optim.clip_norm)
        optimizer.step()
        optimizer.zero_grad()
        if step % 2 == 0:
            loss.item()  # waits for the step, as a log line does
            now = time.perf_counter()
            if step > steps // 3:
                rates.append(2 * batch_size * seq_len / (now - started))
            started = now
    return statistics.median(rates)


def main(_: list[str]) -> None:
    config = _CONFIG.value
    file = config_flags.get_config_filename(flags.FLAGS["config"])
    changed = config_flags.get_override_values(flags.FLAGS["config"])
    overrides = [f"--config.{key}={value}" for key, value in changed.items()]
    pairs = [
        (ours(file, overrides, _DATA.value, _STEPS.value), theirs(config, _DATA.value, _STEPS.value))
        for _ in range(_ROUNDS.value)
    ]
    shapes = dataclasses.replace(llama.LlamaConfig.of(config), qk_norm=False)
    size = f"{config.optim.batch_size} x {config.data.seq_len} tokens a step"
    print(f"{shapes.num_parameters:,} parameters, {size}, {shapes.dtype}; {peer.machine()}")
    rows = [[number + 1, a, b, a / b] for number, (a, b) in enumerate(pairs)]
    rows.append(["median", *(statistics.median(column) for column in zip(*(row[1:] for row in rows), strict=True))])
    headers = ["turn", "jpeglm, tokens/s", "torch, tokens/s", "ratio"]
    print(tabulate(rows, headers, tablefmt="github", floatfmt=("", ",.0f", ",.0f", ".2f")))


if __name__ == "__main__":
    app.run(main)
