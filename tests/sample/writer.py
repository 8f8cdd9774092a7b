"""A sampler that takes no time, documents at hand, and jobs with them; also as processes that are killed."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from jpeglm.core.parts import ALONE, Part
from jpeglm.core.registry import CODECS
from jpeglm.sample import job as jobs
from jpeglm.sample.job import Job
from jpeglm.sample.sampler import Completion, Task
from jpeglm.sample.settings import Settings
from tests.photographs import photographs
from tests.tiny_config import get_config

CODEC = CODECS.of(get_config())
DOCUMENTS = [CODEC.encode(picture) for picture in photographs(6, 32, 32, "L")]
ORIGINALS = dict(zip(("a.png", "b.png", "c.png"), DOCUMENTS, strict=False))


ALL = {f"{number}.png": document for number, document in enumerate(DOCUMENTS)}


class Writer:
    """Stands for a sampler: the rest of a document depends on the key, as a model's draws do, and takes no time."""

    def __init__(self, seconds: float = 0, **settings: object):
        """`seconds`: that each file takes."""
        self.seconds = seconds
        self.config = get_config()
        self.codec = CODEC
        self.tokenizer = SimpleNamespace(sha256="of the tokenizer")
        self.settings = Settings(256, **settings)
        self.written = 0

    def with_settings(self, settings: Settings) -> "Writer":
        other = Writer()
        other.settings = settings
        return other

    def too_long(self, documents: Mapping[str, bytes], ratio: float) -> dict[str, str]:
        return {}

    def run(self, tasks: Iterable[Task], on_too_long: Callable | None = None) -> Iterator[Completion]:
        for task in tasks:
            self.written += 1
            time.sleep(self.seconds)
            other = DOCUMENTS[np.random.default_rng(task.key).integers(len(DOCUMENTS))]
            prefix, units = (b"", 0) if task.document is None else CODEC.cut(task.document, task.ratio)
            whole = prefix + other[len(CODEC.cut(other, task.ratio)[0]) :]
            yield Completion(task, whole, units, 9, True, 0.25, -12.5)


class Given:
    """Documents at hand."""

    def __init__(self, documents: Mapping[str, bytes]):
        self._documents, self.names = documents, list(documents)

    def may_have(self, name: str) -> bool:
        return name in self._documents

    def read(self, wants: Callable[[str], bool] = lambda name: True) -> Iterator[tuple[str, bytes]]:
        return ((name, document) for name, document in self._documents.items() if wants(name))


def complete(writer: Writer, originals: Mapping[str, bytes], asked: Job, part: Part = ALONE) -> Path:
    return jobs.complete(writer, Given(originals), [asked], part).pages[0]


def generate(writer: Writer, num: int, asked: Job) -> Path:
    return jobs.generate(writer, num, [asked]).pages[0]


class Recorded(Writer):
    """Records each file it was asked for, in a file of its own: `record`."""

    def __init__(self, record: Path, seconds: float):
        super().__init__(seconds)
        self._record = record

    def run(self, tasks: Iterable[Task], on_too_long: Callable | None = None) -> Iterator[Completion]:
        for completion in super().run(tasks, on_too_long):
            with open(self._record, "a") as file:
                file.write(f"{completion.task.tag[1]}\n")
            yield completion


def work(out: Path, part: Part, record: Path, seconds: float, several: bool) -> None:
    """A process of a job: completes all documents, at one ratio or at two with two seeds each."""
    jobs.complete(Recorded(record, seconds), Given(ALL), cells(out) if several else [job(out)], part)


def cells(out: Path) -> list[Job]:
    """Two ratios with two seeds each."""
    return [
        job(out / f"ratio-{ratio}-seed-{seed}", ratio=ratio, seed=seed) for ratio in (0.25, 0.5) for seed in (0, 1)
    ]


def job(out: Path, **changes: object) -> Job:
    return Job(out, **({"weights": "of the run", "samples": 2, "about": {"workdir": "runs/a", "step": 20}} | changes))
