"""What is built from this tree is complete: its wheel alone serves, and foreign files in the way are noticed."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import tomllib
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.support.waiting import PATIENCE_S, wait_until

ROOT = Path(__file__).parent.parent
PROCESSES = ("frontend", "router", "shared", "worker")


@dataclass
class Environment:
    """A virtual environment with the wheel in it."""

    folder: Path

    @property
    def site_packages(self) -> Path:
        return next(self.folder.glob("lib/python3.*/site-packages"))

    def command(self, name: str) -> str:
        return str(self.folder / "bin" / name)

    def run(self, *command: str, **variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [self.command(command[0]), *command[1:]],
            cwd=self.folder,
            env=os.environ | variables,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
        )


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, for setuptools leaves files in the tree it builds."""
    tree, out = tmp_path_factory.mktemp("tree"), tmp_path_factory.mktemp("wheel")
    for name in (*PROCESSES, "pyproject.toml", "README.md", "LICENSE"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, tree / name)
    flags = ["--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", str(out)]
    subprocess.run([sys.executable, "-m", "pip", "wheel", *flags, str(tree)], check=True)
    return next(out.glob("*.whl"))


@pytest.fixture
def environment(wheel: Path, tmp_path: Path) -> Environment:
    """The dependencies are those of this environment, which come from the lock; our own code is the wheel's alone.

    A folder named in a .pth file is searched for modules, but the .pth files in it are not read: the editable install
    that may be there does not count.
    """
    folder = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    made = Environment(folder)
    (made.site_packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    flags = ["--quiet", "--no-deps", "--no-index", "--ignore-installed"]
    subprocess.run(
        [sys.executable, "-m", "pip", "--python", made.command("python"), "install", *flags, str(wheel)], check=True
    )
    return made


@pytest.fixture
def server(environment: Environment, tmp_path: Path) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """The process and its address."""
    log = tmp_path / "log"
    flags = ["--http-host", "127.0.0.1", "--http-port", "0", "--discovery-backend", "mem", "--mock-workers", "1"]
    with log.open("wb") as stderr:
        process = subprocess.Popen([environment.command("dynamo-frontend"), *flags], cwd=tmp_path, stderr=stderr)
    try:
        yield process, _address(process, log)
    finally:
        process.kill()
        process.wait()


def _address(process: subprocess.Popen[bytes], log: Path) -> str:
    wait_until(lambda: "listening on" in log.read_text() or process.poll() is not None, "its address")
    found = re.search(r"listening on (\S+)", log.read_text())
    assert found is not None, log.read_text()
    return found[1]


def test_every_folder_with_code_is_a_package_of_the_wheel() -> None:
    table = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = {file.parent.relative_to(ROOT) for name in PROCESSES for file in (ROOT / name).rglob("*.py")}
    in_tree = {"dynamo." + ".".join(folder.parts): folder.as_posix() for folder in folders}
    assert set(table["packages"]) == set(in_tree)
    assert table["package-dir"] == in_tree


def pins_of(lock: str) -> dict[str, str]:
    return dict(re.findall(r"^([a-z0-9-]+)==(\S+) \\$", (ROOT / "requirements" / lock).read_text(), re.MULTILINE))


def test_the_locks_fit_the_declared_dependencies_and_each_other() -> None:
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    runtime = pins_of("runtime.txt")
    for requirement in map(Requirement, declared):
        assert runtime[requirement.name] in requirement.specifier, f"run `make lock`: {requirement}"
    assert runtime.items() <= pins_of("dev.txt").items()


@pytest.mark.parametrize("lock", ["runtime.txt", "dev.txt", "interop.txt", "anchor.txt"])
def test_locks_have_hashes_and_no_addresses(lock: str) -> None:
    text = (ROOT / "requirements" / lock).read_text()
    assert "://" not in text
    assert "--index" not in text
    for block in re.split(r"\n(?=[a-z])", text):
        assert block.startswith("#") or "--hash=sha256:" in block, block


def test_the_wheel_holds_every_file_that_git_knows(wheel: Path) -> None:
    listed = subprocess.run(
        ["git", "ls-files", *PROCESSES], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout.split()
    if not listed:
        pytest.skip("not a git checkout")
    packed = subprocess.run(
        [sys.executable, "-m", "zipfile", "-l", str(wheel)], capture_output=True, text=True, check=True
    ).stdout
    missing = [file for file in listed if (ROOT / file).exists() and f"dynamo/{file} " not in packed]
    assert missing == []


def test_the_installed_wheel_serves(server: tuple[subprocess.Popen[bytes], str]) -> None:
    process, url = server
    wait_until(lambda: '"demo"' in _body(f"{url}/v1/models"), "the mock worker")
    assert _body(f"{url}/v1/completions", b'{"model":"demo","prompt":"hello","max_tokens":4}').startswith("{")
    process.send_signal(signal.SIGTERM)
    assert process.wait(PATIENCE_S) == 0


def _body(url: str, data: bytes | None = None) -> str:
    request = urllib.request.Request(url, data, {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=PATIENCE_S) as response:
        return str(response.read().decode())


@pytest.mark.parametrize("program", ["dynamo-frontend", "dynamo-router", "dynamo-worker"])
def test_the_programs_of_the_wheel_start(environment: Environment, program: str) -> None:
    done = environment.run(program, "--help")
    assert done.returncode == 0, done.stderr
    assert f"usage: {program}" in done.stdout


def test_ai_dynamo_in_the_same_environment_is_said(environment: Environment) -> None:
    """Its metadata folder is all that is looked at, and all that is made here: the package has 75 MB."""
    (environment.site_packages / "ai_dynamo-1.6.1.dist-info").mkdir()
    for command in (["dynamo-frontend"], ["python", "-m", "dynamo.frontend"]):
        done = environment.run(*command)
        assert done.returncode == 1
        assert "ai-dynamo is installed in" in done.stderr
        assert "separate virtual environments" in done.stderr


def test_a_foreign_dynamo_frontend_that_wins_is_said(environment: Environment, tmp_path: Path) -> None:
    """What happens beside an editable install: somebody else's folder comes first on the path."""
    foreign = tmp_path / "foreign" / "dynamo" / "frontend"
    foreign.mkdir(parents=True)
    (foreign / "__init__.py").touch()
    done = environment.run("dynamo-frontend", PYTHONPATH=str(tmp_path / "foreign"))
    assert done.returncode == 1
    assert f"dynamo.frontend is not ours but comes from {foreign}" in done.stderr
