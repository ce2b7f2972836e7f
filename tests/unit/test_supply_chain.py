"""What is installed is locked with hashes, from no index of anyone's, and known vulnerabilities are not overlooked."""

from __future__ import annotations

import os
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from scripts.vulnerabilities import verdict

ROOT = Path(__file__).parents[2]
LOCKS = ["constraints.txt", "requirements.txt"]
HASH = re.compile(r"    --hash=sha256:[0-9a-f]{64}(?: \\)?")
WITH_HASHES = {"--require-hashes", "--only-binary"}
FROM_HERE = {"--no-deps", "--no-build-isolation", "-e"}


def entries(name: str) -> list[str]:
    lines = [line for line in (ROOT / name).read_text().splitlines() if not line.startswith("#")]
    return re.split(r"\n(?=\S)", "\n".join(lines))


def locked(name: str) -> dict[str, list[Requirement]]:
    found: dict[str, list[Requirement]] = {}
    for entry in entries(name):
        requirement = Requirement(entry.splitlines()[0].removesuffix(" \\"))
        found.setdefault(canonicalize_name(requirement.name), []).append(requirement)
    return found


def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def missing(wanted: list[str], name: str) -> list[str]:
    """Which requirements the lock does not fulfil in each version that it has of them."""
    lock, absent = locked(name), []
    for text in wanted:
        requirement = Requirement(text)
        pins = [next(iter(pin.specifier)).version for pin in lock.get(canonicalize_name(requirement.name), [])]
        if not pins or not all(requirement.specifier.contains(pin) for pin in pins):
            absent.append(text)
    return absent


def commands(target: str) -> list[str]:
    """What make would do for a target, from the start."""
    environment = {k: v for k, v in os.environ.items() if k not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")}
    said = subprocess.run(
        ["make", "-n", "-B", target], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    return said.stdout.replace("\\\n", " ").splitlines()


@pytest.mark.parametrize("name", LOCKS)
def test_every_locked_package_has_one_version_and_hashes(name: str):
    for entry in entries(name):
        first, *hashes = entry.splitlines()
        pin = Requirement(first.removesuffix(" \\"))
        assert [s.operator for s in pin.specifier] == ["=="], first
        assert hashes, first
        assert all(HASH.fullmatch(line) for line in hashes), first


@pytest.mark.parametrize("name", LOCKS)
def test_no_lock_names_an_index_or_an_address(name: str):
    text = (ROOT / name).read_text()
    assert "://" not in text
    assert "file:" not in text
    assert not re.search(r"^(-i|-f|--\S*index\S*|--find-links|--trusted-host)\b", text, re.MULTILINE)


def test_everything_that_the_project_can_ask_for_is_locked():
    table = project()["project"]
    extras = [text for texts in table["optional-dependencies"].values() for text in texts]
    wanted = table["dependencies"] + [text for text in extras if Requirement(text).name != table["name"]]
    assert missing(wanted, "constraints.txt") == []
    assert missing(table["dependencies"], "requirements.txt") == []


@pytest.mark.parametrize("name", LOCKS)
def test_what_builds_the_project_is_locked_as_well(name: str):
    assert missing(project()["build-system"]["requires"], name) == []


def test_requirements_are_a_part_of_the_constraints():
    """Markers may differ: an extra can need a package on more systems."""
    some, all_of_them = ({re.sub(r" ; .*(?= \\)", "", entry) for entry in entries(name)} for name in reversed(LOCKS))
    assert some < all_of_them


@pytest.mark.parametrize("target", [".venv/.installed", "audit"])
def test_make_installs_nothing_without_a_hash(target: str):
    installs = [set(line.split()) for line in commands(target) if re.search(r"\bpip install\b", line)]
    assert installs
    for words in installs:
        assert words >= WITH_HASHES or words >= FROM_HERE, sorted(words)
    assert any("uv" in line and "--require-hashes" in line for line in commands(target))


def test_the_manual_installs_with_hashes():
    lines = [line for line in (ROOT / "README.md").read_text().splitlines() if line.startswith("pip install")]
    assert len(lines) == 2
    assert set(lines[0].split()) >= WITH_HASHES | {"requirements.txt"}
    assert set(lines[1].split()) >= FROM_HERE


CLEAN = {"name": "numpy", "version": "2.0", "vulns": []}
BAD = {"name": "pillow", "version": "9.0", "vulns": [{"id": "CVE-1", "fix_versions": ["9.1"]}]}
UNKNOWN = {"name": "torch", "skip_reason": "Dependency not found"}


def test_a_known_vulnerability_fails():
    code, said = verdict([CLEAN, BAD, UNKNOWN])
    assert code == 1
    assert "pillow 9.0: CVE-1, repaired in 9.1" in said


def test_no_known_vulnerability_passes():
    assert verdict([CLEAN]) == (0, "Vulnerabilities: none is known of 1 package.")


def test_packages_that_the_index_does_not_know_are_never_called_clean():
    assert verdict([UNKNOWN, UNKNOWN]) == (0, "Vulnerabilities: NOT LOOKED UP, the index knows none of the 2 packages.")
    code, said = verdict([CLEAN, UNKNOWN])
    assert code == 0
    assert "none is known of 1 package" in said
    assert "NOT LOOKED UP: torch" in said
