"""Datasets of TensorFlow Datasets."""

from collections.abc import Iterator

from jpeglm.core.errors import InputError
from jpeglm.data.sources.base import Files
from jpeglm.data.sources.listing import PassedOver, Rule


class TfdsDataset(Files):
    """The pictures of a TensorFlow Datasets dataset that was prepared in TFDS_DATA_DIR as array_record.

    They are read undecoded (`SkipDecoding`), so the rules of `pictures` apply, and TensorFlow is not needed.
    """

    def __init__(self, path: str):
        """`path`: tfds:NAME or tfds:NAME:SPLIT, where NAME may be name/config and SPLIT is "train" by default."""
        import tensorflow_datasets as tfds  # imported here because it takes about a second

        super().__init__(path)
        _, name, *split = path.split(":", 2)
        try:
            builder = tfds.builder(name)
            images = [key for key, kind in builder.info.features.items() if type(kind) is tfds.features.Image]
            if len(images) != 1:
                raise InputError(f"{path} has {len(images)} features that are pictures, not one")
            self._image = images[0]
            as_stored = {self._image: tfds.decode.SkipDecoding()}
            self._data = builder.as_data_source(split[0] if split else "train", decoders=as_stored)
        except InputError:
            raise
        except Exception as error:  # anything from a wrong name to a dataset in another format
            reason = str(error).strip().partition("\n")[0]
            raise InputError(f"cannot read {path} (it must lie prepared in TFDS_DATA_DIR): {reason}") from error

    @classmethod
    def takes(cls, path: str) -> bool:
        return path.startswith("tfds:")

    def names(self, rule: Rule | None = None, passed_over: PassedOver | None = None) -> Iterator[str]:
        return (f"{index:09d}" for index in range(len(self._data)))

    def read(self, name: str) -> bytes:
        return self._data[int(name)][self._image]
