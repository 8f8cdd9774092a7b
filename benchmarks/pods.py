"""Computes memory and time of the 7B runs on TPU slices: the tables of docs/measurements.md.

    python -m benchmarks.pods [--out=runs/pods] [--only=jpeglm_7b-v5e]

Each case runs `python -m jpeglm.aot --search` in its own process, which takes minutes. Its numbers are kept in
`--out`, so that an interrupted table continues. No TPU is needed; `pip install -r requirements-tpu.txt` installs the
compiler.
"""

import importlib.metadata
import json
import os
import subprocess
import sys
from pathlib import Path

from absl import app, flags
from tabulate import tabulate

from jpeglm.core.human import human_bytes, human_count

TOPOLOGIES = {
    "jpeglm_7b": ("v5e:16x16", "v5p:4x4x4", "v6e:8x8"),
    "avclm_7b": ("v5p:4x4x4", "v6e:16x16"),
}


def numbers(config: str, topology: str, what: str, out: Path, only: str) -> dict | None:
    """The numbers of `jpeglm.aot` for one case, computed if `out` does not have them.

    None if the case's name does not begin with `only`, or if nothing fits, which standard error then says.
    """
    file = out / f"{config}-{topology.replace(':', '-')}-{what}.json"
    if not file.name.startswith(only):
        return None
    if not file.exists():
        command = [sys.executable, "-m", "jpeglm.aot", f"--config=configs/{config}.py", f"--topology={topology}"]
        command += [f"--what={what}", "--search", f"--json={file}"]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
        if done.returncode not in (0, 2):
            raise SystemExit(done.returncode)
        file.with_suffix(".txt").write_text(done.stdout)
    return json.loads(file.read_text()) if file.exists() else None


def train_row(config: str, topology: str, found: dict) -> list[str]:
    """A row of the table about training. `found`: from `numbers`."""
    roofline = found["roofline"]
    usual = found["seconds_at_mfu"]["0.4"]
    return [
        f"{config} on {topology}",
        ", ".join(f"{size} ({remat})" for remat, size in found["largest_microbatch"].items()),
        f"{found['microbatch']} x {found['accumulate']}, {found['remat']}",
        f"{human_bytes(found['parameter_bytes'])} + {human_bytes(found['optimizer_bytes'])}",
        f"{human_bytes(found['peak_bytes'])} of {human_bytes(found['memory_bytes'])}",
        ", ".join(f"{human_bytes(size)} {axes}" for axes, size in found["sent_bytes"].items()),
        f"{human_count(found['flops_a_chip'])} ({human_count(found['executed_flops'])})",
        ", ".join(f"{name} {roofline[name]:.2f}" for name in ("compute", "memory", "network", "awaited")),
        f"{roofline['least']:.2f} / {usual:.2f}",
        human_count(found["tokens_a_step"] / usual),
        f"{found['steps'] * usual / 86_400:.1f}",
        f"{found['compile_seconds']:.0f}",
    ]


def sample_row(config: str, topology: str, found: dict) -> list[str]:
    """A row of the table about sampling. `found`: from `numbers`."""
    step, prefill = (found[f"{name}_roofline"] for name in ("step", "prefill"))
    return [
        f"{config} on {topology}",
        ", ".join(f"{axis} {size}" for axis, size in found["mesh"].items() if size > 1),
        str(found["slots"]),
        f"{human_bytes(found['peak_bytes'])} of {human_bytes(found['memory_bytes'])}",
        f"{prefill['least']:.3f}: {prefill['binds']}",
        f"{1000 * step['least']:.2f}: {step['binds']}",
        human_count(found["slots"] / step["least"]),
        f"{found['compile_seconds']:.0f}",
    ]


def main(_: list[str]) -> None:
    """Computes all cases and prints both tables."""
    out = Path(flags.FLAGS.out)
    out.mkdir(parents=True, exist_ok=True)
    cases = [(config, topology) for config, all_ in TOPOLOGIES.items() for topology in all_]
    tables = {
        "train": (train_row, [
            "run", "most chunks a chip that fit (remat)", "fastest: chunks x accumulate, remat",
            "parameters + optimiser", "peak of HBM", "sent a step", "FLOPs a chip (with recomputation)",
            "least seconds, each", "step: least / at MFU 40%", "tokens/s at MFU 40%", "days", "compile s",
        ]),
        "sample": (sample_row, [
            "run", "mesh", "slots", "peak of HBM", "prefill, least s", "step, least ms", "tokens/s then", "compile s",
        ]),
    }  # fmt: skip
    for what, (row, headers) in tables.items():
        rows = []
        for config, topology in cases:
            found = numbers(config, topology, what, out, flags.FLAGS.only)
            if found:
                rows.append(row(config, topology, found))
        print(tabulate(rows, headers, tablefmt="github", disable_numparse=True), end="\n\n", flush=True)
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("jax", "libtpu"))
    print(f"{versions}; compiled on {os.cpu_count()} cores without any TPU")


if __name__ == "__main__":
    flags.DEFINE_string("out", "runs/pods", "Where the numbers of each case are kept.")
    flags.DEFINE_string("only", "", "Cases whose name begins so.")
    app.run(main)
