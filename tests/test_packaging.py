"""Versions, locks and what belongs to the installed package."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import pclseg

ROOT = Path(__file__).resolve().parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]
LOCKS = sorted(path.stem for path in (ROOT / "requirements").glob("*.lock"))
PYTHONS = ("3.11", "3.12", "3.13")


def lock_text(name):
    return (ROOT / "requirements" / f"{name}.lock").read_text()


def locked(name):
    """Requirements of a lock, one for every pinned line."""
    lines = lock_text(name).replace("\\\n", " ").splitlines()
    return [Requirement(line.split("--hash")[0].strip()) for line in lines]


def pins(name, python):
    """{canonical name: version} of a lock on 64-bit Linux with that Python."""
    environment = {
        "python_version": python,
        "python_full_version": f"{python}.0",
        "sys_platform": "linux",
        "platform_machine": "x86_64",
        "platform_system": "Linux",
        "platform_python_implementation": "CPython",
        "implementation_name": "cpython",
        "os_name": "posix",
    }
    found = {}
    for requirement in locked(name):
        if requirement.marker is None or requirement.marker.evaluate(environment):
            key = canonicalize_name(requirement.name)
            assert key not in found, f"{key} is pinned twice for Python {python}"
            (pin,) = requirement.specifier
            assert pin.operator == "=="
            found[key] = pin.version
    return found


def test_versions_agree():
    citation = (ROOT / "CITATION.cff").read_text()
    changelog = (ROOT / "CHANGELOG.md").read_text()
    assert PROJECT["version"] == pclseg.__version__
    assert re.search(r"^version: (\S+)$", citation, re.M).group(1) == pclseg.__version__
    assert re.search(r"^## \[(\d\S*)\]", changelog, re.M).group(1) == pclseg.__version__


def test_locks_are_those_that_the_makefile_and_scripts_name():
    extras = set(PROJECT["optional-dependencies"])
    assert set(LOCKS) == {"base", "build"} | extras


@pytest.mark.parametrize("name", LOCKS)
def test_lock_holds_pins_and_hashes_but_no_address(name):
    pin = r"[a-z0-9.-]+==[\w.+!-]+( ; [^/\\]+)? \\"
    digest = r"    --hash=sha256:[0-9a-f]{64}( \\)?"
    for line in lock_text(name).splitlines():
        assert re.fullmatch(f"{pin}|{digest}", line), line
    assert "://" not in lock_text(name)


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("name", [name for name in LOCKS if name != "build"])
def test_lock_meets_the_bounds_of_the_project(name, python):
    versions = pins(name, python)
    extra = PROJECT["optional-dependencies"].get(name, [])
    environment = {"sys_platform": "linux", "platform_machine": "x86_64"}
    for text in PROJECT["dependencies"] + extra:
        requirement = Requirement(text)
        if requirement.marker is None or requirement.marker.evaluate(environment):
            version = versions[canonicalize_name(requirement.name)]
            assert requirement.specifier.contains(version), (text, version)


@pytest.mark.parametrize("python", PYTHONS)
def test_locks_agree_on_versions(python):
    common = pins("base", python)
    for name in LOCKS:
        for package, version in pins(name, python).items():
            assert common.get(package, version) == version, (name, package)


def test_supported_pythons_are_stated_once_and_the_same():
    supported = Requirement(f"python{PROJECT['requires-python']}").specifier
    stated = [c.split(" :: ")[-1] for c in PROJECT["classifiers"] if "Python :: " in c]
    assert tuple(stated) == PYTHONS
    assert all(supported.contains(f"{version}.0") for version in PYTHONS)
    assert not supported.contains("3.10.9") and not supported.contains("3.14.0")


def test_package_is_marked_typed_and_every_folder_belongs_to_it():
    assert (ROOT / "pclseg" / "py.typed").is_file()
    assert "py.typed" in PYPROJECT["tool"]["setuptools"]["package-data"]["pclseg"]
    for path in ROOT.glob("pclseg/**/*.py"):
        assert (path.parent / "__init__.py").is_file(), path.parent


def test_files_that_are_not_python_belong_to_the_package():
    patterns = PYPROJECT["tool"]["setuptools"]["package-data"]["pclseg"]
    others = {
        path
        for path in ROOT.glob("pclseg/**/*")
        if path.is_file() and path.suffix not in (".py", ".pyc")
    }
    assert others == {path for p in patterns for path in ROOT.glob(f"pclseg/{p}")}


def test_licence_is_named_and_present():
    assert PROJECT["license"] == "Apache-2.0"
    assert "Apache License" in (ROOT / "LICENSE").read_text()
    assert "license: Apache-2.0" in (ROOT / "CITATION.cff").read_text()
