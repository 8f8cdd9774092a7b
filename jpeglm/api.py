"""A trained run in Python: pictures in, pictures out. `jpeglm.load` makes it."""

import dataclasses
import os
from collections.abc import Iterable

import numpy as np
from etils import epath
from PIL import Image

from jpeglm import checkpoint
from jpeglm.codecs.avc import AvcCodec
from jpeglm.data import sources
from jpeglm.errors import InputError
from jpeglm.sampling.engine import Settings
from jpeglm.sampling.sampler import Completion, Sampler


@dataclasses.dataclass(frozen=True)
class Picture:
    """One file that the model wrote.

    Attributes:
      file: the bytes of an ordinary file, tables restored, not otherwise mended.
      image: what can be seen of it; unreadable parts are grey. Of a clip: uint8 [frames, height, width, 3].
      is_valid: whether it decodes strictly.
      ended: whether the model ended it; with the grammar, also that the budget of tokens never narrowed its choice.
      removed: the mean share of the model's probability that the grammar took away at a token; None without grammar.
    """

    file: bytes
    image: Image.Image | np.ndarray
    is_valid: bool
    ended: bool
    removed: float | None


class Model:
    """Completes pictures and writes new ones."""

    def __init__(self, sampler: Sampler):
        self._sampler = sampler

    @classmethod
    def load(cls, workdir: str | os.PathLike, step: int | None = None, slots: int = 8) -> "Model":
        """See `jpeglm.load`."""
        max_tokens = checkpoint.read_config(epath.Path(workdir)).data.seq_len
        return cls(Sampler.load(workdir, Settings(max_tokens, slots=slots), step))

    def complete(
        self,
        images: Iterable[Image.Image | np.ndarray | bytes],
        ratio: float = 0.5,
        samples: int = 1,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int = 0,
        grammar: bool = True,
    ) -> list[list[Picture]]:
        """Completes each picture from its beginning.

        Args:
          images: Pillow images, or uint8 arrays [height, width], [height, width, 3] or [height, width, 4]; they are
            cropped and resized to the model's size by the rules of `jpeglm.data.sources`. For a model of clips, files
            (`bytes`, by the rules of `jpeglm.codecs.avc`) or frames, uint8 [frames, height, width, 3].
          ratio: share of each file that is given, rounded down to whole MCUs or frames; 0 to 1.
          samples: completions of each.
          temperature, top_k, top_p: as in `jpeglm.sample`; 0 as top_k keeps all.
          seed: with the picture and the sample's number, all that the draws depend on.
          grammar: draw only what leads to a legal file; False samples as the papers do.

        Returns:
          For each image a list of `samples` pictures.

        Raises:
          InputError: an image that cannot be used, a setting out of range.
        """
        documents = [self._document(number, image) for number, image in enumerate(images)]
        sampler = self._with(temperature, top_k, top_p, grammar)
        found = {(c.index, c.sample): c for c in sampler.complete(documents, ratio, samples, seed)}
        return [[self._picture(found[index, s]) for s in range(samples)] for index in range(len(documents))]

    def generate(
        self,
        num: int,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int = 0,
        grammar: bool = True,
    ) -> list[Picture]:
        """Writes `num` pictures from nothing; arguments as in `complete`."""
        found = {c.sample: c for c in self._with(temperature, top_k, top_p, grammar).generate(num, seed)}
        return [self._picture(found[number]) for number in range(num)]

    def _with(self, temperature: float, top_k: int, top_p: float, grammar: bool) -> Sampler:
        """The sampler with these settings; the one of the last call serves again if they are the same."""
        changes = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "grammar": grammar}
        settings = dataclasses.replace(self._sampler.settings, **changes)
        if settings != self._sampler.settings:
            self._sampler = self._sampler.with_settings(settings)
        return self._sampler

    def _document(self, number: int, image: Image.Image | np.ndarray | bytes) -> bytes:
        codec = self._sampler.codec
        try:
            if isinstance(codec, AvcCodec):
                return codec.encode(image) if isinstance(image, bytes) else codec.encode_frames(_frames(image))
            image = image if isinstance(image, Image.Image) else _from_array(np.asarray(image))
            return codec.encode(sources.to_canonical(image, codec.height, codec.width, codec.mode))
        except InputError as error:
            raise InputError(f"image {number}: {error}") from error

    def _picture(self, completion: Completion) -> Picture:
        codec, document = self._sampler.codec, completion.document
        is_valid, seen, _ = codec.look(document)
        return Picture(codec.restore(document), seen, is_valid, completion.ended, completion.removed)


def _frames(frames: np.ndarray) -> list[np.ndarray]:
    frames = np.asarray(frames)
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3 or 0 in frames.shape:
        wanted = "uint8 [frames, height, width, 3], or a file's bytes"
        raise InputError(f"an array of {frames.dtype} {list(frames.shape)}; wanted is {wanted}")
    return list(np.ascontiguousarray(frames))


def _from_array(array: np.ndarray) -> Image.Image:
    is_picture = array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4))
    if array.dtype != np.uint8 or not is_picture or 0 in array.shape:
        wanted = "uint8 [height, width] or [height, width, 3 or 4]"
        raise InputError(f"an array of {array.dtype} {list(array.shape)}; wanted is {wanted}")
    return Image.fromarray(array)
