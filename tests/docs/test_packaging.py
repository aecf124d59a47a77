"""The wheel is complete and works in an environment without the source."""

import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

from qproxy.version import VERSION

ROOT = Path(__file__).parents[2]
BESIDE_CODE = (
    "README.md",
    "LICENSE",
    "CHANGELOG.md",
    "pyproject.toml",
    "docs/deploy/Dockerfile",
    "scripts/test",
    "tests/helpers.py",
)


def run_command(*command, **settings):
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False, **settings)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def python(*arguments, **settings):
    return run_command(sys.executable, *arguments, **settings)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Return the unpacked tree of the sdist."""
    folder = tmp_path_factory.mktemp("sdist")
    python("-m", "hatchling", "build", "--target", "sdist", "--directory", str(folder), cwd=ROOT)
    with tarfile.open(folder / f"qproxy-{VERSION}.tar.gz") as archive:
        archive.extractall(folder, filter="data")
    return folder / f"qproxy-{VERSION}"


@pytest.fixture(scope="module")
def wheel(source, tmp_path_factory):
    """Build the wheel from the sdist, as an installer does."""
    folder = tmp_path_factory.mktemp("wheel")
    python("-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder), cwd=source)
    return folder / f"qproxy-{VERSION}-py3-none-any.whl"


def test_the_sdist_is_complete(source):
    """The sdist has the files to read, test and package qproxy."""
    assert [name for name in BESIDE_CODE if not (source / name).is_file()] == []


def test_the_wheel_holds_the_package_and_its_data(wheel):
    """Every file of the package is in the wheel, with its metadata and no other file."""
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    files = [
        path for path in (ROOT / "qproxy").rglob("*") if path.is_file() and "__pycache__" not in path.parts
    ]
    pages = [
        path for path in (ROOT / "docs").rglob("*") if path.is_file() and "__pycache__" not in path.parts
    ]
    assert names == {str(path.relative_to(ROOT)) for path in files} | {
        f"qproxy/{path.relative_to(ROOT)}" for path in pages
    }
    assert {"qproxy/py.typed", "qproxy/wire/models/models.toml"} <= names


def test_the_wheel_works_without_the_source(wheel, tmp_path):
    """In a new environment it prints its version and the README's transcript.

    The environment uses the dependencies of this one: the test is about the package, and contacts no index.
    """
    home = tmp_path / "environment"
    python("-m", "venv", "--without-pip", str(home))
    inside = str(home / "bin" / "python")
    python(
        "-m",
        "pip",
        "--python",
        inside,
        "install",
        "--no-deps",
        "--no-index",
        "--no-compile",
        "--quiet",
        str(wheel),
    )
    packages = Path(sysconfig.get_path("purelib", vars={"base": str(home)}))
    (packages / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    environ = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"}
    settings = {"cwd": tmp_path, "env": environ}
    where = run_command(inside, "-c", "import qproxy; print(qproxy.__file__)", **settings)
    assert Path(where.strip()).is_relative_to(home)
    command = str(home / "bin" / "qproxy")
    assert run_command(command, "--version", **settings) == f"qproxy {VERSION}\n"
    assert run_command(command, "help", "errors", **settings) == (ROOT / "docs" / "errors.md").read_text()
    printed = run_command(command, "demo", "--once", "--port", "0", **settings)
    shown = (
        (ROOT / "README.md").read_text().partition("$ qproxy demo --once\n")[2].partition("\n> What is '")[0]
    )
    assert "get_weather" in shown
    assert re.sub(r"127.0.0.1:\d+", "127.0.0.1:8787", printed).startswith(shown)
