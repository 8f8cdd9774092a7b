import hashlib
import io
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import skimage.data
from array_record.python.array_record_module import ArrayRecordReader
from PIL import Image, ImageOps

from jpeglm.core.config import BACKGROUNDS, avc, base
from jpeglm.core.errors import InputError
from jpeglm.core.registry import CODECS
from jpeglm.data import augment, batches, documents
from jpeglm.data.sources.folders import Folder
from jpeglm.data.tokenizers import bpe
from jpeglm.data.tokenizers.bpe import BpeTokenizer
from jpeglm.prepare import plan
from jpeglm.prepare.verify import verify
from tests.photographs import photographs as photographs_of
from tests.photographs import wallpapers

ROOT = Path(__file__).parents[2]
NUM_PICTURES = 90  # distinct ones, in the folder of `photographs`
BROKEN = {
    "a/cut.png": "broken",
    "a/text.png": "not a picture",
    "film.gif": "animated",
    "float.tif": "mode F",
}
PASSED_OVER = {"a/notes.txt": ".txt", ".ipynb_checkpoints/": "hidden folder", "a/._cut.png": "hidden .png"}
RESULT = ["manifest.json", "passed_over.jsonl", "refused.jsonl", "tokenizer.json"]


def small_config(**data):
    config = base()
    config.codec.height, config.codec.width = 32, 48
    config.tokenizer.vocab_size = 300
    config.data.seq_len, config.data.shards, config.data.holdout = 256, 3, 10
    config.data.update(data)
    return config


@pytest.fixture(scope="module")
def photographs(tmp_path_factory) -> Path:
    """Windows of photographs in several formats and folders, two copies of some, and files that must be refused."""
    folder = tmp_path_factory.mktemp("photographs")
    (folder / "a" / "b").mkdir(parents=True)
    for index in range(NUM_PICTURES):
        image = Image.fromarray(getattr(skimage.data, ("astronaut", "chelsea", "coffee")[index % 3])())
        image = image.crop((index * 2, index, index * 2 + 200, index + 150))
        name = ("{}.png", "a/{}.jpg", "a/b/{}.webp")[index % 3].format(f"{index:03d}")
        image.save(folder / name)
    for index in (0, 3, 6):
        shutil.copy(folder / f"{index:03d}.png", folder / "a" / "b" / f"copy-{index}.png")
    (folder / "a" / "cut.png").write_bytes((folder / "000.png").read_bytes()[:5000])
    (folder / "a" / "text.png").write_text("not a picture")
    (folder / "a" / "notes.txt").write_text("not a picture")
    (folder / ".ipynb_checkpoints").mkdir()
    shutil.copy(folder / "000.png", folder / ".ipynb_checkpoints")
    (folder / "a" / "._cut.png").write_bytes(b"attributes")
    frames = [Image.new("RGB", (32, 32), colour) for colour in ("red", "green")]
    frames[0].save(folder / "film.gif", save_all=True, append_images=frames[1:])
    Image.new("F", (32, 32)).save(folder / "float.tif")
    return folder


@pytest.fixture(scope="module")
def prepared(photographs, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("data") / "prepared"
    plan.prepare(small_config(), str(photographs), out, workers=2, unit_items=16)
    return out


def contents(folder: Path) -> dict[str, str]:
    """Checksum of every file in a folder, hidden ones too."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def cropped(path: Path) -> Image.Image:
    with Image.open(path) as image:
        return ImageOps.fit(image.convert("RGB"), (48, 32), Image.Resampling.BICUBIC)


def pillow_bytes(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=25, subsampling="4:2:0", streamtype=2, restart_marker_blocks=1)
    return buffer.getvalue()


def detokenize(folder: Path) -> list[bytes]:
    """The documents of a prepared folder, by nothing of ours: chunks, the vocabulary, and the three special ids."""
    vocab = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
    text = {token: "".join(chr(ord(c) - 0x2800) for c in entry) for entry, token in vocab.items() if token > 2}
    documents = []
    for path in sorted(folder.glob("*.array_record")):
        records = ArrayRecordReader(str(path)).read_all()
        ids = np.frombuffer(b"".join(records), np.uint16).tolist()
        for document in "".join({0: "", 1: "", 2: "|END|"}.get(token) or text.get(token, "") for token in ids).split(
            "|END|"
        )[:-1]:
            documents.append(document.encode("latin-1"))
    return documents


def usable(folder: Path) -> list[str]:
    """The names of the pictures of `photographs` that must be kept."""
    names = [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()]
    names = [name for name in names if name not in BROKEN and not name.startswith((*PASSED_OVER,))]
    assert len(names) == NUM_PICTURES + 3
    return names


def test_documents_in_the_shards_are_the_bytes_that_pillow_writes(photographs, prepared):
    expected = sorted(pillow_bytes(cropped(photographs / name)) for name in usable(photographs))
    assert sorted(detokenize(prepared)) == expected


def check_photographs(pictures: list[Image.Image], folder: Path) -> None:
    """Prepares pictures at 256x256 by the base config, and compares the shards with what Pillow writes.

    Their token counts are those of the paper's pictures, about 5 thousand.
    """
    pictures = [Image.fromarray(np.asarray(picture)) for picture in pictures]  # Pillow would write their comments
    (folder / "pictures").mkdir()
    for index, picture in enumerate(pictures):
        picture.save(folder / "pictures" / f"{index}.png", compress_level=1)
    config = base()
    config.data.shards, config.data.holdout = 2, 20
    manifest = plan.prepare(config, str(folder / "pictures"), folder / "out")
    expected = list(map(pillow_bytes, pictures))
    assert sorted(detokenize(folder / "out")) == sorted(expected)
    assert sum(split["documents"] for split in manifest["splits"].values()) == len(pictures)
    ids = BpeTokenizer.load(folder / "out" / "tokenizer.json").encode_batch(expected)
    assert 4000 < np.mean([len(document) + 2 for document in ids]) < 6000


def test_60_photographs_are_the_bytes_that_pillow_writes_and_about_5_thousand_tokens(tmp_path):
    check_photographs(photographs_of(60, 256, 256), tmp_path)


@pytest.mark.slow
def test_200_photographs_are_the_bytes_that_pillow_writes_and_about_5_thousand_tokens(tmp_path):
    check_photographs(wallpapers(ROOT / ".cache" / "wallpapers", 200, 256, 256), tmp_path)


def test_the_order_is_that_of_the_keys_and_the_first_are_held_out(prepared):
    def key(document: bytes) -> bytes:
        return hashlib.sha256(b"0:" + hashlib.sha256(document).digest()).digest()

    held_out = list(map(key, batches.documents(prepared, "heldout")))
    manifest = json.loads((prepared / "manifest.json").read_text())
    documents = list(map(key, batches.documents(prepared, "train")))
    assert held_out == sorted(held_out)
    assert max(held_out) < min(documents)
    first = 0
    for index, shard in enumerate(manifest["splits"]["train"]["shards"]):
        own = documents[first : first + shard["documents"]]
        assert own == sorted(own)
        assert {int.from_bytes(one[-8:]) % 3 for one in own} <= {index}
        first += shard["documents"]
    assert first == len(documents)


def test_the_manifest_counts_everything(photographs, prepared):
    manifest = json.loads((prepared / "manifest.json").read_text())
    counts = manifest["counts"]
    assert counts["seen"] == NUM_PICTURES + 3 + len(BROKEN)
    assert counts["kept"] == NUM_PICTURES + 3
    assert counts["duplicates"] == 3
    assert counts["refused"] == {"animated": 1, "broken": 1, "mode F": 1, "not a picture": 1}
    assert counts["first_refused"] == [
        f"{name}: {BROKEN[name]}" for name in ("film.gif", "float.tif", "a/cut.png", "a/text.png")
    ]
    assert counts["passed_over"] == {".txt": 1, "hidden .png": 1, "hidden folder": 1}
    lines = [json.loads(line) for line in (prepared / "passed_over.jsonl").read_text().splitlines()]
    assert {line["name"]: line["reason"] for line in lines} == PASSED_OVER
    lines = [json.loads(line) for line in (prepared / "refused.jsonl").read_text().splitlines()]
    assert {line["name"]: line["reason"] for line in lines} == BROKEN
    assert all(line["detail"] for line in lines)
    assert manifest["config"]["codec"] == {"name": "jpeg", "height": 32, "width": 48, "mode": "RGB", "quality": 25}
    assert "path" not in manifest["config"]["data"]
    assert manifest["encoder_versions"]["pillow"] == Image.__version__
    assert manifest["tokenizer_sha256"] == contents(prepared)["tokenizer.json"]
    for split in manifest["splits"].values():
        documents = sum(shard["documents"] for shard in split["shards"])
        assert split["documents"] == documents
        for shard in split["shards"]:
            assert shard["sha256"] == contents(prepared)[shard["name"]]
            assert shard["chunks"] == -(-shard["tokens"] // 256)
    assert sum(split["bytes"] for split in manifest["splits"].values()) == sum(map(len, detokenize(prepared)))
    assert [len(manifest["splits"][split]["shards"]) for split in ("train", "heldout")] == [3, 1]


def test_chunks_are_full_but_for_the_last_of_a_shard_which_is_padded(prepared):
    manifest = json.loads((prepared / "manifest.json").read_text())
    for split in manifest["splits"].values():
        for shard in split["shards"]:
            records = ArrayRecordReader(str(prepared / shard["name"])).read_all()
            assert len(records) == shard["chunks"]
            assert {len(record) for record in records} == {512}
            tokens = np.frombuffer(b"".join(records), "<u2")
            assert tokens[: shard["tokens"]].all()
            assert not tokens[shard["tokens"] :].any()


def test_nothing_but_the_result_is_left_behind(prepared):
    shards = [f"train-0000{index}-of-00003.array_record" for index in range(3)]
    assert sorted(contents(prepared)) == sorted([*shards, "heldout-00000-of-00001.array_record", *RESULT])
    assert not (prepared / ".work").exists()


@pytest.mark.parametrize(("workers", "unit_items"), [(1, 16), (3, 7)])
def test_workers_and_units_do_not_change_a_byte(photographs, prepared, tmp_path, workers, unit_items):
    plan.prepare(small_config(), str(photographs), tmp_path / "out", workers=workers, unit_items=unit_items)
    assert contents(tmp_path / "out") == contents(prepared)


def test_another_seed_gives_another_order_of_the_same_documents(photographs, prepared, tmp_path):
    out = tmp_path / "out"
    plan.prepare(small_config(seed=1), str(photographs), out, tokenizer_path=prepared / "tokenizer.json")
    assert sorted(detokenize(out)) == sorted(detokenize(prepared))
    assert detokenize(out) != detokenize(prepared)
    assert set(batches.documents(out, "heldout")) != set(batches.documents(prepared, "heldout"))


@pytest.mark.parametrize("background", BACKGROUNDS)
def test_transparent_pictures_are_put_over_the_configs_background(tmp_path, background):
    random = np.random.default_rng(0)
    for number in range(16):
        pixels = random.integers(0, 256, (32, 48, 4), np.uint8)
        pixels[..., 3] |= 0 if number % 2 else 255
        (tmp_path / "pictures").mkdir(exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / "pictures" / f"{number:02}.png")
    config, source = (
        small_config(background=background, seq_len=8192, holdout=2),
        Folder(f"{tmp_path}/pictures"),
    )
    manifest = plan.prepare(config, source.path, tmp_path / "out", workers=1)
    names = [name for name in source.names() if background != "refuse" or int(name[:2]) % 2 == 0]
    expected = [source.canonical(name, 32, 48, "RGB", background) for name in names]
    assert sorted(detokenize(tmp_path / "out")) == sorted(map(pillow_bytes, expected))
    assert manifest["counts"]["refused"] == ({"transparent": 8} if background == "refuse" else {})
    found = documents.read(source.path, CODECS.of(config), background=background)
    assert list(found.values()) == list(map(pillow_bytes, expected))


def test_data_from_before_the_background_was_told_is_over_white(photographs, prepared, tmp_path):
    shutil.copytree(prepared, tmp_path / "out")
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    del manifest["config"]["data"]["background"]
    (tmp_path / "out" / "manifest.json").write_text(json.dumps(manifest))
    plan.prepare(small_config(), str(photographs), tmp_path / "out")
    with pytest.raises(InputError, match="config.data.background=white, now black is asked for"):
        plan.prepare(small_config(background="black"), str(photographs), tmp_path / "out")


def test_clips_have_no_other_background_than_white(tmp_path):
    config = small_config(background="black")
    config.codec = avc()
    with pytest.raises(InputError, match="data.background=black: transparent clips are put over white alone"):
        plan.prepare(config, str(tmp_path), tmp_path / "out")


# A kill


CONFIG_OF_MANY = small_config(shards=24, holdout=0.1)


@pytest.fixture(scope="module")
def many(tmp_path_factory) -> Path:
    """1,500 pictures of noise: enough for seconds of work."""
    folder = tmp_path_factory.mktemp("many")
    random = np.random.default_rng(0)
    for index in range(1500):
        Image.fromarray(random.integers(0, 256, (8, 12, 3), np.uint8)).save(folder / f"{index:04d}.png")
    return folder


def start(source: Path, out: Path) -> subprocess.Popen:
    code = (
        "import json, sys\n"
        "from jpeglm.core.config import base\n"
        "from jpeglm.prepare import plan\n"
        "if __name__ == '__main__':\n"
        "    config = base()\n"
        "    config.update(json.loads(sys.argv[1]))\n"
        "    plan.prepare(config, *sys.argv[2:], workers=2, unit_items=25)\n"
    )
    arguments = [CONFIG_OF_MANY.to_json(), str(source), str(out)]
    return subprocess.Popen([sys.executable, "-c", code, *arguments], cwd=ROOT, stderr=subprocess.DEVNULL)


def kill_when(process: subprocess.Popen, pattern: str, folder: Path, count: int) -> set[Path]:
    """Kills the process once `count` files match; returns those that match when nothing runs any more."""
    deadline = time.monotonic() + 60
    while len(list(folder.glob(pattern))) < count:
        assert process.poll() is None, f"ended before there were {count} of {pattern}"
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    time.sleep(0.3)  # its workers notice and end
    return set(folder.glob(pattern))


def identity(paths: set[Path]) -> dict[Path, tuple[int, int]]:
    return {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in paths}


def test_a_killed_run_goes_on_without_doing_complete_units_again_and_changes_no_byte(many, tmp_path):
    plan.prepare(CONFIG_OF_MANY, str(many), tmp_path / "undisturbed")
    out = tmp_path / "out"
    units = kill_when(start(many, out), "unit-*.npz", out / ".work", 5)
    before = identity(units)
    assert not (out / "manifest.json").exists()
    with pytest.raises(InputError, match="manifest.json is missing"):
        batches.Chunks(out, "train", 256)
    more_units = kill_when(start(many, out), "unit-*.npz", out / ".work", len(units) + 5)
    assert identity(more_units).items() >= before.items()
    records = kill_when(start(many, out), "train-*.json", out / ".work", 2)
    shards = {out / record.stem for record in records}
    before = identity(shards)
    assert 2 <= len(shards) < 24
    assert start(many, out).wait() == 0
    assert identity(shards) == before
    assert contents(out) == contents(tmp_path / "undisturbed")


def test_workers_end_with_a_killed_parent(many, tmp_path):
    out = tmp_path / "out"
    process = start(many, out)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    deadline = time.monotonic() + 60
    while not list(out.glob(".work/unit-*.npz")):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    workers = children.read_text().split()
    assert len(workers) >= 2
    process.kill()
    process.wait()
    while any(is_running(worker) for worker in workers):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def is_running(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


# Held-out documents


def test_copies_are_never_on_both_sides(photographs, tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for index in range(3):
        for copy in range(4):
            shutil.copy(photographs / f"{index * 3:03d}.png", folder / f"{index}-{copy}.png")
    config = small_config(holdout=2, shards=1)
    config.tokenizer.vocab_size = 259
    manifest = plan.prepare(config, str(folder), tmp_path / "out", workers=1)
    held_out, training = (list(batches.documents(tmp_path / "out", split)) for split in ("heldout", "train"))
    assert (len(held_out), len(training)) == (4, 8)
    assert not set(held_out) & set(training)
    assert manifest["counts"]["duplicates"] == 9


def test_variants_are_of_training_pictures_alone_and_hold_out_the_same(photographs, prepared, tmp_path):
    config = small_config(augment=2)
    manifest = plan.prepare(config, str(photographs), tmp_path / "out", workers=2, unit_items=16)
    held_out, training = (list(batches.documents(tmp_path / "out", split)) for split in ("heldout", "train"))
    assert held_out == list(batches.documents(prepared, "heldout"))
    originals = list(batches.documents(prepared, "train"))
    assert set(originals) < set(training)
    codec = CODECS.of(config)
    source = Folder(str(photographs))
    pictures = [source.canonical(name, 32, 48, "RGB") for name in usable(photographs)]
    made = [(codec.encode(picture), codec.encode(augment.variant(picture, n))) for picture in pictures for n in (1, 2)]
    boundary = max(plan.document_key(0, document) for document in held_out)
    expected = [variant for original, variant in made if original not in held_out]
    expected = [variant for variant in expected if plan.document_key(0, variant) > boundary]
    assert sorted(training) == sorted(originals + expected)
    assert 140 < manifest["counts"]["variants"] == len(expected) < 2 * len(originals)
    assert verify(tmp_path / "out", workers=1) == manifest

    plan.prepare(config, str(photographs), tmp_path / "again", workers=1, unit_items=7)
    assert contents(tmp_path / "again") == contents(tmp_path / "out")


@pytest.mark.parametrize(("holdout", "expected"), [(0.1, 9), (0.001, 1), (7.0, 7)])
def test_the_held_out_part_is_a_number_or_a_fraction(photographs, tmp_path, holdout, expected):
    manifest = plan.prepare(small_config(holdout=holdout), str(photographs), tmp_path / "out", workers=1)
    assert manifest["splits"]["heldout"]["documents"] - expected in (0, 1)  # 1: both copies of a picture
    assert verify(tmp_path / "out", workers=1) == manifest


def test_the_tokenizer_is_learnt_from_training_documents_alone(photographs, prepared, tmp_path):
    config = small_config()
    config.tokenizer.documents = 20
    plan.prepare(config, str(photographs), tmp_path / "out", workers=1)
    in_order = sorted(batches.documents(prepared, "train"), key=lambda document: plan.document_key(0, document))
    learnt = bpe.train(in_order[:20], 300, CODECS.of(config).separator_regex)
    assert learnt.sha256 == contents(tmp_path / "out")["tokenizer.json"] != contents(prepared)["tokenizer.json"]


# Refusals


def test_a_finished_folder_is_left_alone(photographs, prepared):
    before = identity(set(prepared.iterdir()))
    assert plan.prepare(small_config(), str(photographs), prepared)["counts"]["kept"] == NUM_PICTURES + 3
    assert identity(set(prepared.iterdir())) == before


def test_another_config_or_source_in_a_finished_folder_is_refused(photographs, prepared, tmp_path):
    with pytest.raises(InputError, match=r"config.data.seed=0, now 5 is asked for"):
        plan.prepare(small_config(seed=5), str(photographs), prepared)
    with pytest.raises(InputError, match=r"with source=.*photographs.*, now .*other"):
        plan.prepare(small_config(), str(tmp_path / "other"), prepared)
    with pytest.raises(InputError, match="given_tokenizer=None"):
        plan.prepare(small_config(), str(photographs), prepared, tokenizer_path=prepared / "tokenizer.json")


def test_a_source_that_changed_after_a_kill_is_refused(tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    pictures = tmp_path / "pictures"
    pictures.mkdir()
    Image.new("RGB", (32, 32)).save(pictures / "a.png")
    monkeypatch.setattr(plan, "_order", stop)
    with pytest.raises(KeyboardInterrupt):
        plan.prepare(small_config(holdout=1), str(pictures), tmp_path / "out", workers=1)
    Image.new("RGB", (32, 32)).save(pictures / "b.png")
    with pytest.raises(InputError, match="pictures changed since the interrupted run"):
        plan.prepare(small_config(holdout=1), str(pictures), tmp_path / "out", workers=1)


def test_a_folder_with_something_else_in_it_is_refused(photographs, tmp_path):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(InputError, match="holds something else"):
        plan.prepare(small_config(), str(photographs), tmp_path)
    with pytest.raises(InputError, match="out lies in --source="):
        plan.prepare(small_config(), str(photographs), photographs / "out")


def test_a_source_without_a_usable_picture_is_refused(tmp_path):
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    with pytest.raises(InputError, match="pictures holds no files"):
        plan.prepare(small_config(), str(pictures), tmp_path / "out", workers=1)
    (pictures / "notes.txt").write_text("none")
    with pytest.raises(InputError, match=r"holds no files that are pictures; passed over: 1 .txt \(notes.txt\)"):
        plan.prepare(small_config(), str(pictures), tmp_path / "other", workers=1)
    (pictures / "notes.png").write_text("none")
    with pytest.raises(InputError, match=r"no picture of .* can be used \(1 not a picture\)"):
        plan.prepare(small_config(), str(pictures), tmp_path / "third", workers=1)


@pytest.mark.parametrize("holdout", [0, -1, 2.5])
def test_an_impossible_held_out_part_is_refused(photographs, tmp_path, holdout):
    with pytest.raises(InputError, match=f"config.data.holdout={float(holdout)}: a fraction above 0 and below 1, or"):
        plan.prepare(small_config(holdout=holdout), str(photographs), tmp_path / "out")


def test_a_tokenizer_of_another_size_is_refused(photographs, prepared, tmp_path):
    config = small_config()
    config.tokenizer.vocab_size = 310
    with pytest.raises(InputError, match="tokenizer.json has 300 entries, tokenizer.vocab_size is 310"):
        plan.prepare(config, str(photographs), tmp_path / "out", tokenizer_path=prepared / "tokenizer.json")


# Verification


@pytest.fixture
def copied(prepared, tmp_path) -> Path:
    return shutil.copytree(prepared, tmp_path / "copy")


def test_what_was_prepared_verifies(prepared):
    assert verify(prepared)["counts"]["kept"] == NUM_PICTURES + 3


def test_more_shards_than_documents_verify(tmp_path):
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for index in range(3):
        Image.new("RGB", (48, 32), (index * 90, 0, 0)).save(pictures / f"{index}.png")
    config = small_config(shards=8, holdout=1)
    config.tokenizer.vocab_size = 259
    plan.prepare(config, str(pictures), tmp_path / "out", workers=2)
    manifest = verify(tmp_path / "out", workers=2)
    assert sum(shard["chunks"] == 0 for shard in manifest["splits"]["train"]["shards"]) >= 6
    assert len(list(batches.documents(tmp_path / "out", "train"))) == 2
    assert len(batches.Chunks(tmp_path / "out", "train", 256)) == manifest["splits"]["train"]["chunks"]


def test_a_flipped_bit_in_a_shard_is_found(copied):
    path = copied / "train-00001-of-00003.array_record"
    content = bytearray(path.read_bytes())
    content[200] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match="train-00001-of-00003.array_record: the checksum differs"):
        verify(copied)


def test_a_wrong_count_in_the_manifest_is_found(copied):
    path = copied / "manifest.json"
    whole = json.loads(path.read_text())
    for edit, message in (
        (lambda manifest: manifest["counts"].update(kept=5), "refused.jsonl and the manifest's counts"),
        (lambda manifest: manifest["splits"]["train"].update(tokens=5), "tokens do not add up"),
        (
            lambda manifest: manifest["splits"]["train"]["shards"][0].update(documents=5),
            "documents, the manifest says 5",
        ),
        (lambda manifest: manifest["config"]["data"].update(seed=5), "another shard|out of order|not separated"),
        (lambda manifest: manifest["config"]["codec"].update(width=32), "document 0: byte"),
    ):
        manifest = json.loads(json.dumps(whole))
        edit(manifest)
        path.write_text(json.dumps(manifest))
        with pytest.raises(InputError, match=message):
            verify(copied, workers=1)


def test_another_tokenizer_is_found(copied):
    path = copied / "tokenizer.json"
    path.write_text(path.read_text(encoding="utf-8") + "\n", encoding="utf-8")
    with pytest.raises(InputError, match="tokenizer.json is not the one"):
        verify(copied)
