"""What a run tells while it goes: log lines, a progress bar, metrics. Only process 0 speaks."""

from collections.abc import Sequence

import jax
import optax
from absl import logging
from etils import epath
from jax.sharding import Mesh
from ml_collections import ConfigDict
from tabulate import tabulate
from tqdm import tqdm

from jpeglm.core import hardware
from jpeglm.core.registry import MODELS
from jpeglm.data import batches
from jpeglm.train import monitor
from jpeglm.train.monitor import human_bytes, human_count, human_time


class Progress:
    """The telling of one run; on all processes but the first its methods do nothing."""

    def __init__(
        self, workdir: epath.Path, config: ConfigDict, first_step: int, clock: monitor.Stopwatch,
        schedule: optax.Schedule, devices: Sequence[jax.Device],
    ):  # fmt: skip
        """Opens the metrics of the workdir; `clock` goes on from what they have counted."""
        self._is_lead = jax.process_index() == 0
        self._config, self._clock, self._schedule = config, clock, schedule
        self._flops_per_token = MODELS.of(config).flops_per_token(config.data.seq_len)
        self._num_devices, self._peak = len(devices), hardware.peak_flops(devices[0])
        self._last = first_step, (0.0, 0.0)  # of the last line: the step, and the clock's seconds in steps and in data
        if self._is_lead:
            self._log = monitor.MetricsLog(workdir, first_step)
            clock.go_on(self._log.rows)
            self._bar = tqdm(total=config.steps, initial=first_step, unit="step", desc="train", disable=None)

    def begin(self) -> None:
        """The loop begins."""
        self._last = self._last[0], self._productive()

    def step(self, step: int, scalars: dict[str, float], is_last: bool) -> None:
        """After each step; every `log.every` steps and after the last one a line."""
        if not self._is_lead:
            return
        self._bar.update()
        if step % self._config.log.every and not is_last:
            return
        before, then, now = *self._last, self._productive()
        training, waiting = now[0] - then[0], now[1] - then[1]
        self._last = step, now
        seen, seconds = step - before, training + waiting
        tokens = seen * self._config.optim.batch_size * self._config.data.seq_len
        scalars = scalars | {"learning_rate": float(self._schedule(step - 1))}
        speed = monitor.speed(tokens, seconds, self._num_devices, self._flops_per_token, self._peak)
        self._bar.set_postfix(loss=f"{scalars['loss']:.4f}")
        rate, each = (human_count(speed[f"tokens_per_second{of}"]) for of in ("", "_per_device"))
        parts = [
            f"step {step}/{self._config.steps}", f"loss {scalars['loss']:.4f}",
            f"grad norm {scalars['grad_norm']:.3f}", f"lr {scalars['learning_rate']:.2e}",
            f"{rate} tokens/s" + (f" ({each} a device)" if self._num_devices > 1 else ""),
            *([f"MFU {speed['mfu']:.1%}"] if self._peak else []),
            f"goodput {self._clock.goodput:.1%}",
            *([f"DATA WAIT {waiting / seconds:.1%}"] if waiting > 0.01 * seconds else []),
            f"{human_time(seconds / seen * (self._config.steps - step))} left",
        ]  # fmt: skip
        logging.info("%s", "  ".join(parts))
        self._log.write(step, scalars | speed | self._clock.scalars())

    def scores(self, step: int, scores: dict[str, float]) -> None:
        """After an evaluation."""
        if self._is_lead:
            logging.info("step %d  held-out: %s", step, "  ".join(f"{k} {v:.4f}" for k, v in scores.items()))
            self._log.write(step, {f"heldout/{name}": value for name, value in scores.items()})

    def saving(self) -> None:
        """Before a checkpoint, so that none is ahead of its metrics."""
        if self._is_lead:
            self._log.flush()

    def saved(self, step: int, seconds: float) -> None:
        """After a checkpoint; `seconds`: for so long the run stood still."""
        if self._is_lead:
            logging.info("step %d  checkpoint: the run waited %.2f s, the rest is written beside it", step, seconds)

    def close(self, words: str) -> None:
        """Ends with where the time went, and `words`."""
        if self._is_lead:
            self._bar.close()
            self._log.close()
            logging.info("time of the run, by what it went to:\n%s", self._clock.table())
            logging.info("%s", words)

    def _productive(self) -> tuple[float, float]:
        return self._clock.seconds["steps"], self._clock.seconds["data"]


def opening_table(
    config: ConfigDict, mesh: Mesh, chunks: batches.Chunks, heldout: batches.Chunks, first_step: int,
    memory: tuple[int, int], compile_seconds: float,
) -> str:  # fmt: skip
    """Every derived quantity of a run. `memory`: of `monitor.device_memory`."""
    seq_len, batch_size = config.data.seq_len, config.optim.batch_size
    model = MODELS.of(config)
    per_token = model.flops_per_token(seq_len)
    device = mesh.devices.flat[0]
    peak = hardware.peak_flops(device)
    held, temporary = map(human_bytes, memory)
    rows = [
        ("devices", f"{mesh.devices.size} x {device.device_kind}, {jax.process_count()} process(es)"),
        ("mesh", ", ".join(f"{axis} {size}" for axis, size in mesh.shape.items())),
        ("peak", f"{human_count(peak)}FLOP/s a device in bf16" if peak else "not known: no MFU"),
        ("parameters", f"{model.num_parameters:,} (vocabulary of {model.vocab_size})"),
        ("memory a device", f"{held} for state and batch, {temporary} more during a step"),
        ("compiled in", f"{compile_seconds:.1f} s"),
        ("training data", f"{len(chunks):,} chunks of {seq_len:,} tokens in {len(chunks.paths)} shards"),
        ("held-out data", f"{len(heldout):,} chunks"),
        ("tokens a step", f"{batch_size * seq_len:,} ({batch_size} chunks, {config.optim.accumulate} microbatch(es))"),
        ("steps an epoch", f"{len(chunks) / batch_size:,.1f}"),
        ("epochs", f"{config.steps * batch_size / len(chunks):,.2f} in {config.steps:,} steps"),
        ("FLOPs a token", f"{human_count(per_token)} (forward and backward, causal)"),
        ("FLOPs of the run", human_count(per_token * batch_size * seq_len * config.steps)),
        ("starts at step", f"{first_step:,}"),
    ]
    return tabulate(rows, tablefmt="plain")
