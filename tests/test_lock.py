"""requirements-lock.txt has one version of every package that the environments of this repository consist of."""

import importlib.metadata
import re

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.commands import ROOT

REQUIREMENTS = sorted(
    {*ROOT.glob("requirements*.txt")} - {ROOT / "requirements-lock.txt", ROOT / "requirements-peers.txt"}
)


def pins(name: str) -> dict[str, Requirement]:
    """The requirements of a file, by canonical name; what it names with -r is another file's."""
    lines = (re.sub(r"(^|\s)#.*", "", line).strip() for line in (ROOT / name).read_text().splitlines())
    found = [Requirement(line) for line in lines if line and not line.startswith("-")]
    assert len({canonicalize_name(each.name) for each in found}) == len(found), f"{name} names a package twice"
    return {canonicalize_name(each.name): each for each in found}


def brought_by(requirements: list[Requirement]) -> dict[str, str]:
    """The installed version of each package that these ask for, directly or through others."""
    found: dict[str, str] = {}
    seen, waiting = set(), [(each, "") for each in requirements]
    while waiting:
        requirement, extra = waiting.pop()
        if requirement.marker and not requirement.marker.evaluate({"extra": extra}):
            continue
        for part in ("", *requirement.extras):
            key = (canonicalize_name(requirement.name), part)
            if key not in seen:
                seen.add(key)
                distribution = importlib.metadata.distribution(requirement.name)
                found[key[0]] = distribution.version
                waiting += [(Requirement(line), part) for line in distribution.requires or ()]
    return found


@pytest.mark.parametrize("name", [path.name for path in REQUIREMENTS])
def test_the_lock_agrees_with_the_requirements(name):
    lock, wanted = pins("requirements-lock.txt"), pins(name)
    assert len(wanted) >= 2
    for package, requirement in wanted.items():
        assert str(lock[package].specifier) == str(requirement.specifier), package


def test_the_lock_has_exact_versions_and_serves_as_a_constraint():
    for package, requirement in pins("requirements-lock.txt").items():
        assert re.fullmatch(r"==[\w.!+]+", str(requirement.specifier)), package
        assert not requirement.extras and not requirement.marker and not requirement.url, package


def test_this_environment_is_the_one_of_the_lock():
    lock = pins("requirements-lock.txt")
    installed = brought_by([*pins("requirements.txt").values(), *pins("requirements-dev.txt").values()])
    assert len(installed) > 80
    other = {
        package: version
        for package, version in installed.items()
        if package not in lock or not lock[package].specifier.contains(version, prereleases=True)
    }
    assert not other
