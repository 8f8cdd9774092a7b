"""Compares training with transformers and torch: tokens per second, MFU, memory, and the ratio.

On CPUs, the demo's model:

    python -m benchmarks.train_step --data=DATA

On one GPU, with as many layers of the 7B as fit for both:

    python -m benchmarks.train_step --config=configs/jpeglm_7b.py --layers=fit --steps=12 --out=RESULTS \\
        --config.data.seq_len=12288 --config.optim.batch_size=1 \\
        --ours=model.remat=full --ours=model.remat=attention \\
        --theirs=recompute=all,compile=layers,attention=cudnn

DATA is prepared for the config; without it random pictures are prepared in a temporary folder. Each measurement runs
in its own process. Ours is `jpeglm.train` without saving. Its times come from its own metrics, include the loader and
logging, and leave out the first third of the steps. Theirs is the minimal loop of `benchmarks.peer` over the same
chunks, with AdamW, clipping and the model's own loss. Both keep float32 parameters, gradients and moments and compute
in the config's dtype. QK-norm is left out, because transformers' Llama does not have it. Each of --ours and --theirs
runs once. Then the fastest of each side runs again, alternately, for `--rounds` turns in all. The ratio is that of the
two fastest.
"""

import dataclasses
import math
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from absl import app, flags
from ml_collections import ConfigDict, config_flags
from PIL import Image

from benchmarks import report
from jpeglm.core.human import human_bytes
from jpeglm.core.registry import CODECS
from jpeglm.data import batches
from jpeglm.models.llama import LlamaConfig
from jpeglm.prepare.plan import prepare

OPTIMIZER_BYTES = 16  # per parameter: itself, its gradient and two moments, in float32
AIMS = {12_288: 0.55, 32_768: 0.45}  # MFU on an H100
DEFAULTS = {"recompute": "none", "compile": "none", "attention": "sdpa", "allocator": "default"}
HEADERS = ["", "tokens/s", "range", "MFU", "peak memory", "by the compiler", "ms a step", "turns"]


def prepare_noise(config: ConfigDict, folder: Path, chunks: int) -> str:
    """Prepares random pictures, enough for `chunks` chunks, and returns the folder. Speed does not depend on them."""
    config = config.copy_and_resolve_references()
    config.data.shards, config.data.holdout = 1, 1
    random = np.random.default_rng(0)
    codec = config.codec
    pictures = folder / "pictures"
    pictures.mkdir()
    size = (codec.height, codec.width, 3)[: 2 if codec.mode == "L" else 3]
    one = CODECS.of(config)
    number, found = 0, 0
    while found < chunks * config.data.seq_len * 3:  # bytes; merges make fewer tokens of them
        image = Image.fromarray(random.integers(0, 256, size, np.uint8))
        image.save(pictures / f"{number}.png")
        found += len(one.encode(image))
        number += 1
    prepare(config, str(pictures), folder / "data", workers=1)
    return str(folder / "data")


def layers_that_fit(config: ConfigDict, memory: float) -> int:
    """How many layers can train in `memory` bytes, if each layer is recomputed in the backward pass."""
    model, tokens = LlamaConfig.of(config), config.optim.batch_size * config.data.seq_len
    one = dataclasses.replace(model, num_layers=1)
    ends = 2 * model.padded_vocab_size * model.width
    a_layer = OPTIMIZER_BYTES * (one.num_parameters - 2 * model.vocab_size * model.width) + 2 * tokens * model.width
    during = tokens * 16 * (model.ffn_width + 2 * model.width)  # eight arrays of each, in bfloat16
    room = memory - OPTIMIZER_BYTES * ends - during - 2**30
    return max(1, min(config.model.num_layers, int(room // a_layer)))


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a benchmark does; the command's flags."""

    ours: list[str]  # ways to train, "KEY=VALUE,..." of the config
    theirs: list[str]  # ways of the peer, "KEY=VALUE,..." of DEFAULTS
    layers: str = ""  # a number; "fit": as many as fit for the first way of each side; "": the config's
    steps: int = 60
    rounds: int = 3
    minutes: float = 60
    out: str | None = None
    name: str = "train"
    torch_python: str | None = None


class Benchmark:
    """One table: keeps the measurements so far and takes further ones."""

    def __init__(self, plan: Plan, config: ConfigDict, data: str, cache: str):
        self._plan = plan
        self._config, self._data, self._cache = config, str(data), cache
        self._tokens = str(Path(cache) / "tokens.npy")
        self._ends = time.monotonic() + 60 * plan.minutes
        self._longest = 0.0
        self._facts: dict[str, Any] = {}
        self._versions: dict[str, str] = {}
        self.taken: dict[tuple[str, str], list[dict]] = {}
        self.notes: list[str] = []
        title = f"Training, {config.data.seq_len:,} tokens a chunk"
        self._results = report.Results(plan.out, plan.name, title)
        chunks = batches.Chunks(data, "train", config.data.seq_len)
        np.save(self._tokens, chunks.batch(range(min(len(chunks), 64)))["tokens"].astype(np.uint16))

    def measure(self, side: str, how: str) -> dict | None:
        """Measures one way of "ours" or "theirs" once more; None if too little time is left."""
        left = self._ends - time.monotonic()
        if left < self._longest:
            self.notes.append(f"no time was left for {side} {how}")
            return None
        started = time.monotonic()
        result = self._ours(how, left) if side == "ours" else self._theirs(how, left)
        self._longest = max(self._longest, time.monotonic() - started)
        self._versions |= result.pop("versions", {})
        self._facts |= {name: result.pop(name) for name in ("device", "peak_flops") if name in result}
        self.taken.setdefault((side, how), []).append(result)
        self.write()
        return result

    def start_again(self, layers: int, why: str) -> None:
        """Drops what was measured and continues with `layers` layers. `why`: the reason, for the notes."""
        self.notes.append(f"{self._config.model.num_layers} layers do not fit: {why}")
        self._config.model.num_layers = layers
        self.taken.clear()

    def rate(self, side: str, how: str) -> float:
        """Tokens per second, the median of all turns that did not fail; 0 if there are none."""
        rates = [turn["tokens_per_second"] for turn in self.taken.get((side, how), []) if "failed" not in turn]
        return statistics.median(rates) if rates else 0.0

    def fastest(self, side: str) -> str | None:
        """The way of a side with the highest rate; None if all failed."""
        ways = [how for its_side, how in self.taken if its_side == side and self.rate(side, how)]
        return max(ways, key=lambda how: self.rate(side, how), default=None)

    def write(self) -> None:
        """Writes the table of the measurements so far."""
        config, rows = self._config, []
        for (side, how), turns in self.taken.items():
            good = [turn for turn in turns if "failed" not in turn]
            name = f"{'jpeglm' if side == 'ours' else 'torch'} {how}".strip()
            if not good:
                rows.append([name, turns[-1]["failed"], *[""] * (len(HEADERS) - 2), len(turns)])
                continue
            rates = [turn["tokens_per_second"] for turn in good]
            mfu = self._mfu(statistics.median(rates))
            peaks = [turn["peak_bytes"] for turn in good if turn["peak_bytes"]]
            predicted = good[0].get("predicted_bytes")
            rows.append(
                [
                    name, f"{statistics.median(rates):,.0f}", f"{min(rates):,.0f} to {max(rates):,.0f}",
                    f"{mfu:.1%}" if mfu else "not known",
                    human_bytes(max(peaks)) if peaks else "not told",
                    human_bytes(predicted) if predicted else "",
                    f"{1e3 * statistics.median(s for turn in good for s in turn['step_seconds']):,.0f}",
                    len(turns),
                ]
            )  # fmt: skip
        model = LlamaConfig.of(config)
        notes = [
            f"{model.num_parameters:,} parameters, {model.num_layers} layers of width {model.width}; "
            f"{config.optim.batch_size} x {config.data.seq_len:,} tokens a step; {model.dtype}, float32 parameters",
            f"{model.flops_per_token(config.data.seq_len) / 1e9:.2f} GFLOPs a token, causal, without recomputation",
        ]
        ours, theirs = self.fastest("ours"), self.fastest("theirs")
        if ours is not None and theirs is not None:
            pairs = zip(self.taken["ours", ours], self.taken["theirs", theirs], strict=False)
            ratios = [a["tokens_per_second"] / b["tokens_per_second"] for a, b in pairs if len(a) > 2 and len(b) > 2]
            spread = f" ({min(ratios):.2f} to {max(ratios):.2f} by turn)" if len(ratios) > 1 else ""
            ratio = self.rate("ours", ours) / self.rate("theirs", theirs)
            notes.append(f"ratio of the fastest of each, ours over theirs: {ratio:.2f}{spread}; the aim is above 1")
        aim = AIMS.get(config.data.seq_len)
        if aim and model.width == 4096:
            best = self._mfu(self.rate("ours", ours)) if ours is not None else None
            reached = f"; reached {best:.1%}" if best else ""
            notes.append(f"the aim is an MFU of {aim:.0%} on an H100{reached}")
        machine = report.machine(**self._versions)
        raw = [{"side": side, "how": how, "turns": turns} for (side, how), turns in self.taken.items()]
        raw = {"layers": model.num_layers, "device": self._facts.get("device"), "measurements": raw}
        self._results.write(machine, HEADERS, rows, notes + self.notes, raw)

    def show(self) -> None:
        """Prints the table."""
        self._results.show()

    def _mfu(self, rate: float) -> float | None:
        peak = self._facts.get("peak_flops")
        return rate * LlamaConfig.of(self._config).flops_per_token(self._config.data.seq_len) / peak if peak else None

    def _ours(self, how: str, timeout: float) -> dict:
        config, steps = self._config.copy_and_resolve_references(), self._plan.steps
        config.data.path, config.steps, config.log.every, config.optim.warmup_steps = self._data, steps, 2, 1
        config.eval.every, config.eval.batches, config.checkpoint.every = steps + 1, 1, steps + 1
        config.update_from_flattened_dict(settings(how))
        job = {"do": "train", "config": config.to_dict(), "warm": steps // 3}
        return report.child("benchmarks.ours", job, self._cache, timeout=timeout)

    def _theirs(self, how: str, timeout: float) -> dict:
        job = {
            "do": "train", "tokens": self._tokens, "steps": self._plan.steps, "warm": self._plan.steps // 3,
            "batch_size": self._config.optim.batch_size, "optim": self._config.optim.to_dict(),
            "model": dataclasses.asdict(LlamaConfig.of(self._config)), **DEFAULTS, **settings(how),
        }  # fmt: skip
        python = {"python": self._plan.torch_python} if self._plan.torch_python else {}
        return report.child("benchmarks.peer", job, self._cache, timeout=timeout, **python)


def settings(how: str) -> dict[str, Any]:
    """Parses a way, as 'a=1,b.c=x' to {'a': 1, 'b.c': 'x'}."""
    pairs = [pair.partition("=") for pair in how.split(",") if pair]
    words = {"True": True, "False": False}
    return {key: words.get(value, int(value) if value.isdecimal() else value) for key, _, value in pairs}


def run(plan: Plan, config: ConfigDict, data: str | None) -> Benchmark:
    """Measures what the plan says, on the prepared data in the folder `data` or, if it is None, on random pictures."""
    with config.unlocked():
        config.model.qk_norm = False
    is_fitted = plan.layers == "fit"
    if is_fitted:
        memory = report.gpu().get("memory")
        if not memory:
            raise SystemExit("--layers=fit wants a GPU that nvidia-smi can see; give a number")
        config.model.num_layers = layers_that_fit(config, 0.93 * memory)
    elif plan.layers:
        config.model.num_layers = int(plan.layers)
    cache = tempfile.mkdtemp(prefix="benchmark-")
    try:
        data = data or prepare_noise(config, Path(cache), 8 * config.optim.batch_size)
        table = Benchmark(plan, config, data, cache)
        sides = [("ours", how) for how in plan.ours], [("theirs", how) for how in plan.theirs]
        while is_fitted:
            found = [table.measure(*side[0]) for side in sides]
            short = [result for result in found if result and result.get("failed") == report.OUT_OF_MEMORY]
            if not short or config.model.num_layers == 1:
                break
            table.start_again(math.floor(0.9 * config.model.num_layers), short[0]["detail"])
        for number in range(max(map(len, sides))):  # each way once, in turn
            for way in [side[number] for side in sides if number < len(side)]:
                if way not in table.taken:
                    table.measure(*way)
        for _turn in range(1, plan.rounds):
            for side in ("ours", "theirs"):
                if (how := table.fastest(side)) is not None:
                    table.measure(side, how)
        table.write()
        return table
    finally:
        shutil.rmtree(cache, ignore_errors=True)


FLAGS = flags.FLAGS


def main(_: list[str]) -> None:
    """Runs the plan of the flags and prints the table."""
    plan = Plan(**{field.name: FLAGS[field.name].value for field in dataclasses.fields(Plan)})
    table = run(plan, FLAGS.config, FLAGS.data)
    table.show()
    if table.fastest("ours") is None:
        raise SystemExit("nothing of ours could be measured")


if __name__ == "__main__":
    config_flags.DEFINE_config_file("config", "configs/jpeglm_demo.py")
    flags.DEFINE_string("data", None, "Folder that jpeglm.prepare wrote for the config; none: noise is prepared.")
    flags.DEFINE_string("layers", "", "A number; or fit: as many as fit on the GPU for the first way of each side.")
    flags.DEFINE_integer("steps", 60, "Of a turn; the first third warms up.", lower_bound=6)
    flags.DEFINE_integer("rounds", 3, "Turns of the fastest of each side.", lower_bound=1)
    flags.DEFINE_multi_string("ours", [""], "KEY=VALUE,... of the config: a way to train. May be repeated.")
    flags.DEFINE_multi_string(
        "theirs", ["compile=none"],
        "recompute=all|attention|none,compile=layers|none,attention=sdpa|flash|cudnn|flash_attention_2,"
        "allocator=keep|default. Repeatable.",
    )  # fmt: skip
    flags.DEFINE_string("out", None, "Folder for the results, written after each measurement.")
    flags.DEFINE_string("name", "train", "Name of the result in it.")
    flags.DEFINE_float("minutes", 60, "No measurement is begun that would not end within this time.")
    flags.DEFINE_string("torch_python", None, "Python that has torch and transformers, if it is not this one.")
    app.run(main)
