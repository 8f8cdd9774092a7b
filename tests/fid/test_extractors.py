"""What the registry says of extractors, and that a new one needs its own file and one line, and no other change."""

import ast
import dataclasses
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from jpeglm.core.errors import InputError
from jpeglm.fid import compare, extractors
from jpeglm.fid.frechet import Moments, frechet_distance
from jpeglm.tables import make
from tests.fid.projection import Projection
from tests.tables.test_make import make_config

OPTIONS = compare.Options(*([None] * 7), False, False, 0, 2020, False, "white", None)


class Mirrored(Projection):
    """An extractor that the registry does not have, with weights and modes, of which one mirrors pictures."""

    wants_weights = True
    modes = ("plain", "mirrored")

    def __init__(self, weights: str, mode: str, batch_size: int = 4):
        super().__init__(seed=int(Path(weights).read_text()))
        self.mode, self.metric, self.batch_size = mode, "FD-mirrored", batch_size

    def prepare(self, picture: np.ndarray) -> np.ndarray:
        return super().prepare(picture[:, ::-1] if self.mode == "mirrored" else picture)


@pytest.fixture
def mirrored(monkeypatch, tmp_path) -> Path:
    """Its weights."""
    monkeypatch.setitem(extractors.PICTURES, "mirrored", Mirrored)
    (tmp_path / "weights").write_text("3")
    return tmp_path / "weights"


def test_no_file_but_its_own_and_the_registry_names_an_extractor():
    own = {"EfficientNetLite0": "efficientnet.py", "Inception": "inception.py", "I3D": "i3d.py"}
    there = {place.rpartition(":")[2] for place in (extractors.PICTURES | extractors.CLIPS).values()}
    assert there == own.keys()
    folder = Path("jpeglm/fid/extractors")
    for path in Path("jpeglm").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            name = getattr(node, {ast.Name: "id", ast.Attribute: "attr", ast.alias: "name"}.get(type(node), ""), None)
            assert name not in own or path == folder / own[name], (path, name)
        assert not re.search(r"isinstance\(.*Extractor\b", path.read_text()), path


def test_none_is_imported_before_it_is_asked_for():
    names = [place.partition(":")[0] for place in (extractors.PICTURES | extractors.CLIPS).values()]
    program = f"import sys, jpeglm.fid.compare, jpeglm.tables.make; print([n for n in {names} if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


def test_each_is_an_extractor_and_an_unknown_one_is_refused():
    for name in extractors.PICTURES | extractors.CLIPS:
        kind = extractors.find(name)
        assert issubclass(kind, extractors.Extractor) and kind.__module__ in sys.modules
    with pytest.raises(InputError, match="extractor 'vgg' is none of efficientnet_lite0, inception, i3d"):
        extractors.find("vgg")


def test_a_new_one_is_a_value_of_the_flag(mirrored, tmp_path):
    rng = np.random.default_rng(0)
    sides = {side: rng.integers(0, 256, (20, 9, 12, 3), np.uint8) for side in ("real", "fake")}
    for side, pictures in sides.items():
        np.save(tmp_path / f"{side}.npy", pictures)
    paths = {side: str(tmp_path / f"{side}.npy") for side in sides}
    options = dataclasses.replace(OPTIONS, **paths, extractor="mirrored")
    for changes, words in (({}, "needs --weights"), ({"weights": str(mirrored)}, "needs --mode")):
        with pytest.raises(InputError, match=f"^--extractor=mirrored {words}$"):
            compare.check(dataclasses.replace(options, **changes))
    with pytest.raises(InputError, match="^--extractor=efficientnet_lite0 takes no --weights$"):
        compare.check(dataclasses.replace(options, extractor="efficientnet_lite0", weights="a", mode="b"))
    options = dataclasses.replace(options, weights=str(mirrored), mode="mirrored", batch_size=8)
    compare.check(options)
    result = compare.run(options)
    extractor = Projection(seed=3)
    expected = frechet_distance(*(Moments([extractor(pictures[:, :, ::-1])]) for pictures in sides.values()))
    assert result["value"] == pytest.approx(expected, rel=1e-6)
    assert (result["metric"], result["mode"]) == ("FD-mirrored", "mirrored")
    assert "mirrored" in extractors.modes()


def test_a_new_one_is_a_value_of_a_table_s_key(mirrored, tmp_path):
    config = make_config(tmp_path / "run", tmp_path / "data", tmp_path / "out")
    config.extractor, config.weights, config.mode = "mirrored", "", "plain"
    with pytest.raises(InputError, match="config.weights=FILE and config.extractor=mirrored go together"):
        make.check(config)
    config.weights, config.mode = str(mirrored), "clean"
    with pytest.raises(InputError, match="config.mode='clean' is none of plain, mirrored"):
        make.check(config)
    config.mode = "plain"
    make.check(config)
    assert (make._extractor(config).metric, make._extractor(config).mode) == ("FD-mirrored", "plain")
