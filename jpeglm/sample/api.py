"""A trained run in Python: pictures in, pictures out. Use `jpeglm.load` to make one."""

import contextlib
import dataclasses
import math
import numbers
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
from etils import epath
from PIL import Image

from jpeglm.core import distributed
from jpeglm.core.errors import InputError, printable
from jpeglm.core.registry import MODELS
from jpeglm.core.workdir import read_config
from jpeglm.data import render
from jpeglm.data.codecs import Codec
from jpeglm.data.sources.reading import read_file
from jpeglm.sample.sampler import Completion, Sampler
from jpeglm.sample.scoring import Scorer
from jpeglm.sample.settings import Settings, integer

Given = Image.Image | np.ndarray | bytes | str | os.PathLike  # one picture or clip


@dataclasses.dataclass(frozen=True, repr=False)
class Picture:
    """One file that the model wrote. It prints as one line and displays in a notebook.

    Attributes:
      file: the bytes of an ordinary file; tables are restored, nothing is repaired.
      image: the decoded picture; unreadable parts are grey. For a clip: uint8 [frames, height, width, 3].
      is_valid: whether it decodes strictly.
      ended: whether the model ended the file itself; with the grammar, also that the token budget never restricted it.
      removed: the mean share of the model's probability that the grammar removed per token; None without grammar.
      fps: frames per second of a clip; None for a picture.
    """

    file: bytes
    image: Image.Image | np.ndarray
    is_valid: bool
    ended: bool
    removed: float | None
    fps: int | None = None

    def __repr__(self) -> str:
        if isinstance(self.image, Image.Image):
            what = f"{self.image.width}x{self.image.height} {self.image.mode}"
        else:
            frames, height, width, _ = self.image.shape
            what = f"{frames} frames of {width}x{height}"
        facts = [what, f"{len(self.file)} bytes", "valid" if self.is_valid else "not valid"]
        facts.append("ended" if self.ended else "not ended")
        if self.removed is not None:
            facts.append(f"removed {self.removed:.1%}")
        return f"Picture({', '.join(facts)})"

    def _repr_png_(self) -> bytes:
        """For notebooks: the picture, or the frames of a clip side by side."""
        return render.png(self.image if isinstance(self.image, Image.Image) else render.strip(self.image, 0))

    def _repr_html_(self) -> str | None:
        """For notebooks, only for a clip: its frames as a film."""
        if not self.fps or isinstance(self.image, Image.Image):
            return None
        return f'<img alt="" src="{render.data_url("image/webp", render.animation(self.image, self.fps))}">'


class Model:
    """Completes pictures, generates new ones and scores given ones.

    Wherever a method takes pictures, each is a Pillow image, a path (str or Path), the bytes of a file, or a uint8
    array [height, width] or [height, width, 1, 3 or 4]. They are cropped and resized to the model's size by the rules
    of `jpeglm.data.sources.pictures`. For a model of clips: a path, the bytes of a file (by the rules of
    `jpeglm.data.codecs.avc`) or frames, uint8 [frames, height, width, 3]. A single one counts as a list of one. An
    array with one more axis is a list along its first axis; an array with three axes is one picture if the last axis
    has length 1, 3 or 4.
    """

    def __init__(self, sampler: Sampler):
        self._sampler = sampler
        self._scorer: Scorer | None = None

    def __repr__(self) -> str:
        parameters = MODELS.of(self._sampler.config).num_parameters
        return f"Model({self._sampler.name}: {parameters:,} parameters, {self._sampler.codec})"

    @classmethod
    def load(cls, workdir: str | os.PathLike, step: int | None = None, slots: int = 8) -> "Model":
        """See `jpeglm.load`."""
        distributed.compute_in_float32()
        max_tokens = read_config(epath.Path(workdir)).data.seq_len
        return cls(Sampler.load(workdir, Settings(max_tokens, slots=slots), step))

    def complete(
        self,
        images: Given | Iterable[Given],
        ratio: float = 0.5,
        samples: int = 1,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int = 0,
        grammar: bool = True,
    ) -> list[list[Picture]]:
        """Completes each picture from the beginning of its file.

        Args:
          images: pictures or clips, or one of them; see the class.
          ratio: share of each file that is given, rounded down to whole MCUs or frames; 0 to 1.
          samples: completions per picture, 0 or more.
          temperature, top_k, top_p: as in `jpeglm.sample`; 0 as top_k keeps all.
          seed: any whole number; the draws depend only on it, the picture and the sample's number.
          grammar: draw only tokens that lead to a legal file; False samples as the papers do.

        Returns:
          For each image (also for a single one) a list of `samples` pictures.

        Raises:
          InputError: an image that cannot be used, a setting out of range, parameters that are not finite.
        """
        samples, seed = integer("samples", samples, 0), integer("seed", seed)
        _check_ratio(ratio)
        sampler = self._with(temperature, top_k, top_p, grammar)
        documents = self._documents(images)
        _refuse_first(sampler.too_long(_numbered(documents), ratio))
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
        """Generates `num` pictures, 0 or more, without a prompt; arguments and errors as in `complete`."""
        num = integer("num", num, 0)
        found = {c.sample: c for c in self._with(temperature, top_k, top_p, grammar).generate(num, seed)}
        return [self._picture(found[number]) for number in range(num)]

    def score(self, images: Given | Iterable[Given]) -> list[float]:
        """Bits of each picture's file (including its end token) under the model, as in `jpeglm.score`.

        Args:
          images: pictures or clips, or one of them; see the class.

        Raises:
          InputError: an image that cannot be used or is longer than the run's data.seq_len, before any is scored;
            parameters that are not finite.
        """
        scorer = self._scorer = self._scorer or self._sampler.scorer()
        documents = self._documents(images)
        _refuse_first(scorer.too_long(_numbered(documents)))
        return [float(nats.sum(dtype=np.float64)) / math.log(2) for nats in scorer.nats_of(documents)]

    def _with(self, temperature: float, top_k: int, top_p: float, grammar: bool) -> Sampler:
        """The sampler with these settings; reuses that of the last call if they are the same."""
        settings = dataclasses.replace(
            self._sampler.settings, temperature=temperature, top_k=top_k, top_p=top_p, grammar=grammar
        )
        if settings != self._sampler.settings:
            self._sampler = self._sampler.with_settings(settings)
        return self._sampler

    def _documents(self, images: Given | Iterable[Given]) -> list[bytes]:
        """The canonical document of each picture."""
        documents = []
        for number, image in enumerate(_listed(images, self._sampler.codec)):
            with _of_image(number):
                documents.append(self._document(image))
        return documents

    def _document(self, image: Given) -> bytes:
        if isinstance(image, str | os.PathLike):
            try:
                return self._document(read_file(image))
            except InputError as error:
                raise InputError(f"{printable(os.fspath(image))}: {error}") from error
        return self._sampler.codec.items.encode(image, self._sampler.config.data.background)

    def _picture(self, completion: Completion) -> Picture:
        codec, document = self._sampler.codec, completion.document
        is_valid, seen, _ = codec.look(document)
        facts = is_valid, completion.ended, completion.removed, codec.fps or None
        return Picture(codec.restore(document), seen, *facts)


@contextlib.contextmanager
def _of_image(number: int) -> Iterator[None]:
    """Adds the number of the image to errors inside."""
    try:
        yield
    except InputError as error:
        raise InputError(f"image {number}: {error}") from error


def _numbered(documents: Sequence[bytes]) -> dict[str, bytes]:
    return {f"image {number}": document for number, document in enumerate(documents)}


def _refuse_first(reasons: Mapping[str, str]) -> None:
    for name, why in reasons.items():
        raise InputError(f"{name}: {why}")


def _check_ratio(ratio: float) -> None:
    if not isinstance(ratio, numbers.Real) or not 0 <= ratio <= 1:
        raise InputError(f"ratio {ratio!r} is outside [0, 1]")


def _listed(images: Given | Iterable[Given], codec: Codec) -> Iterable[Given]:
    """Several pictures or clips; a single one as a list of one."""
    if isinstance(images, Image.Image | bytes | str | os.PathLike):
        return [images]
    if hasattr(images, "__array__"):
        images = np.asarray(images)
        return [images] if images.ndim <= codec.items.axes(images.shape) else images
    if not isinstance(images, Iterable):
        raise InputError(f"images: {type(images).__name__} is neither a picture nor a list of them")
    return images
