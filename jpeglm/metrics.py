"""What a run reports: JSON lines, TensorBoard, and the arithmetic of speed."""

import json
import math
import time
from typing import Any

import jax
from etils import epath

from jpeglm import codecs
from jpeglm.errors import InputError, writing

# Dense bf16 multiply-add peaks in FLOP/s a device, from the makers' data sheets; keys are parts of `device_kind`,
# the longer one first.
PEAK_FLOPS = {
    "A100": 312e12,
    "H100": 989e12,
    "H200": 989e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,
    "TPU v6": 918e12,
}


def peak_flops(device: jax.Device) -> float | None:
    """FLOP/s of one device in bf16, or None where it is not known (a CPU)."""
    return next((peak for kind, peak in PEAK_FLOPS.items() if kind in device.device_kind), None)


class MetricsLog:
    """Scalars by step: `metrics.jsonl` and TensorBoard events in a workdir.

    Rows are written whole on `flush`, beside and then renamed: the file is never half-written and, flushed with each
    checkpoint, never behind it. A resumed run drops the rows after the step that it goes on from, and tells
    TensorBoard to. Everything is written by the caller's thread, so that a full disk is noticed: InputError.
    """

    def __init__(self, workdir: epath.Path, resume_step: int):
        # Late: this imports torch where that is installed, for two seconds.
        from tensorboardX import summary
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto import event_pb2

        self._workdir = workdir
        self._path = workdir / "metrics.jsonl"
        self._rows = [row for row in read_metrics(workdir) if row["step"] <= resume_step]
        self._scalar, self._event = summary.scalar, event_pb2.Event
        with writing(workdir):
            folder = workdir / "tensorboard"
            folder.mkdir(parents=True, exist_ok=True)
            self._board = EventsWriter(str(folder / "events"))
            restart = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
            self._board.write_event(self._event(wall_time=time.time(), step=resume_step + 1, session_log=restart))

    def write(self, step: int, scalars: dict[str, float]) -> None:
        self._rows.append({"step": step, **scalars})
        now = time.time()
        with writing(self._workdir):
            for name, value in scalars.items():
                self._board.write_event(self._event(wall_time=now, step=step, summary=self._scalar(name, value)))

    def flush(self) -> None:
        with writing(self._workdir):
            self._board.flush()
            beside = self._path.with_name(self._path.name + ".tmp")
            beside.write_text("".join(json.dumps(row) + "\n" for row in self._rows))
            beside.replace(self._path)

    def close(self) -> None:
        self.flush()
        with writing(self._workdir):
            self._board.close()


def read_metrics(workdir: epath.PathLike) -> list[dict[str, Any]]:
    """The rows of a workdir's `metrics.jsonl`, oldest first; none where it has not been written."""
    path = epath.Path(workdir) / "metrics.jsonl"
    try:
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    except ValueError as error:
        raise InputError(f"{path} is damaged ({error}): mend it or move it away") from error


def heldout_units(nats_per_token: float, manifest: dict[str, Any]) -> dict[str, float]:
    """The held-out loss in the field's three units; bytes and pixels are those of the split's whole files."""
    split = manifest["splits"]["heldout"]
    bits = nats_per_token / math.log(2) * split["tokens"]
    return {
        "nats_per_token": nats_per_token,
        "bits_per_byte": bits / split["bytes"],
        "bits_per_pixel": bits / (split["documents"] * codecs.make(manifest["config"]["codec"]).pixels),
    }


def human_count(number: float) -> str:
    """12_345_678 -> '12.3M'."""
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("K", 1e3)):
        if abs(number) >= size:
            return f"{number / size:.3g}{unit}"
    return f"{number:.3g}"


def human_time(seconds: float) -> str:
    """3_725 -> '1:02:05'; days in front where there are any."""
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    return (f"{days}d " if days else "") + f"{hours}:{minutes:02d}:{seconds:02d}"
