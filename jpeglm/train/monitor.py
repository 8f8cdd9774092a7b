"""What a run reports: log lines, a progress bar, metrics. Only process 0 reports."""

import json
import time
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
from jpeglm.core.errors import writing
from jpeglm.core.files import write_whole
from jpeglm.core.human import human_bytes, human_count, human_time
from jpeglm.core.registry import MODELS
from jpeglm.core.workdir import read_metrics
from jpeglm.train.clock import Stopwatch
from jpeglm.train.inputs import Inputs


class Monitor:
    """Reports on one run; on all processes but the first its methods do nothing."""

    def __init__(
        self, workdir: epath.Path, config: ConfigDict, first_step: int, clock: Stopwatch,
        schedule: optax.Schedule, devices: Sequence[jax.Device],
    ):  # fmt: skip
        """Opens the metrics of the workdir; `clock` continues from the times recorded there.

        `first_step`: number of steps done; `schedule`: the learning rate of step 0, 1, ...
        """
        self._is_lead = jax.process_index() == 0
        self._config, self._clock, self._schedule = config, clock, schedule
        self._tokens_a_step = config.optim.batch_size * config.data.seq_len
        self._flops_per_token = MODELS.of(config).flops_per_token(config.data.seq_len)
        self._num_devices, self._peak = len(devices), hardware.peak_flops(devices[0])
        self._last = first_step, 0.0, 0.0  # at the last log line: step, and the clock's seconds in steps and in data
        if self._is_lead:
            self._log = MetricsLog(workdir, first_step)
            clock.go_on(self._log.rows)
            schedule(first_step)  # the first call compiles it; that must not count as time of steps
            self._bar = tqdm(total=config.steps, initial=first_step, unit="step", desc="train", disable=None)

    def opening(self, mesh: Mesh, inputs: Inputs, memory: tuple[int, int], compile_seconds: float) -> None:
        """Logs every derived quantity of the run. `memory`: from `device_memory`."""
        if self._is_lead:
            first_step, *_ = self._last
            table = opening_table(self._config, mesh, inputs, first_step, memory, compile_seconds)
            logging.info("\n%s", table)

    def begin(self) -> None:
        """Called when the loop begins."""
        first_step, *_ = self._last
        self._last = self._now(first_step)

    def step(self, step: int, scalars: dict[str, float], is_last: bool) -> None:
        """Called after each step; logs a line every `log.every` steps and after the last one."""
        if not self._is_lead:
            return
        self._bar.update()
        if step % self._config.log.every and not is_last:
            return
        (last_step, *before), now = self._last, self._now(step)
        self._last = now
        training, waiting = (seconds - then for seconds, then in zip(now[1:], before, strict=True))
        steps, seconds = step - last_step, training + waiting
        tokens = steps * self._tokens_a_step
        rates = speed(tokens, seconds, self._num_devices, self._flops_per_token, self._peak)
        scalars = scalars | {"learning_rate": float(self._schedule(step - 1))}
        self._bar.set_postfix(loss=f"{scalars['loss']:.4f}")
        rate, each = (human_count(rates[f"tokens_per_second{of}"]) for of in ("", "_per_device"))
        parts = [
            f"step {step}/{self._config.steps}", f"loss {scalars['loss']:.4f}",
            f"grad norm {scalars['grad_norm']:.3f}", f"lr {scalars['learning_rate']:.2e}",
            f"{rate} tokens/s" + (f" ({each} a device)" if self._num_devices > 1 else ""),
            *([f"MFU {rates['mfu']:.1%}"] if self._peak else []),
            f"goodput {self._clock.goodput:.1%}",
            *([f"DATA WAIT {waiting / seconds:.1%}"] if waiting > 0.01 * seconds else []),
            f"{human_time(seconds / steps * (self._config.steps - step))} left",
        ]  # fmt: skip
        logging.info("%s", "  ".join(parts))
        self._log.write(step, scalars | rates | self._clock.scalars())

    def scores(self, step: int, scores: dict[str, float]) -> None:
        """Called after an evaluation."""
        if self._is_lead:
            logging.info("step %d  held-out: %s", step, "  ".join(f"{k} {v:.4f}" for k, v in scores.items()))
            self._log.write(step, {f"heldout/{name}": value for name, value in scores.items()})

    def flush(self) -> None:
        """Writes the metrics so far. Called before each checkpoint, so that no checkpoint is ahead of the metrics."""
        if self._is_lead:
            self._log.flush()

    def saved(self, step: int, seconds: float) -> None:
        """Called after a checkpoint; `seconds`: how long the run waited for it."""
        if self._is_lead:
            logging.info("step %d  checkpoint: the run waited %.2f s, the rest runs in the background", step, seconds)

    def close(self, words: str) -> None:
        """Logs where the time went, then `words`."""
        if self._is_lead:
            self._bar.close()
            self._log.close()
            logging.info("time of the run, by what it was spent on:\n%s", self._clock.table())
            logging.info("%s", words)

    def _now(self, step: int) -> tuple[int, float, float]:
        """The current values for `_last`."""
        seconds = self._clock.seconds
        return step, seconds["steps"], seconds["data"]


def opening_table(
    config: ConfigDict, mesh: Mesh, inputs: Inputs, first_step: int, memory: tuple[int, int], compile_seconds: float
) -> str:
    """A table of every derived quantity of a run."""
    seq_len, batch_size = config.data.seq_len, config.optim.batch_size
    chunks, heldout = inputs.train, inputs.heldout
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


def speed(
    tokens: int, seconds: float, num_devices: int, flops_per_token: float, peak: float | None
) -> dict[str, float]:
    """Tokens per second, in total and per device, and the model FLOPs utilisation if the peak is known.

    MFU (Chowdhery et al. 2022, appendix B) is tokens per second times FLOPs per token, over the devices' peak. The
    FLOPs are those of the model (`Model.flops_per_token`), not counting recomputation by remat.
    """
    rate = tokens / seconds
    scalars = {"tokens_per_second": rate, "tokens_per_second_per_device": rate / num_devices}
    return scalars | ({"mfu": rate * flops_per_token / (peak * num_devices)} if peak else {})


class MetricsLog:
    """Scalars by step: `metrics.jsonl` and TensorBoard events in a workdir.

    `flush` writes the whole file to a temporary name and renames it. So it is never half-written and, because it is
    flushed with each checkpoint, never behind one. A resumed run drops the rows after the step that it resumes from,
    and tells TensorBoard to do the same. Everything is written by the caller's thread, so that a full disk raises
    InputError there.
    """

    def __init__(self, workdir: epath.Path, resume_step: int):
        # Imported late: it imports torch if that is installed, which takes two seconds.
        from tensorboardX import summary
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto import event_pb2

        self._workdir = workdir
        self._path = workdir / "metrics.jsonl"
        self.rows = [row for row in read_metrics(workdir) if row["step"] <= resume_step]
        self._scalar, self._event = summary.scalar, event_pb2.Event
        with writing(workdir):
            folder = workdir / "tensorboard"
            folder.mkdir(parents=True, exist_ok=True)
            self._board = EventsWriter(str(folder / "events"))
            restart = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
            self._board.write_event(self._event(wall_time=time.time(), step=resume_step + 1, session_log=restart))

    def write(self, step: int, scalars: dict[str, float]) -> None:
        self.rows.append({"step": step, **scalars})
        now = time.time()
        with writing(self._workdir):
            for name, value in scalars.items():
                self._board.write_event(self._event(wall_time=now, step=step, summary=self._scalar(name, value)))

    def flush(self) -> None:
        with writing(self._workdir):
            self._board.flush()
            write_whole(self._path, "".join(json.dumps(row) + "\n" for row in self.rows).encode())

    def close(self) -> None:
        self.flush()
        with writing(self._workdir):
            self._board.close()
