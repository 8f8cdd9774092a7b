"""Kinds of other packages that cannot be used: one line says so, where they are asked for and nowhere else."""

import pytest

from tests.commands import ROOT, run

TINY = "--config=tests/tiny_config.py"
PALETTE = "tests.outside.palette:PaletteCodec"


@pytest.fixture
def command(tmp_path):
    """Runs a command where a package is installed with these entry points, "GROUP NAME = PLACE" each."""

    def done(entry_points: list[str], module: str, *flags: str):
        about = tmp_path / "site/outside-1.0.dist-info"
        about.mkdir(parents=True)
        (about / "METADATA").write_text("Metadata-Version: 2.1\nName: outside\nVersion: 1.0\n")
        lines = ("[jpeglm.{}]\n{}\n".format(*entry.split(" ", 1)) for entry in entry_points)
        (about / "entry_points.txt").write_text("".join(lines))
        name = module if "." in module else f"jpeglm.{module}"
        return run(name, *flags, PYTHONPATH=f"{tmp_path / 'site'}:{ROOT}")

    return done


def one_line(found) -> str:
    """What a refused command said."""
    assert found.returncode == 2, found.stderr
    line = found.stderr.splitlines()[-1]
    assert "error: " in line and "Traceback" not in found.stderr
    return line


def prepare(tmp_path, source: str = "embedded:mnist") -> tuple[str, ...]:
    return "prepare", TINY, f"--source={source}", f"--out={tmp_path / 'data'}"


@pytest.mark.parametrize("place", ["gone.package:Codec", "tests.outside.palette:Gone", "tests.outside.palette"])
def test_a_codec_that_cannot_be_imported(command, tmp_path, place):
    config = tmp_path / "config.py"
    config.write_text(
        "from jpeglm.core.config import base\nfrom jpeglm.core.registry import CODECS\n"
        "def get_config():\n    config = base()\n    config.codec.name = 'broken'\n    return config\n"
    )
    _, _, *rest = prepare(tmp_path)
    said = one_line(command([f"codecs broken = {place}"], "prepare", f"--config={config}", *rest))
    assert "cannot be imported" in said and place.partition(":")[0] in said


def test_a_name_that_two_have(command, tmp_path):
    said = one_line(command([f"codecs jpeg = {PALETTE}"], *prepare(tmp_path)))
    assert "'jpeg'" in said and PALETTE in said and not (tmp_path / "data").exists()


def test_a_source_that_cannot_be_imported_is_asked_last(command, tmp_path):
    said = one_line(command(["sources broken = gone.package:Source"], *prepare(tmp_path, "nowhere")))
    assert "gone.package:Source" in said and "cannot be imported" in said


def test_an_extractor_that_cannot_be_imported(command, tmp_path):
    here = f"--real={tmp_path}", f"--fake={tmp_path}"
    said = one_line(command(["extractors broken = gone.package:Network"], "fid", *here, "--extractor=broken"))
    assert "gone.package:Network" in said and "cannot be imported" in said


@pytest.mark.parametrize(
    "place, why",
    [
        ("gone.package:Method", "cannot be imported"),
        ("jpeglm.tables.methods.flat:Flat", "another one is called flat"),
        ("jpeglm.tables.methods.base:Method", "abstract"),
    ],
)
def test_a_method_that_cannot_be_used_is_left_out(command, place, why):
    found = command([f"methods broken = {place}"], "tables", "--config=configs/eval/demo.py")
    assert "--config.workdir=DIR is needed" in one_line(found)  # which is what is wrong with this table
    assert f"the method of tables {place} is left out: " in found.stderr and why in found.stderr


@pytest.mark.parametrize("kind", ["codecs words", "methods originals", "sources originals", "extractors originals"])
def test_a_module_of_a_kind_can_be_imported_first(command, kind):
    module = f"tests.outside.{kind.split()[1]}"
    found = command([f"{kind} = {module}:Kind"], module)
    assert found.returncode == 0 and "left out" not in found.stderr, found.stderr


def test_a_place_may_have_extras(command, tmp_path):
    said = one_line(command(["sources broken = gone.package:Source [all]"], *prepare(tmp_path, "nowhere")))
    assert "gone.package:Source, of another package" in said
