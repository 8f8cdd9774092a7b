"""Makes a small TensorFlow Datasets dataset without TensorFlow: `python make_tfds_dataset.py DIR`."""

import io
import sys

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image


class Stripes(tfds.core.GeneratorBasedBuilder):
    """5 training and 2 test pictures, picture k filled with red value 10 k."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = {"image": tfds.features.Image(shape=(None, None, 3)), "label": tfds.features.Scalar(np.int64)}
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, _):
        return {"train": self._generate_examples(range(5)), "test": self._generate_examples(range(5, 7))}

    def _generate_examples(self, indices):
        for index in indices:
            file = io.BytesIO()
            Image.new("RGB", (40, 40), (index * 10, 0, 0)).save(file, "PNG")
            file.seek(0)
            yield index, {"image": file, "label": index}


if __name__ == "__main__":
    Stripes(data_dir=sys.argv[1], file_format="array_record").download_and_prepare()
