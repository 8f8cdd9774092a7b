"""Converts the Inception weights of FID to safetensors."""

from pathlib import Path

from jpeglm.core.errors import InputError, writing
from jpeglm.fid.extractors import inception


def convert(source: Path, target: Path) -> None:
    """Checks the weights in `source`, rewrites them to `target` and prints how many tensors there are.

    Raises:
      InputError: `source` does not hold these weights; or `target` exists, does not end in .safetensors or cannot be
        written.
    """
    if target.suffix != ".safetensors":
        raise InputError(f"{target}: its name must end in .safetensors")
    if target.exists():
        raise InputError(f"{target} exists")
    if not target.parent.is_dir():
        raise InputError(f"{target}: no such folder")
    tensors, sha256 = inception.read_weights(source)
    with writing(target):
        inception.write_safetensors(tensors, sha256, target)
    print(f"{target}: {len(tensors)} tensors of the file with the SHA-256 {sha256}")
