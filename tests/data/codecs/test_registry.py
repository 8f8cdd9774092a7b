"""What the registry says of codecs, and that a third one needs its own file and one line, and no other change."""

import re
from pathlib import Path

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from jpeglm.core.config import avc, base
from jpeglm.core.errors import InputError, Refused
from jpeglm.core.registry import CODECS
from jpeglm.data import batches, documents, records, render, sources
from jpeglm.data.codecs.base import Codec
from jpeglm.data.tokenizers.bpe import BpeTokenizer
from jpeglm.fid import images
from jpeglm.prepare import plan, verify
from jpeglm.sample.folder import Samples
from jpeglm.tables import make, notes, report, text
from jpeglm.tables.cells import Cells
from jpeglm.tables.context import Context
from jpeglm.tables.judges import judge
from jpeglm.tables.methods import REGISTRY
from jpeglm.tables.rows import LanguageModel, Table
from jpeglm.tables.store import Store
from tests.fid.projection import Projection
from tests.outside.originals import Originals
from tests.outside.palette import PALETTE, PaletteCodec
from tests.photographs import photographs

NUM, HELDOUT = 6, 12


def test_configs_begin_with_the_defaults_of_their_codecs():
    assert CODECS.defaults("jpeg") == base().codec.to_dict()
    assert CODECS.defaults("avc") == avc().to_dict()
    for name in CODECS.names:
        codec = CODECS.of({"codec": CODECS.defaults(name)})
        assert type(codec) is CODECS.kind(name) and codec.name == name
    with pytest.raises(InputError, match="config.codec.name='raw': one of 'jpeg', 'avc'"):
        CODECS.defaults("raw")


def test_no_file_but_its_own_and_the_registry_names_a_codec():
    own = {"JpegCodec": "jpeg.py", "AvcCodec": "avc.py"}
    for path in Path("jpeglm").rglob("*.py"):
        for name in re.findall(r"\b(JpegCodec|AvcCodec)\b", path.read_text()):
            assert path in (Path("jpeglm/core/registry.py"), Path("jpeglm/data/codecs") / own[name]), path
        assert not re.search(r"isinstance\(.*(Codec|Method)\b", path.read_text()), path


############################ A third codec ############################


@pytest.fixture(scope="module")
def codec():
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setitem(CODECS.kinds, PaletteCodec.name, PaletteCodec)
        yield CODECS.of({"codec": CODECS.defaults("palette")})


@pytest.fixture(scope="module")
def prepared(codec, tmp_path_factory) -> Path:
    """40 photographs, and an animated one that no codec of pictures takes."""
    folder, out = tmp_path_factory.mktemp("pictures"), tmp_path_factory.mktemp("prepared") / "data"
    for number, picture in enumerate(photographs(40, 48, 40, "RGB")):
        picture.save(folder / f"{number}.png")
    picture.save(folder / "moving.gif", save_all=True, append_images=[Image.new("RGB", picture.size)])
    config = base()
    config.codec = ConfigDict(CODECS.defaults("palette"))
    config.data.update({"shards": 2, "holdout": HELDOUT, "seq_len": 512})
    plan.prepare(config, str(folder), out, workers=2, unit_items=10)
    return out


@pytest.fixture
def heldout(codec, prepared) -> list[bytes]:
    return list(documents.read(str(prepared), codec).values())


def test_its_pictures_are_prepared_and_come_back(codec, prepared, heldout):
    manifest = verify.verify(prepared, workers=2)
    assert manifest["encoder_versions"] == {"palette": "1"}
    assert manifest["counts"]["kept"] == 40 and manifest["counts"]["refused"] == {"animated": 1}
    assert len(heldout) == HELDOUT and all(codec.is_valid(document) for document in heldout)
    found = images.open_pictures(prepared)
    for index, document in enumerate(heldout):
        np.testing.assert_array_equal(found[index], np.asarray(codec.decode(document)))


def test_the_tokens_of_its_cut_files_are_a_prefix_of_the_tokens_of_the_whole(codec, prepared, heldout):
    learnt = BpeTokenizer.load(prepared / "tokenizer.json")
    for document in heldout:
        whole = learnt.encode(document).tolist()
        for ratio in (0, 0.3, 0.5, 1):
            cut = learnt.encode(codec.cut(document, ratio)[0]).tolist()
            assert cut == whole[: len(cut)]


def test_it_takes_pictures_from_files_and_from_python_and_refuses_others(codec, tmp_path):
    [picture] = photographs(1, codec.height, codec.width, "L")
    picture.save(tmp_path / "a.png")
    read = documents.read(str(tmp_path), codec)
    pixels = np.asarray(picture)
    assert [*read.values()] == [codec.encode(picture)] == [codec.items.encode(pixels, "white")]
    assert codec.items.axes(pixels.shape) == 2
    np.testing.assert_array_equal(np.asarray(codec.decode(read["a.png"])), np.rint(pixels / 17) * 17)
    with pytest.raises(InputError, match="windows are cut from clips alone"):
        codec.items.check_data({"stride": 3, "background": "white"})
    document = codec.checked(read["a.png"])
    for wrong in (document[:-1], document + b"\0", document.replace(b"\xff", b"\x10\xff", 1)):
        with pytest.raises(Refused, match="not canonical"):
            codec.checked(wrong)


def test_its_files_are_shown_and_its_samples_are_found(codec, heldout, tmp_path):
    prompt, kept = codec.cut(heldout[0], 0.5)
    files = [codec.restore(document) for document in heldout[:3]]
    [row] = codec.display.rows(codec.restore(prompt), kept, files[1:], files[0])
    sheet = render.grid([row])
    assert sheet.size == (4 * (codec.width + 2) - 2, codec.height)
    assert (np.asarray(row[0])[kept:] == PALETTE[8]).all()
    np.testing.assert_array_equal(np.asarray(row[3]), np.asarray(codec.decode(heldout[0])))
    assert codec.display.films(files[0]) == {} and codec.display.film_suffixes == ()
    folder = Samples(tmp_path, codec.extension, {"seed": 0}, {})
    folder.begin()
    folder.add("a-s0", files[0], {"valid": True})
    (tmp_path / "b.png").write_bytes(render.png(row[0]))
    assert list(sources.open_anew(str(tmp_path)).names()) == ["a-s0.palette"]


def test_its_damaged_files_are_judged(codec, heldout):
    document, (prompt, kept) = heldout[0], codec.cut(heldout[0], 0.5)
    end = codec.unit_ends(document)[kept + 2]
    judged = list(judge(codec, [document, document[:end], prompt, b""], kept))
    assert [each.scores["valid"] for each in judged] == [1, 0, 0, 0]
    assert [each.scores["readable"] for each in judged] == [1, 3 / (codec.units - kept), 0, 0]
    assert {each.pictures.shape for each in judged} == {(1, codec.height, codec.width)}


def test_it_has_controls_in_a_table_beside_a_new_method_and_words_in_its_report(
    codec, prepared, tmp_path, monkeypatch
):
    monkeypatch.setitem(REGISTRY, "originals", Originals())
    networks = ("trained", "pretrained", "untrained")
    controls = ("random_bytes", "flat", "training_mean", "training_picture", "originals")
    ratios = (0.0, 0.5)
    assert make._rows_for(codec) == (*networks, *controls)
    config = ConfigDict({"num": NUM, "ratios": ratios, "rows": controls, "pretrained": "", "out": str(tmp_path)})
    context = context_of(codec, prepared)
    cells = Cells(config, context, Store(tmp_path), list(batches.documents(str(prepared), "heldout")), Projection())
    floors, made = cells.floors(), [cells.row(method, ratio) for ratio in ratios for method in controls]
    cells.show_prompts()
    assert {row.valid for row in made if row.method == "random_bytes"} == {0}
    assert {row.valid for row in made if row.method != "random_bytes"} == {1}
    assert {row.distance for row in made if row.method == "originals"} == {floors[0].distance}
    history = [{"step": 1, "loss": 2.0}, {"step": 1, "heldout/nats_per_token": 1.5}]
    models = [LanguageModel("a model", 1.5, 2.0, 3.0)]
    table = Table("FD", codec, cells.given, 1, floors, made, models, history, cells.shown, [])
    assert cells.given == {0.0: 0, 0.5: codec.height // 2}
    table.notes.extend(notes.verdicts(table) + notes.notes(table, config, context, Projection()))
    assert any("has the rows of the mean of 28 training pictures there" in note for note in table.notes)
    assert "“the originals” are the pictures themselves." in table.notes
    assert "rows readable" in text.main_lines(table)[0]
    facts = {"command": "", "date": "", "hardware": {}, "versions": {}, "config": {}, "run_config": {}}
    report.write(table, tmp_path / "report.html", facts)
    page = (tmp_path / "report.html").read_text()
    assert "grey for each row that is missing" in page and "--originals: #123456;" in page


def context_of(codec: Codec, prepared: Path) -> Context:
    """What controls complete with, without a run."""
    made = Context.__new__(Context)
    made.codec, made.data, made.seed, made.runs, made._training_documents = codec, str(prepared), 0, {}, None
    made.run_config = ConfigDict({"codec": CODECS.defaults("palette")})
    made.manifest = records.read_manifest(prepared)
    return made
