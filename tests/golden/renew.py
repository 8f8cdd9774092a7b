"""Makes the goldens anew: python -m tests.golden.renew "why the numbers change"

The reason stands in golden.json from then on, beside the date and the versions. It takes a few minutes.
"""

import datetime
import hashlib
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import tokenizers

from tests import forks
from tests.commands import ROOT
from tests.golden import checks, collect

PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "pillow", "tokenizers", "array-record", "imageio-ffmpeg")
EOS = 2


def run(module: str, *flags: str) -> subprocess.CompletedProcess:
    """Runs `python -m module` to its end, as the test does."""
    return forks.run(module, *flags, **collect.VARIABLES)


def near_draws(pictures: Path, out: Path, *flags: str) -> dict[str, list[list]]:
    """Samples into `out` with these flags; returns of each sample its near draws, as `checks.of_files` wants them."""
    record = out.with_suffix(".draws")

    def recorded(module: str, *arguments: str) -> subprocess.CompletedProcess:
        assert module == "jpeglm.sample"
        return run("tests.golden.margins", str(record), *arguments)

    collect.sample(recorded, pictures, out, *flags)
    draws = json.loads(record.read_text())
    tokenizer = tokenizers.Tokenizer.from_file(str(ROOT / collect.PRETRAINED / "tokenizer.json"))
    rows = map(json.loads, (out / "samples.jsonl").read_text().splitlines())
    return {row["name"]: list(_near(row, draws, out, tokenizer)) for row in rows}


def _near(row: dict[str, Any], draws: dict[str, list], out: Path, tokenizer: tokenizers.Tokenizer) -> Iterator[list]:
    """[begin, end, margin] of the draws below `checks.NEAR` of one sample; the bytes are those of the written file."""
    # What the draws of a request depend on: the seed, its original, the sample's number.
    key = hashlib.sha256(b"0 %s 0" % bytes.fromhex(row["original"])).digest()[:8].hex()
    written, after = draws[key][: row["tokens"]], draws[key][row["tokens"] :]
    tokens = [bytes(ord(letter) - 0x2800 for letter in tokenizer.id_to_token(token)) for _, token, _ in written]
    file = (out / f"{row['name']}.jpg").read_bytes()
    assert file.endswith(b"".join(tokens)), row  # the draws are those that made this file
    end = len(file) - len(b"".join(tokens))
    for data, (_, _, margin) in zip(tokens, written, strict=True):
        begin, end = end, end + len(data)
        if margin < checks.NEAR:
            yield [begin, end, margin]
    if after and after[0][1] == EOS and after[0][2] < checks.NEAR:
        yield [end, end, after[0][2]]


def numbers(folder: Path) -> dict[str, Any]:
    """All that the goldens hold but where they come from."""
    found = collect.everything(run, folder)
    for name, flags in collect.SAMPLING.items():
        near = near_draws(folder / "pictures", folder / f"near_{name}", *flags)
        assert collect.files(folder / f"near_{name}") == found["samples"][name], "recording changed the files"
        for sample, draws in near.items():
            found["samples"][name][sample]["near"] = draws
    return found


def write(found: dict[str, Any], why: str) -> None:
    """Writes golden.json, with one change more in its list."""
    today = datetime.date.today().isoformat()
    changes = checks.golden()["changes"] if checks.GOLDEN.exists() else []
    versions = {"python": platform.python_version()} | {name: metadata.version(name) for name in PACKAGES}
    made = {"date": today, "machine": f"{platform.machine()}, {os.cpu_count()} cores", "versions": versions}
    content = {"made": made, "changes": [*changes, {"date": today, "why": why}], **found}
    checks.GOLDEN.write_text(json.dumps(content, indent=1) + "\n")


def main() -> None:
    if len(sys.argv) != 2 or not sys.argv[1].strip():
        raise SystemExit(f"why do the numbers change? {checks.RENEW}")
    with tempfile.TemporaryDirectory() as folder:
        write(numbers(Path(folder)), sys.argv[1])
    print(f"wrote {checks.GOLDEN}")


if __name__ == "__main__":
    main()
