"""What is published: wheel and sdist hold what they need, and work where no checkout is."""

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import quadrivium
from quadrivium.cli import COMMANDS

pytest.importorskip("hatchling", reason="hatchling is not installed: pip install hatchling")
ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Folder of the sdist, and of the wheel made from it as an installer does."""
    out = tmp_path_factory.mktemp("dist")
    build = [sys.executable, "-m", "hatchling", "build", "-d", str(out)]
    subprocess.run([*build, "-t", "sdist"], cwd=ROOT, check=True, capture_output=True)
    with tarfile.open(next(out.glob("*.tar.gz"))) as archive:
        archive.extractall(out / "source", filter="data")
    subprocess.run([*build, "-t", "wheel"], cwd=next((out / "source").iterdir()), check=True, capture_output=True)
    return out


def test_the_sdist_holds_what_is_kept_and_nothing_else(built):
    with tarfile.open(next(built.glob("*.tar.gz"))) as archive:
        names = {n.partition("/")[2] for n in archive.getnames()}
    assert {"README.md", "LICENSE", "pyproject.toml", "constraints.txt", "Makefile", "tests/test_package.py"} <= names
    assert not any(n.startswith(("runs", ".git/", ".venv", "data/")) or "__pycache__" in n for n in names)


def test_the_wheel_holds_every_file_of_the_package(built):
    with zipfile.ZipFile(next(built.glob("*.whl"))) as archive:
        names = set(archive.namelist())
    package = ROOT / "quadrivium"
    ours = {str(p.relative_to(ROOT)) for p in package.rglob("*") if p.is_file() and "__pycache__" not in p.parts}
    assert ours <= names and {"quadrivium/py.typed", "quadrivium/tasks/coda.yaml"} <= ours


@pytest.mark.parametrize("command", ["demo", "prepare"])
def test_an_installed_wheel_works_outside_a_checkout(command, built, tmp_path):
    with zipfile.ZipFile(next(built.glob("*.whl"))) as archive:  # which is what installing a pure wheel does
        archive.extractall(tmp_path / "site")
        entry = next(n for n in archive.namelist() if n.endswith("entry_points.txt"))
        assert "quadrivium = quadrivium.cli:main" in archive.read(entry).decode()
    others = [p for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p and not (Path(p) / "quadrivium").is_dir()]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path / "site"), *others])}
    code = "import sys, quadrivium; from quadrivium.cli import main; print(quadrivium.__file__); sys.exit(main(sys.argv[1:]))"
    done = subprocess.run(
        [sys.executable, "-P", "-c", code, command, "--help"], cwd=tmp_path, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0 and str(tmp_path / "site") in done.stdout and "--out" in done.stdout
    assert command in COMMANDS and quadrivium.__version__ in next(built.glob("*.whl")).name
