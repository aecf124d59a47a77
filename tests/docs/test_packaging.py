"""What is shipped: the wheel works by itself, in an environment that has never seen the source, and holds
everything."""

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


def ran(*command, **settings):
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False, **settings)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def python(*arguments, **settings):
    return ran(sys.executable, *arguments, **settings)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """The tree that the sdist holds."""
    folder = tmp_path_factory.mktemp("sdist")
    python("-m", "hatchling", "build", "--target", "sdist", "--directory", str(folder), cwd=ROOT)
    with tarfile.open(folder / f"qproxy-{VERSION}.tar.gz") as archive:
        archive.extractall(folder, filter="data")
    return folder / f"qproxy-{VERSION}"


@pytest.fixture(scope="module")
def wheel(source, tmp_path_factory):
    """The wheel, made of the sdist as an installer would make it."""
    folder = tmp_path_factory.mktemp("wheel")
    python("-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder), cwd=source)
    return folder / f"qproxy-{VERSION}-py3-none-any.whl"


def test_the_sdist_is_whole(source):
    """Whoever has it can read, test and ship qproxy."""
    assert [name for name in BESIDE_CODE if not (source / name).is_file()] == []


def test_the_wheel_holds_the_package_and_its_data(wheel):
    """Every file of the package is in it, and nothing else but its metadata."""
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


def test_the_wheel_works_by_itself(wheel, tmp_path):
    """Installed into a new environment, without the source, it tells its version and shows the README's
    transcript.

    The environment borrows the dependencies of this one: what is tested is ours, and no index is asked.
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
    where = ran(inside, "-c", "import qproxy; print(qproxy.__file__)", **settings)
    assert Path(where.strip()).is_relative_to(home)
    command = str(home / "bin" / "qproxy")
    assert ran(command, "--version", **settings) == f"qproxy {VERSION}\n"
    assert ran(command, "help", "errors", **settings) == (ROOT / "docs" / "errors.md").read_text()
    printed = ran(command, "demo", "--once", "--port", "0", **settings)
    shown = (
        (ROOT / "README.md").read_text().partition("$ qproxy demo --once\n")[2].partition("\n> What is '")[0]
    )
    assert "get_weather" in shown
    assert re.sub(r"127.0.0.1:\d+", "127.0.0.1:8787", printed).startswith(shown)
