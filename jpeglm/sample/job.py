"""The sampling job: writes completions or new files to folders, each with an overview.

A command may have several jobs: one for each ratio, seed and settings of the draws, each with a folder of its own. The
requests of all jobs with the same settings are one stream through one engine, so that its slots are always full.
Documents are read as the stream needs them, and forgotten when their samples are written.
"""

import contextlib
import dataclasses
import hashlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from absl import logging
from PIL import Image
from tqdm import tqdm

from jpeglm.core import parts
from jpeglm.core.errors import InputError, printable
from jpeglm.core.parts import ALONE, Part
from jpeglm.core.registry import MODELS
from jpeglm.data import render
from jpeglm.data.codecs import Codec
from jpeglm.sample import too_long
from jpeglm.sample.folder import Samples
from jpeglm.sample.sampler import Completion, Sampler, Task
from jpeglm.sample.settings import Settings

GRID_ROWS = 16


@dataclasses.dataclass(frozen=True)
class Job:
    """What to sample, and the folder for it.

    Attributes:
      out: the folder.
      weights: hash of the parameters, see `checkpoint.weights_hash`.
      samples: per picture.
      seed: of the draws.
      ratio: share of each picture that is given.
      about: further entries of settings.json.
      settings: of the draws; those of the sampler if None.
    """

    out: Path
    weights: str
    samples: int = 1
    seed: int = 0
    ratio: float = 0.5
    about: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    settings: Settings | None = None

    def identity(self, sampler: Sampler) -> dict[str, Any]:
        """Everything that the samples depend on besides their originals; JSON types."""
        drawn = dataclasses.asdict(self.settings or sampler.settings)
        del drawn["slots"]
        section = sampler.config.model
        free = MODELS.kind(section.name).FREE
        model = {key: value for key, value in MODELS.identity(section).items() if key not in free}
        nested = {"model": model, "codec": sampler.config.codec}
        asked = {"ratio": self.ratio, "seed": self.seed}
        parts = {f"{part}.{key}": value for part, section in nested.items() for key, value in section.items()}
        return {"weights": self.weights, "tokenizer": sampler.tokenizer.sha256} | parts | asked | drawn


class Originals(Protocol):
    """What is completed: `documents.Documents`, or the same from elsewhere."""

    names: list[str]

    def may_have(self, name: str) -> bool: ...

    def read(self, wants: Any = ...) -> Iterator[tuple[str, bytes]]: ...


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a command has done.

    Attributes:
      pages: the overview of each job, or its folder while other parts are still at work.
      left_out: names of documents whose prompt is too long, with the reason.
      total: how many documents there are.
    """

    pages: list[Path]
    left_out: dict[str, str] = dataclasses.field(default_factory=dict)
    total: int = 0


@dataclasses.dataclass(frozen=True)
class _Open:
    """A job at work in its folder."""

    job: Job
    folder: Samples


def complete(sampler: Sampler, originals: Originals, jobs: Sequence[Job], part: Part = ALONE) -> Outcome:
    """Completes each document as each job says, skipping what is done.

    Args:
      sampler: of the run; its settings hold for jobs that have none.
      originals: read once for each of the different settings, and what is done already once more, to be compared.
      jobs: each with a folder of its own.
      part: which requests are this process's.

    Raises:
      InputError: a folder holds other samples, or cannot be written; no document fits; also as `Sampler.run`.
    """
    _check_any_fits(sampler, originals, sorted({job.ratio for job in jobs}))
    with contextlib.ExitStack() as stack:
        return _Completing(sampler, originals, _open_all(stack, sampler, jobs, part), part).run()


def generate(sampler: Sampler, num: int, jobs: Sequence[Job], part: Part = ALONE) -> Outcome:
    """Writes `num` files without a prompt for each job, skipping what is done; otherwise as `complete`."""
    with contextlib.ExitStack() as stack:
        opened = _open_all(stack, sampler, jobs, part)
        for each in opened:
            for name in each.folder.done:
                if _name_of_new(_number(name)) != name or _number(name) >= num:
                    each.folder.refuse_unasked(name)
                each.folder.check_original(name, None)
        _begin(opened)

        def tasks(of: Sequence[_Open]) -> Iterator[Task]:
            for each, number in itertools.product(of, range(num)):
                name = _name_of_new(number)
                if name not in each.folder.done and part.takes("", each.job.seed, number):
                    yield Task(None, seed=each.job.seed, sample=number, tag=(each, name, None))

        _write(sampler, opened, tasks, num * len(jobs), part)
        return Outcome([_finish_new(each, sampler.codec, num) for each in opened])


class _Completing:
    """The work of `complete`."""

    def __init__(self, sampler: Sampler, originals: Originals, opened: Sequence[_Open], part: Part):
        self._sampler, self._originals, self._opened, self._part = sampler, originals, opened, part
        self._several = len({each.job.ratio for each in opened}) > 1
        self._left_out: dict[tuple[str, float], str] = {}  # by document and ratio
        self._checked: set[str] = set()  # documents that were compared with what is done
        self._names: list[str] = []  # of all documents

    def run(self) -> Outcome:
        self._compare()
        _begin(self._opened)
        total = sum(each.job.samples for each in self._opened) * len(self._originals.names)
        _write(self._sampler, self._opened, self._tasks, total, self._part, self._leave_out)
        self._names = list(self._originals.names)
        names = dict.fromkeys(self._names)
        for each in self._opened:
            for name in each.folder.done:
                if not _is_asked(name, each.job.samples, names):
                    each.folder.refuse_unasked(name)
        pages = [self._finish(each) for each in self._opened]
        return Outcome(pages, self._named_left_out(), len(names))

    def _compare(self) -> None:
        """Refuses samples of other originals, and of names or numbers that are not asked, before anything is written.

        With a limit, names beyond it are found only in the end: an item that cannot be read does not count.
        """
        done: dict[str, None] = {}
        for each in self._opened:
            for name in each.folder.done:
                original, _, number = name.rpartition("-s")
                if not _is_asked(name, each.job.samples) or not self._originals.may_have(original):
                    each.folder.refuse_unasked(name)
                done[original] = None
        for name, document in self._originals.read(done.__contains__):
            self._checked.add(name)
            self._check(name, hashlib.sha256(document).hexdigest())

    def _check(self, name: str, original: str) -> None:
        for each in self._opened:
            for number in range(each.job.samples):
                each.folder.check_original(f"{name}-s{number}", original)

    def _tasks(self, of: Sequence[_Open]) -> Iterator[Task]:
        """What is missing of these jobs; requests with the same prompt follow each other."""

        def wants(name: str) -> bool:
            """Whether the document must be read; what was read and is complete need not be."""
            if name not in self._checked:
                return True
            return any(f"{name}-s{n}" not in each.folder.done for each in of for n in range(each.job.samples))

        in_order = sorted(of, key=lambda each: each.job.ratio)
        for name, document in self._originals.read(wants):
            original = hashlib.sha256(document).hexdigest()
            self._check(name, original)
            for each in in_order:
                for number in range(each.job.samples):
                    sample = f"{name}-s{number}"
                    if sample in each.folder.done or (name, each.job.ratio) in self._left_out:
                        continue
                    if self._part.takes(original, each.job.seed, number):
                        tag = each, sample, original
                        yield Task(document, each.job.ratio, each.job.seed, number, tag)

    def _leave_out(self, task: Task, why: str) -> None:
        each, sample, _ = task.tag
        key = sample.rpartition("-s")[0], each.job.ratio
        if key not in self._left_out:
            self._left_out[key] = why
            logging.warning("left out %s: %s", printable(self._named(*key)), why)

    def _named(self, name: str, ratio: float) -> str:
        return f"{name} at ratio {ratio:g}" if self._several else name

    def _named_left_out(self) -> dict[str, str]:
        return {self._named(*key): why for key, why in self._left_out.items()}

    def _finish(self, each: _Open) -> Path:
        """The overview, written if all samples are there; else the folder."""
        folder, job, codec = each.folder, each.job, self._sampler.codec
        folder.look_again()
        names = [name for name in self._names if (name, job.ratio) not in self._left_out]
        samples = {name: [f"{name}-s{number}" for number in range(job.samples)] for name in names}
        if missing := {name for name in names if not folder.done.keys() >= set(samples[name])}:
            # Of another part, and not yet written; or too long, which the part that the request falls to has found.
            for name, document in self._originals.read(missing.__contains__):
                if why := self._sampler.too_long({name: document}, job.ratio).get(name):
                    self._leave_out(Task(document, job.ratio, tag=(each, f"{name}-s0", None)), why)
                else:
                    logging.info("%s: part %s is done, other parts are not yet", folder.out, self._part)
                    return folder.out
            names = [name for name in names if name not in missing]
        shown = names[:GRID_ROWS]
        rows: list[list[Image.Image]] = []
        moving: dict[str, bytes] = {}
        for name, document in self._some(shown):
            prompt, kept = codec.cut(document, job.ratio)
            files = {sample: folder.path(sample).read_bytes() for sample in samples[name]}
            rows += codec.display.rows(codec.restore(prompt), kept, list(files.values()), codec.restore(document))
            if codec.fps:
                moving |= {name: codec.restore(document)} | files
        return _write_grid(folder, codec, codec.display.caption, rows, moving)

    def _some(self, names: Sequence[str]) -> Iterator[tuple[str, bytes]]:
        """The documents of these names, the first ones of the set; reads no further."""
        return itertools.islice(self._originals.read(set(names).__contains__), len(names))


def _open_all(stack: contextlib.ExitStack, sampler: Sampler, jobs: Sequence[Job], part: Part) -> list[_Open]:
    """The folder of each job, locked until the stack is closed."""
    opened = []
    for job in jobs:
        stack.enter_context(parts.owned(job.out, part))
        folder = Samples(job.out, sampler.codec.extension, job.identity(sampler), job.about, part)
        opened.append(_Open(job, folder))
    return opened


def _begin(opened: Iterable[_Open]) -> None:
    for each in opened:
        each.folder.begin()


def _check_any_fits(sampler: Sampler, originals: Originals, ratios: Sequence[float]) -> None:
    """Raises InputError if every document is too long, before anything is written; usually it reads only the first."""
    left_out: dict[str, str] = {}
    for name, document in originals.read():
        for ratio in ratios:
            found = sampler.too_long({name: document}, ratio)
            if not found:
                return
            left_out |= {name: found[name]}
    raise InputError(too_long.summary(left_out, len(left_out)))


def _is_asked(sample: str, samples: int, names: Mapping[str, Any] | None = None) -> bool:
    """Whether a sample's name has a number below `samples`, and the name of one of these documents."""
    name, _, number = sample.rpartition("-s")
    is_number = number.isdecimal() and str(int(number)) == number and int(number) < samples
    return is_number and (names is None or name in names)


def _name_of_new(number: int) -> str:
    return f"sample-{number:05d}"


def _number(sample: str) -> int:
    """The number in the name of a sample without a prompt; -1 if there is none."""
    number = sample.removeprefix("sample-")
    return int(number) if number.isdecimal() else -1


def _finish_new(each: _Open, codec: Codec, num: int) -> Path:
    """The overview of files without a prompt, if all are there; else the folder."""
    folder = each.folder
    folder.look_again()
    names = [_name_of_new(number) for number in range(num)]
    if not folder.done.keys() >= set(names):
        logging.info("%s: this part is done, other parts are not yet", folder.out)
        return folder.out
    shown = {name: folder.path(name).read_bytes() for name in names[: GRID_ROWS**2]}
    tiles = [codec.display.tile(file) for file in shown.values()]
    across = int(np.ceil(np.sqrt(len(tiles))))
    rows = [tiles[row : row + across] for row in range(0, len(tiles), across)]
    return _write_grid(folder, codec, "Samples in the order of their numbers, row by row.", rows, shown)


def _write_grid(
    folder: Samples, codec: Codec, caption: str, rows: list[list[Image.Image]], clips: Mapping[str, bytes]
) -> Path:
    moving = {}
    if codec.fps:  # then the decoded item is an array of frames
        for name, file in clips.items():
            moving[printable(name)] = render.animation(np.asarray(codec.see(file)), codec.fps)
    return folder.write_grid(render.page("Samples", caption, render.grid(rows), moving))


def _write(
    sampler: Sampler,
    opened: Sequence[_Open],
    tasks: Callable[[Sequence[_Open]], Iterator[Task]],
    total: int,
    part: Part,
    on_too_long: Callable[[Task, str], object] | None = None,
) -> None:
    """Writes what is missing, the jobs of the same settings together, and logs how many samples are valid.

    Args:
      tasks: of these jobs, all with the same settings.
      total: number of samples of all parts and jobs, for the progress bar.
    """
    codec = sampler.codec
    initial = sum(len(each.folder.done) for each in opened)
    with tqdm(
        total=total if part.is_alone else None, initial=initial, unit="file", desc="sample", disable=None
    ) as bar:
        for settings, of in _by_settings(sampler, opened).items():
            drawing = sampler if settings == sampler.settings else sampler.with_settings(settings)
            for completion in drawing.run(tasks(of), on_too_long):
                each, name, original = completion.task.tag
                facts = _facts(codec, each.job, completion)
                each.folder.add(name, codec.restore(completion.document), facts, original)
                bar.update()
    for each in opened:
        _add_films(each, codec, part)
        logging.info("%d files, %d valid: %s", len(each.folder.done), each.folder.num_valid, each.folder.out)


def _by_settings(sampler: Sampler, opened: Iterable[_Open]) -> dict[Settings, list[_Open]]:
    found: dict[Settings, list[_Open]] = {}
    for each in opened:
        found.setdefault(each.job.settings or sampler.settings, []).append(each)
    return found


def _facts(codec: Codec, job: Job, completion: Completion) -> dict[str, Any]:
    """What the index says of a sample besides its name and hashes."""
    return {
        "valid": codec.is_valid(completion.document),
        "ended": completion.ended,
        "prompt_units": completion.prompt_units,
        "tokens": completion.tokens,
        "removed": completion.removed,
        "log_likelihood": completion.log_likelihood,
        "ratio": None if completion.task.document is None else job.ratio,
        "seed": job.seed,
    }


def _add_films(each: _Open, codec: Codec, part: Part) -> None:
    """Adds the films that are missing of this part's samples."""
    for name, original in each.folder.done.items():
        if each.folder.has_films(name, codec.display.film_suffixes):  # always true for still pictures
            continue
        number = int(name.rpartition("-s")[2]) if original else _number(name)
        if part.takes(original or "", each.job.seed, number):
            each.folder.add_films(name, codec.display.films(each.folder.path(name).read_bytes()))
