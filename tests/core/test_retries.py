"""What counts as damage of a file, and what is tried again; checkpoints and shards of data under either."""

import asyncio
import contextlib
import errno
import gc
import json
import logging
import os
import pickle
import re
import resource
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from etils import epath

from jpeglm.core import checkpoint, retries, sharding
from jpeglm.core.errors import InputError
from jpeglm.core.registry import MODELS
from jpeglm.core.workdir import check_resumable, read_config, read_metrics
from jpeglm.data import records as shards
from jpeglm.data.batches import Chunks
from jpeglm.models import networks
from tests.runs import state
from tests.tiny_config import get_config
from tests.train.test_resume import abstract_state, content

SPEC = ' [tensorstore_spec=\'{\\"driver\\":\\"zarr\\",\\"path\\":\\"/run/it\\\'s\\"}\']'
SHARD = "reading /data/train-00000-of-00002.array_record; at byte 65536"


def tensorstore(words: str) -> Exception:
    """As Orbax raises what TensorStore says of an array."""
    error = Exception(
        "Encountered error while reading array index: (slice(0, 2, 1),). See full TensorStore details: ..."
    )
    error.__cause__ = ValueError(f"{words}{SPEC}")
    return error


def system(code: int) -> list[Exception]:
    """How a refusal of the system arrives from Python, TensorStore and ArrayRecord."""
    words = os.strerror(code)
    statuses = {errno.EACCES: "PERMISSION_DENIED", errno.ETIMEDOUT: "DEADLINE_EXCEEDED", errno.ESTALE: "ABORTED"}
    statuses |= {errno.EISDIR: "FAILED_PRECONDITION", errno.ENOMEM: "RESOURCE_EXHAUSTED", errno.EIO: "UNKNOWN"}
    said = f'{statuses[code]}: Error reading "params.head/0.0" in OCDBT database: Failed to open: "/run/d/5c": {words}'
    repeated = ValueError("no JSON")
    repeated.__context__ = OSError(code, words)
    records = RuntimeError(f"pread() failed: {words}; {SHARD}; Could not read from the underlying reader")
    return [OSError(code, words, "/run/_METADATA"), tensorstore(f"{said} [os_error_code='{code}']"), records, repeated]


def as_raised_by(action: Callable[[], object]) -> Exception:
    with pytest.raises(Exception) as caught:
        action()
    return caught.value


DAMAGE = [
    as_raised_by(lambda: open("/no/such/file")),
    as_raised_by(lambda: json.loads('{"tree": ')),
    as_raised_by(lambda: json.loads("[" * 200_000)),
    as_raised_by(lambda: b"\xf4\x00".decode()),
    as_raised_by(lambda: {}["key_type"]),
    # Orbax's words for a changed letter in a stored name: "Single" became "Sinwle".
    NotImplementedError("Conversion for SinwleDeviceSharding has not been implemented."),
    AssertionError(),
    tensorstore('NOT_FOUND: Error opening "zarr" driver: Metadata at "params.head/.zarray" does not exist'),
    tensorstore("DATA_LOSS: Error decoding manifest: Length in header (115) does not match actual length (114)"),
    tensorstore("OUT_OF_RANGE: Requested byte range [0, 1214) is not valid for value of size 0"),
    tensorstore("FAILED_PRECONDITION: Truncated Zstd-compressed stream; at byte 0; at uncompressed byte 0"),
    tensorstore("Error decoding b-tree node: ZSTD_decompressStream() failed: Data corruption detected; at byte 14"),
    RuntimeError(f"Corrupted Riegeli/records file: chunk data hash mismatch (computed 0x4, stored 0xd); {SHARD}"),
    RuntimeError("Invalid Riegeli/records file: chunk boundary is 65536 but block header at 65536 implies another"),
    RuntimeError("ArrayRecord file should be at least 64KB big"),
    RuntimeError(f"open() failed: No such file or directory; {SHARD}"),
]
OTHER = [
    *(error for code in (errno.EACCES, errno.EIO, errno.ETIMEDOUT, errno.ESTALE) for error in system(code)),
    *(error for code in (errno.ENOMEM, errno.EISDIR) for error in system(code)),
    MemoryError(),
    TimeoutError("the store"),
    ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"),
    tensorstore("UNAVAILABLE: Error reading gs://bucket/run/d/5c: HTTP response code: 503"),
    tensorstore("DEADLINE_EXCEEDED: Error reading gs://bucket/run/d/5c"),
    tensorstore("RESOURCE_EXHAUSTED: Out of memory allocating 536870912 bytes"),
    tensorstore("PERMISSION_DENIED: Error reading gs://bucket/run/d/5c: HTTP response code: 403"),
    tensorstore("UNAUTHENTICATED: token has expired"),
    jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 536870912 bytes."),
    jax.errors.JaxRuntimeError("INVALID_ARGUMENT: Argument has another layout"),
    RuntimeError("a reason that nobody has met"),
    Exception("a reason that nobody has met"),
]


@pytest.fixture
def waits(monkeypatch) -> list[float]:
    """The waits between tries, which take no time here."""
    found: list[float] = []
    monkeypatch.setattr(retries.time, "sleep", found.append)
    return found


@pytest.mark.parametrize("error", DAMAGE, ids=repr)
def test_missing_or_wrong_bytes_are_damage_at_the_first_try(error, waits):
    def read():
        raise error

    with pytest.raises(retries.Damaged, match=r"^step 20: \w*Error"):
        retries.read(read, "step 20")
    assert not waits


@pytest.mark.parametrize("error", OTHER, ids=repr)
def test_any_other_error_is_tried_again_and_then_told_whole(error, waits):
    tries = []

    def read():
        tries.append(1)
        if len(tries) <= fails:
            raise error
        return "content"

    for fails in (1, 3):
        tries.clear()
        assert retries.read(read, "step 20") == "content"
        assert len(tries) == fails + 1
    waits.clear()
    fails = 100
    tries.clear()
    with pytest.raises(InputError, match="^cannot read step 20, tried 4 times: ") as told:
        retries.read(read, "step 20")
    assert not isinstance(told.value, retries.Damaged) and told.value.__cause__ is error
    assert len(tries) == 4 and waits == [1, 4, 16]
    root = error.__cause__ or error
    assert " ".join(str(root).replace(SPEC, "").split()) in str(told.value) and "tensorstore_spec" not in str(
        told.value
    )


def test_damage_found_by_a_worker_reaches_its_parent_whole():
    sent = pickle.loads(pickle.dumps(retries.Damaged("shard 3", "RuntimeError: Corrupted")))
    assert (str(sent), sent.why) == ("shard 3: RuntimeError: Corrupted", "RuntimeError: Corrupted")


def test_a_long_cause_is_not_cut():
    words = f"UNAVAILABLE: {'a' * 5_000} the end [os_error_code='110']"
    assert retries.cause(tensorstore(words)) == f"ValueError: {words}"


# Real refusals


@contextlib.contextmanager
def no_more_open_files() -> Iterator[Callable[[], None]]:
    """The system refuses to open files (EMFILE), until what is given is called."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    end = lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))  # noqa: E731
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        yield end
    finally:
        end()


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """A run with checkpoints of the steps 10 and 20, which differ."""
    workdir = tmp_path_factory.mktemp("saved") / "run"
    saver = checkpoint.Saver(epath.Path(workdir), get_config().checkpoint)
    random = np.random.default_rng(0)
    for step in (10, 20):
        arrays = jax.tree.map(lambda x: np.asarray(100 * random.normal(size=x.shape), x.dtype), abstract_state())
        saver.save(step, jax.tree.map(jax.numpy.asarray, arrays))
    saver.close()
    (workdir / "config.json").write_text(json.dumps(get_config().to_dict()))
    (workdir / "metrics.jsonl").write_text('{"step": 1, "loss": 5.5}\n')
    return workdir


def by_error(error: Exception) -> Callable:
    """Every restore of Orbax fails by `error`, until `end` is called."""

    def fault(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
        restore = ocp.PyTreeCheckpointHandler.restore
        is_on = [True]

        def refused(*args, **options):
            if is_on:
                raise error
            return restore(*args, **options)

        monkeypatch.setattr(ocp.PyTreeCheckpointHandler, "restore", refused)
        return is_on.clear

    return fault


def in_place_of(pattern: str, make: Callable[[Path], None]) -> Callable:
    """`make` puts something that cannot be read where files of the newest checkpoint were, until `end` is called."""

    def fault(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
        # All of them: not every file that was written need be read again.
        paths = sorted(workdir.glob(f"checkpoints/20/default/{pattern}"))
        moved = [path.rename(workdir / f"beside-{number}") for number, path in enumerate(paths)]
        for path in paths:
            make(path)

        def end() -> None:
            for path, beside in zip(paths, moved, strict=True):
                path.rmdir() if path.is_dir() else path.unlink()
                beside.rename(path)

        return end

    return fault


def link_to_itself(path: Path) -> None:
    path.symlink_to(path)


def link_to_what_cannot_be_read(path: Path) -> None:
    path.symlink_to("/proc/self/mem")  # its first byte belongs to no memory


REFUSALS = {
    "no permission": (by_error(PermissionError(errno.EACCES, "Permission denied", "/run/d")), "Permission denied"),
    "input or output": (by_error(system(errno.EIO)[1]), "Input/output error"),
    "a time-out": (by_error(TimeoutError(errno.ETIMEDOUT, "Connection timed out")), "Connection timed out"),
    "no memory": (by_error(MemoryError()), "MemoryError"),
    "no memory of a device": (by_error(jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: x")), "RESOURCE_EXHAUSTED: x"),
    "no network": (
        by_error(tensorstore("UNAVAILABLE: HTTP response code: 503")),
        "UNAVAILABLE: HTTP response code: 503",
    ),
    "unknown": (by_error(Exception("a reason that nobody has met")), "a reason that nobody has met"),
    "a folder for the names": (in_place_of("_METADATA", Path.mkdir), "Is a directory"),
    "a disk's error in the names": (in_place_of("_METADATA", link_to_what_cannot_be_read), "Input/output error"),
    "links in a circle": (in_place_of("ocdbt.process_0/d/*", link_to_itself), "Too many levels of symbolic links"),
}


def listing(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*"))


QUICK = {"no permission", "unknown", "a disk's error in the names", "links in a circle"}


@pytest.mark.parametrize(
    "case", [case if case in QUICK else pytest.param(case, marks=pytest.mark.slow) for case in REFUSALS]
)
def test_a_checkpoint_that_cannot_be_read_for_a_moment_is_used_and_else_left_as_it_is(
    saved, tmp_path, monkeypatch, case
):
    make, words = REFUSALS[case]
    workdir = tmp_path / "run"
    shutil.copytree(saved, workdir)
    end = make(workdir, monkeypatch)
    before, tries = listing(workdir), []
    monkeypatch.setattr(retries.time, "sleep", tries.append)
    with pytest.raises(InputError, match=re.escape(words)) as told:
        checkpoint.restore_newest(epath.Path(workdir), abstract_state())
    assert f"cannot read step 20 of {workdir}/checkpoints, tried 4 times" in str(told.value)
    assert tries == [1, 4, 16] and listing(workdir) == before
    mesh = sharding.make_mesh({}, jax.devices()[:1])
    with pytest.raises(InputError, match=re.escape(words)):
        checkpoint.restore_model(epath.Path(workdir), 20, networks.laid_out(MODELS.of(get_config()), mesh))

    monkeypatch.setattr(retries.time, "sleep", lambda seconds: end() if seconds == 4 else None)
    step, found = checkpoint.restore_newest(epath.Path(workdir), abstract_state())
    assert step == 20
    for leaf, array in zip(jax.tree.leaves(found), state(saved, 20).values(), strict=True):
        assert np.asarray(leaf).tobytes() == array.tobytes()
    assert content(workdir) == content(saved)


@pytest.mark.parametrize("says", [("cannot read step 20: Input/output error", ""), ("", "NOT_FOUND: a file")])
def test_processes_agree_on_what_one_of_them_could_not_read_or_found_damaged(saved, tmp_path, monkeypatch, says):
    workdir = Path(shutil.copytree(saved, tmp_path / "run"))
    answers = [says[0], says[1], "", ""]  # of another process: a failed read, then damage, for each checkpoint

    def from_each(content: bytes) -> Iterator[bytes]:
        yield content
        yield answers.pop(0).encode()

    monkeypatch.setattr(checkpoint.distributed, "from_each", from_each)
    if says[0]:
        with pytest.raises(InputError, match=f"^{says[0]}$"):
            checkpoint.restore_newest(epath.Path(workdir), abstract_state())
    else:
        assert checkpoint.restore_newest(epath.Path(workdir), abstract_state())[0] == 10
    names = sorted(os.listdir(workdir / "checkpoints"))
    assert names == (["10", "20"] if says[0] else ["10", "20.damaged"])


def test_too_many_open_files_are_not_an_empty_folder_or_no_run(saved, monkeypatch):
    workdir = epath.Path(saved)
    reads = {
        "steps": (lambda: checkpoint.saved_steps(workdir), [10, 20]),
        "config": (lambda: read_config(workdir).steps, 20),
        "metrics": (lambda: read_metrics(workdir), [{"step": 1, "loss": 5.5}]),
    }
    for read, answer in reads.values():
        with no_more_open_files() as end:
            monkeypatch.setattr(retries.time, "sleep", lambda _: None)
            with pytest.raises(InputError, match="cannot read .*Too many open files"):
                read()
            monkeypatch.setattr(retries.time, "sleep", lambda _, end=end: end())
            assert read() == answer


def test_the_identity_of_weights_that_cannot_be_read_is_no_damage(saved, tmp_path, monkeypatch, waits):
    workdir = epath.Path(shutil.copytree(saved, tmp_path / "run"))
    expected = checkpoint.weights_hash(workdir, 20)
    end = in_place_of("_METADATA", link_to_what_cannot_be_read)(tmp_path / "run", monkeypatch)
    with pytest.raises(InputError, match="cannot read step 20 .* tried 4 times: OSError: .*Input/output error"):
        checkpoint.weights_hash(workdir, 20)
    monkeypatch.setattr(retries.time, "sleep", lambda _: end())
    assert checkpoint.weights_hash(workdir, 20) == expected
    (tmp_path / "run/checkpoints/20/default/_METADATA").unlink()
    with pytest.raises(InputError, match="step 20 cannot be read: FileNotFoundError"):
        checkpoint.weights_hash(workdir, 20)


def test_a_folder_that_cannot_be_listed_is_not_an_empty_one(saved, tmp_path, waits):
    workdir = Path(shutil.copytree(saved, tmp_path / "run"))
    user = os.geteuid()
    (workdir / "checkpoints").chmod(0)
    try:
        if user == 0:
            os.seteuid(65_534)  # root may list anything
        with pytest.raises(InputError, match="checkpoints, tried 4 times: PermissionError"):
            checkpoint.saved_steps(epath.Path(workdir))
        with pytest.raises(InputError, match="tried 4 times: PermissionError"):
            check_resumable(epath.Path(workdir), get_config(), {"splits": {}})
    finally:
        os.seteuid(user)
        (workdir / "checkpoints").chmod(0o755)
    assert checkpoint.saved_steps(epath.Path(workdir)) == [10, 20]


def test_shards_that_cannot_be_opened_for_a_moment_are_read_and_not_called_damaged(tiny_data, monkeypatch):
    manifest = shards.read_manifest(tiny_data)
    entry = manifest["splits"]["train"]["shards"][0]
    path, seq_len = tiny_data / entry["name"], get_config().data.seq_len
    expected = Chunks(tiny_data, "train", seq_len)[0]["tokens"]
    opened = Chunks(tiny_data, "train", seq_len)  # its readers open the files at the first record
    reads = {
        "a record": lambda: opened[0]["tokens"].tobytes(),
        "all chunks": lambda: next(shards.read_chunks(path, entry["chunks"], seq_len)).astype(np.int32).tobytes(),
        "a split": lambda: Chunks(tiny_data, "train", seq_len)[0]["tokens"].tobytes(),
    }
    for name, read in reads.items():
        with no_more_open_files() as end:
            monkeypatch.setattr(retries.time, "sleep", lambda _: None)
            with pytest.raises(InputError, match="Too many open files") as told:
                read()
            assert "damaged" not in str(told.value), name
            monkeypatch.setattr(retries.time, "sleep", lambda _, end=end: end())
            assert read() == expected.tobytes(), name
    with no_more_open_files() as end:
        monkeypatch.setattr(retries.time, "sleep", lambda _: None)
        with pytest.raises(InputError, match="Too many open files"):
            shards.check_checksums(tiny_data, manifest)
        monkeypatch.setattr(retries.time, "sleep", lambda _: end())
        shards.check_checksums(tiny_data, manifest)


@pytest.mark.parametrize("how", ["cut", "changed", "empty"])
def test_damaged_shards_are_named_as_such_without_another_try(tiny_data, tmp_path, waits, how):
    data = Path(shutil.copytree(tiny_data, tmp_path / "data"))
    manifest = shards.read_manifest(data)
    entry = manifest["splits"]["train"]["shards"][0]
    path, seq_len = data / entry["name"], get_config().data.seq_len
    damaged = bytearray(path.read_bytes())
    for place in range(500, 20_000, 50):
        damaged[place] ^= 1
    path.write_bytes({"cut": damaged[:70_000], "changed": damaged, "empty": b""}[how])
    with pytest.raises(retries.Damaged, match=re.escape(str(path))):
        list(shards.read_chunks(path, entry["chunks"], seq_len))
    entry["file_size"] = path.stat().st_size
    (data / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(InputError, match="damaged"):
        chunks = Chunks(data, "train", seq_len)
        for index in range(len(chunks)):
            chunks[index]
    with pytest.raises(InputError, match="the checksum differs"):
        shards.check_checksums(data, manifest)
    assert not waits


def test_a_read_that_failed_leaves_no_traceback_of_those_beside_it(monkeypatch, caplog):
    class Sibling:
        def __await__(self) -> Iterator[None]:
            try:
                yield
            finally:
                raise ValueError("it was abandoned")  # as Orbax's readers do

    async def sibling() -> None:
        await Sibling()

    async def fail() -> None:
        raise ValueError("it failed, too")

    async def siblings() -> None:
        asyncio.get_running_loop().create_task(fail())
        await asyncio.sleep(0.01)

    shown: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda what: shown.append(what.exc_value))
    monkeypatch.setattr(retries, "WAITS", ())

    def action() -> None:
        abandoned = sibling()
        abandoned.send(None)
        asyncio.run(siblings())
        raise OSError(errno.EIO, "no")

    for _ in range(3):
        with pytest.raises(InputError, match="cannot read it"):
            retries.read(action, "it")
        gc.collect()
    assert not shown and not caplog.text
    logging.getLogger("asyncio").error("of another kind")
    assert "of another kind" in caplog.text

    class Faulty:
        def __del__(self) -> None:
            raise KeyError("of another kind")

    Faulty()
    assert [type(error) for error in shown] == [KeyError]
