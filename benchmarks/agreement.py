"""How often a classifier of digits sees the original's digit in its completions.

    python -m benchmarks.agreement --data=DATA --samples=OUT[,OUT2...] [--out=FOLDER]

DATA is what `jpeglm.prepare` made of `embedded:mnist`; each OUT is what `jpeglm.sample --images=DATA` wrote. The
classifier is scikit-learn's support vector machine with a Gaussian kernel, on the pixels of the decoded JPEG files.
It is trained on the digits that DATA does not hold out and on variants of them (`jpeglm/data/augment.py`). Its
accuracy on all held-out digits is the first row. A sample agrees if its file is valid and gets the label of its
original. The last column is what one guess for all would reach: the share of the most frequent digit.
"""

import collections
import hashlib
import json
from importlib import metadata
from pathlib import Path

import numpy as np
from absl import app, flags
from PIL import Image
from sklearn.svm import SVC

from benchmarks import report
from jpeglm.core.errors import InputError, reading
from jpeglm.core.registry import CODECS
from jpeglm.data import documents, records
from jpeglm.data.augment import variant
from jpeglm.data.codecs.pictures import PictureCodec
from jpeglm.data.sources.listing import SAMPLES_LOG, SAMPLES_LOGS

FLAGS = flags.FLAGS


class Digits:
    """The labelled digits of a prepared folder, and a classifier of them.

    Attributes:
      labels: of all digits, by the SHA-256 of their document.
      accuracy: of the classifier on the held-out digits.
      held_out: number of these.
    """

    def __init__(self, data: str, variants: int):
        codec = CODECS.of(records.read_manifest(data)["config"])
        assert isinstance(codec, PictureCodec)
        self._codec = codec
        every = documents.read("embedded:mnist", codec)  # names end in the label
        self.labels = {_sha256(document): int(name[-1]) for name, document in every.items()}
        held_out = list(documents.read(data, codec).values())
        unknown = sum(_sha256(document) not in self.labels for document in held_out)
        if unknown:
            raise InputError(f"{data} holds out {unknown} documents that are not of embedded:mnist")
        hashes = set(map(_sha256, held_out))
        pictures = [codec.open(codec.restore(document)) for document in every.values()]
        pairs = zip(pictures, self.labels.items(), strict=True)
        train = [(picture, label) for picture, (digest, label) in pairs if digest not in hashes]
        # A variant is encoded, too, so that it has the same artefacts.
        train += [(self._encoded(variant(picture, n)), label) for picture, label in train for n in range(variants)]
        self._classifier = SVC(C=10, gamma="scale").fit(
            np.stack([_pixels(picture) for picture, _ in train]), [label for _, label in train]
        )
        found = self.classify([codec.restore(document) for document in held_out])
        self.accuracy = float(np.mean(found == [self.labels[_sha256(document)] for document in held_out]))
        self.held_out = len(held_out)

    def classify(self, files: list[bytes]) -> np.ndarray:
        """The digit, int [len(files)], in each valid file."""
        return self._classifier.predict(np.stack([_pixels(self._codec.open(file)) for file in files]))

    def _encoded(self, picture: Image.Image) -> Image.Image:
        return self._codec.decode_valid(self._codec.encode(picture))


def _pixels(picture: Image.Image) -> np.ndarray:
    """float32 [height * width], 0 to 1."""
    return np.asarray(picture.convert("L"), np.float32).ravel() / 255


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def read_samples(folder: str) -> list[dict]:
    """The lines of samples.jsonl, each with its `file` as bytes.

    Raises:
      InputError: there are none, they complete no pictures, or a file is not the one that was written.
    """
    found = []
    logs = sorted(path for path in Path(folder).glob("*.jsonl") if SAMPLES_LOGS.fullmatch(path.name))
    for log in logs or [Path(folder) / SAMPLES_LOG]:
        with reading(log, "samples"):
            for line in log.read_text().splitlines():
                row = json.loads(line)
                row["file"] = (Path(folder) / f"{row['name']}.jpg").read_bytes()
                found.append(row)
    for row in found:
        if row["original"] is None or _sha256(row["file"]) != row["sha256"]:
            raise InputError(f"{folder}: {row['name']} is no completion, or not the file that jpeglm.sample wrote")
    if not found:
        raise InputError(f"{folder} holds no samples")
    return found


def measure(digits: Digits, samples: list[dict]) -> dict[str, float]:
    """Shares of all samples, 0 to 1: valid ones; ones that agree; the most frequent digit among the originals."""
    truth = [digits.labels[row["original"]] for row in samples]
    valid = np.array([row["valid"] for row in samples])
    agree = np.zeros(len(samples), bool)
    if valid.any():
        found = digits.classify([row["file"] for row in samples if row["valid"]])
        agree[valid] = found == np.array(truth)[valid]
    (_, most), *_ = collections.Counter(truth).most_common(1)
    return {"valid": float(valid.mean()), "agree": float(agree.mean()), "guess": most / len(samples)}


def main(_: list[str]) -> None:
    """Trains the classifier, applies it to all folders and prints the table."""
    result = report.Results(FLAGS.out, "agreement", "A classifier's agreement on completed digits")
    digits = Digits(FLAGS.data, FLAGS.variants)
    rows: list[list[str]] = [["originals", f"{digits.held_out:,}", "100.0%", f"{digits.accuracy:.1%}", ""]]
    raw: list[dict] = [{"folder": None, "files": digits.held_out, "agree": digits.accuracy}]
    for folder in FLAGS.samples:
        samples = read_samples(folder)
        found = measure(digits, samples)
        rows.append([folder, f"{len(samples):,}", *(f"{found[key]:.1%}" for key in ("valid", "agree", "guess"))])
        raw.append({"folder": folder, "files": len(samples), **found})
    versions = {name: metadata.version(name) for name in ("numpy", "scikit-learn", "pillow")}
    notes = ["of the originals: the classifier's accuracy", "invalid files count as disagreement"]
    headers = ["files", "number", "valid", "agree", "most frequent digit"]
    result.write(report.machine(**versions), headers, rows, notes, raw)
    result.show()


if __name__ == "__main__":
    flags.DEFINE_string("data", None, "Folder that jpeglm.prepare made of embedded:mnist.", required=True)
    flags.DEFINE_list("samples", None, "Folders that jpeglm.sample wrote.", required=True)
    flags.DEFINE_integer("variants", 2, "Variants of each training digit.", lower_bound=0)
    flags.DEFINE_string("out", None, "Folder for the result as JSON and Markdown.")
    app.run(main)
