"""Reads pictures for evaluation from any source of `jpeglm.data.sources`, with several threads."""

import itertools
import os
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar, cast

import numpy as np
from absl import logging
from PIL import Image

from jpeglm.core.config import DEFAULT_BACKGROUND
from jpeglm.core.errors import InputError, Refused, printable
from jpeglm.data.sources import open_anew
from jpeglm.data.sources.base import Source
from jpeglm.data.sources.listing import PassedOver, Rule
from jpeglm.data.sources.pictures import load_pixels, on_background
from jpeglm.data.sources.reading import refusing

_MODES = {"1", "L", "P", "RGB", "CMYK", "YCbCr"}
_MODES_WITH_ALPHA = {"LA", "La", "PA", "RGBA"}
_GREY = {"1", "L", "LA", "La"}
_AHEAD = 64  # converted pictures in the queue; at 299x299 in float32 they take 65 MiB
_MOST_THREADS = 32
_MOST_LOGGED = 10  # refused pictures per reason
Converted = TypeVar("Converted")


class Pictures:
    """Pictures as uint8 [h, w] (grey) or [h, w, 3], read on demand. Several threads may read at once.

    Values are those of Pillow's `convert("RGB")`, as in pytorch-fid, torch-fidelity and clean-fid: EXIF orientation is
    not applied, and a grey picture stands for three equal channels. 1-bit, grey, palette, RGB, CMYK and YCbCr pictures
    are accepted. Transparent pixels are composited over the background, as `jpeglm.data.sources.pictures` describes;
    an alpha channel that is opaque everywhere has no effect. Pictures with several frames, more than 8 bits per grey
    value or floating-point values are refused, and so is all that `jpeglm.data.sources` refuses.

    Attributes:
      path: where the pictures come from, for messages.
      names: of all pictures, in order.
      passed_over: the files that `jpeglm.data.sources.listing` skips.
    """

    def __init__(self, source: Source, background: str = DEFAULT_BACKGROUND):
        """Lists the source. `background`: one of `config.BACKGROUNDS`.

        Raises:
          InputError: the source holds no pictures.
        """
        self.path = printable(source.path)
        self.passed_over = PassedOver()
        self.names = list(source.names(passed_over=self.passed_over))
        if not self.names:
            raise InputError(f"{self.path}: holds no pictures{self.passed_over.after('; ')}")
        self._source, self._background = source, background

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> np.ndarray:
        """One picture, uint8 [h, w] or [h, w, 3]. Raises `Refused` if it cannot be used."""
        with self._source.load(self.names[index]) as image, refusing():
            return _pixels(image, self._background)


def open_pictures(
    pictures: str | os.PathLike | np.ndarray | Sequence[np.ndarray], background: str = DEFAULT_BACKGROUND
) -> Pictures:
    """Opens pictures.

    Args:
      pictures: as for `jpeglm.data.sources.open_anew`; or arrays in memory: one uint8 [n, h, w] or
        [n, h, w, 3], or a list of [h, w] or [h, w, 3] of any sizes.
      background: what transparent pixels are put over, or "refuse".

    Raises:
      InputError: there are no pictures, an archive or array file cannot be read, or an array has another shape or
        dtype.
    """
    if isinstance(pictures, str | os.PathLike):
        return Pictures(open_anew(os.fspath(pictures)), background)
    return Pictures(_InMemory(pictures))


class _InMemory(Source):
    """Arrays in memory as a source."""

    def __init__(self, pictures: np.ndarray | Sequence[np.ndarray]):
        super().__init__("pictures in memory")
        if isinstance(pictures, np.ndarray) and pictures.shape[2:] == (3,):
            raise InputError(f"one picture {list(pictures.shape)}; several are wanted, [n, h, w] or [n, h, w, 3]")
        for index, picture in enumerate(pictures):
            if picture.dtype != np.uint8 or picture.ndim not in (2, 3) or picture.shape[2:] not in ((), (3,)):
                raise InputError(
                    f"picture {index} is {picture.dtype} {list(picture.shape)}, not uint8 [h, w] or [h, w, 3]"
                )
        self._pictures = pictures

    def names(self, rule: Rule | None = None, passed_over: PassedOver | None = None) -> Iterator[str]:
        return (str(index) for index in range(len(self._pictures)))

    def load(self, name: str) -> Image.Image:
        return Image.fromarray(self._pictures[int(name)])


def _pixels(image: Image.Image, background: str) -> np.ndarray:
    if (frames := getattr(image, "n_frames", 1)) > 1:
        raise Refused("several frames", f"{image.format} of {frames} frames")
    if image.mode not in _MODES | _MODES_WITH_ALPHA:
        raise Refused(f"mode {image.mode}", "not 8 bits a channel, or no colours that have one meaning")
    load_pixels(image)
    mode = "L" if image.mode in _GREY else "RGB"
    return np.asarray(on_background(image, background).convert(mode))


class Reader(Generic[Converted]):
    """Yields `convert(picture)` for each picture, in order. Threads read and convert ahead.

    A refused picture is skipped, logged with its reason, and added to the list `refused` as (name, reason). Without
    `allow_unreadable` nothing is yielded after the first refusal; the remaining pictures are only checked for further
    ones. Iterating does not raise an error for refused pictures, because the processes of a job first collect those of
    all (see `unreadable`). Any other exception in a thread is raised. Closing the iterator early stops the threads.
    """

    def __init__(
        self,
        pictures: Pictures,
        convert: Callable[[np.ndarray], Converted],
        indices: range | None = None,
        *,
        allow_unreadable: bool = False,
        threads: int | None = None,
    ):
        """Prepares to read.

        Args:
          pictures: to read.
          convert: applied to each picture by the threads, for example a resize; must be thread-safe.
          indices: which pictures; all if None.
          allow_unreadable: whether to continue with the others after a refusal.
          threads: number of threads; None: one for each core that this process may use, at most 32.
        """
        self.refused: list[tuple[str, str]] = []
        self._counts: Counter[str] = Counter()  # number of refused pictures by reason
        self._pictures = pictures
        self._convert = convert
        self._indices = range(len(pictures)) if indices is None else indices
        self._allows = allow_unreadable
        self._threads = threads or min(len(os.sched_getaffinity(0)), _MOST_THREADS)

    def __iter__(self) -> Iterator[Converted]:
        self.refused.clear()
        self._counts.clear()
        executor = ThreadPoolExecutor(self._threads, thread_name_prefix="pictures")
        waiting = iter(self._indices)
        ahead = deque((index, executor.submit(self._read, index)) for index in itertools.islice(waiting, _AHEAD))
        try:
            while ahead:
                index, future = ahead.popleft()
                result = future.result()
                ahead.extend((index, executor.submit(self._read, index)) for index in itertools.islice(waiting, 1))
                if isinstance(result, Refused):
                    self._refuse(self._pictures.names[index], str(result))
                elif self._gives():
                    yield cast(Converted, result)  # `_read` gives None only after a refusal
        finally:
            executor.shutdown(cancel_futures=True)
        for reason, count in self._counts.items():
            if count > _MOST_LOGGED:
                logging.error("%s: and %d more: %s", self._pictures.path, count - _MOST_LOGGED, reason)

    def _gives(self) -> bool:
        return self._allows or not self.refused

    def _read(self, index: int) -> Converted | Refused | None:
        """Reads and converts a picture, in a thread. None if it will not be yielded."""
        try:
            picture = self._pictures[index]
        except Refused as refusal:
            return refusal
        return self._convert(picture) if self._gives() else None

    def _refuse(self, name: str, reason: str) -> None:
        self.refused.append((name, reason))
        self._counts[_class(reason)] += 1
        if self._counts[_class(reason)] <= _MOST_LOGGED:
            logging.error("%s: %s: %s", self._pictures.path, printable(name), reason)


def _class(reason: str) -> str:
    """The reason in a refusal's text: the part before the colon, without the detail."""
    return reason.partition(":")[0]


def unreadable(path: str, refused: Sequence[tuple[str, str]], total: int) -> InputError:
    """The error that ends an evaluation because pictures were refused.

    Args:
      path: where the pictures come from.
      refused: names and reasons, at least one.
      total: number of all pictures.
    """
    name, reason = refused[0]
    counts = Counter(_class(reason) for _, reason in refused).most_common()
    return InputError(
        f"{path}: {len(refused)} of {total} pictures cannot be used, the first is {printable(name)} ({reason}); "
        f"by reason: {', '.join(f'{count} {kind}' for kind, count in counts)}; "
        "--allow_unreadable goes on without them"
    )
