"""Memory that a conversion takes, in a process of its own.

    python -m tests.convert.peak make DST FORMAT LAYERS WIDTH
    python -m tests.convert.peak import|export SRC DST

`make` writes a Llama of random bfloat16 weights, FORMAT safetensors or bin. The others convert and print as JSON how
far the process's memory rose above what it was before, in bytes: `anonymous` is its own, `mapped` are pages of files,
which the system takes back when it needs them.
"""

import json
import sys
import threading
import time
from pathlib import Path

import torch
import transformers
from etils import epath

from jpeglm.convert import from_huggingface, to_huggingface
from jpeglm.core import distributed
from tests.convert import llamas

FIELDS = {"RssAnon": "anonymous", "RssFile": "mapped"}


def make(folder: Path, how: str, layers: int, width: int) -> None:
    config = transformers.LlamaConfig(
        vocab_size=320,
        hidden_size=width,
        intermediate_size=width * 8 // 3 // 64 * 64,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
    )
    torch.set_default_dtype(torch.bfloat16)
    llamas.save(transformers.LlamaForCausalLM(config), folder, how, llamas.tokenizer_text())


def resident() -> dict[str, int]:
    lines = (line.split() for line in Path("/proc/self/status").read_text().splitlines())
    return {FIELDS[key[:-1]]: int(value[0]) * 1024 for key, *value in lines if key[:-1] in FIELDS}


def measure(direction: str, source: str, target: str) -> dict[str, int]:
    distributed.start("cpu")
    before = resident()
    peak, done = dict(before), threading.Event()

    def watch() -> None:
        while not done.wait(0.002):
            for key, value in resident().items():
                peak[key] = max(peak[key], value)

    watcher = threading.Thread(target=watch)
    watcher.start()
    start = time.monotonic()
    if direction == "import":
        from_huggingface.import_model(Path(source), Path(target), llamas.run_config())
    else:
        to_huggingface.export_model(epath.Path(source), Path(target), None, "float32")
    done.set()
    watcher.join()
    return {key: peak[key] - before[key] for key in peak} | {"seconds": round(time.monotonic() - start, 1)}


if __name__ == "__main__":
    if sys.argv[1] == "make":
        make(Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]), int(sys.argv[5]))
    else:
        print(json.dumps(measure(*sys.argv[1:])))
