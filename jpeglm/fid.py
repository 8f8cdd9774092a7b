"""The distance between two folders of pictures: one number.

    python -m jpeglm.fid --real=originals --fake=samples --json=distance.json

The last line of standard output is the number; everything else goes to standard error. Without weights it is the
Fréchet distance of EfficientNet-Lite0 features (FD-EfficientNet-Lite0), which needs no download and is no FID: never
compare one with the other.
"""

import json
import os
import platform
import sys
from importlib import metadata
from pathlib import Path

from absl import flags, logging

from jpeglm import cli
from jpeglm.errors import InputError
from jpeglm.evals import images
from jpeglm.evals.efficientnet import EfficientNetLite0
from jpeglm.evals.features import extract
from jpeglm.evals.fid import Moments, frechet_distance

FLAGS = flags.FLAGS
_REAL = flags.DEFINE_string("real", None, "Folder of the reference pictures, searched recursively.")
_FAKE = flags.DEFINE_string("fake", None, "Folder of the pictures to judge, searched recursively.")
_EXTRACTOR = flags.DEFINE_enum("extractor", "efficientnet_lite0", ["efficientnet_lite0"], "The embedded network.")
_MODE = flags.DEFINE_enum(
    "mode",
    None,
    ["clean", "legacy_tensorflow", "legacy_pytorch"],
    "Resize and normalisation of the 2015 Inception network; goes with --weights.",
)
_WEIGHTS = flags.DEFINE_string("weights", None, "Weight file of the 2015 Inception network, for FID proper.")
_JSON = flags.DEFINE_string("json", None, "File to write metric, value, number of pictures and versions to.")


def main() -> None:
    for flag in (_REAL, _FAKE):
        if not flag.value:
            raise InputError(f"--{flag.name}=FOLDER is needed")
    if _MODE.value or _WEIGHTS.value:
        raise InputError(
            "--mode and --weights choose the 2015 Inception network, which is not part of this version; "
            "without them the distance is FD-EfficientNet-Lite0"
        )
    output = Path(_JSON.value) if _JSON.value else None
    if output and not output.parent.is_dir():
        raise InputError(f"--json={output}: no such folder")
    sides = {"real": images.open_pictures(_REAL.value), "fake": images.open_pictures(_FAKE.value)}
    extractor = EfficientNetLite0()
    moments = {}
    for side, pictures in sides.items():
        reader = images.Reader(pictures, lambda picture: picture)
        moments[side] = Moments(extract(extractor, reader, len(reader), side))
        reader.check()
    value = frechet_distance(moments["real"], moments["fake"])
    logging.info("%s of %d and %d pictures", extractor.metric, moments["real"].count, moments["fake"].count)
    if output:
        result = {
            "metric": extractor.metric,
            "value": value,
            "n": {side: moments[side].count for side in sides},
            "extractor": {"name": extractor.name, "size": extractor.size, "resize": "Pillow bicubic, float32"},
            "weights_sha256": extractor.weights_sha256,
            "versions": {"python": platform.python_version()}
            | {name: metadata.version(name) for name in ("jax", "jaxlib", "numpy", "scipy", "pillow")},
        }
        partial = output.with_name(output.name + f".{os.getpid()}.partial")
        partial.write_text(json.dumps(result, indent=2) + "\n")
        os.replace(partial, output)
    sys.stderr.flush()
    print(f"{value:.6f}")


if __name__ == "__main__":
    cli.run(main)
