"""The template as it stands in the working tree, copied without git, and projects rendered from it."""

import itertools
import os
import shutil
import socket
import sys
import tempfile
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import copier
import pytest

from workspace import ROOT, CheckTypes, Install, Once, Render, debian, run, snapshot

os.environ["APP_DATABASE_URL"] = "off"  # template/ has every option's files; its own tests turn this one on
Rendered = Callable[[dict[str, str | bool]], Path]


@pytest.fixture(scope="session", autouse=True)
def quick_copier() -> Iterator[None]:
    """Leave out what Copier asks git about each file that it writes: whether it ignores the executable bit."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("copier._main.Worker._sync_git_index_executable_bit", lambda *_: None, raising=False)
        yield


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The template, where there is no git repository."""
    return snapshot(tmp_path_factory.mktemp("source"))


@pytest.fixture(scope="session")
def rendered(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Rendered:
    """Return a copy with default answers, except those given, without --trust. The same answers get the same."""
    copies: dict[tuple[tuple[str, str | bool], ...], Path] = {}

    def rendered(answers: dict[str, str | bool]) -> Path:
        key = tuple(sorted(answers.items()))
        if key not in copies:
            destination = tmp_path_factory.mktemp("rendered") / "project"
            copier.run_copy(str(source), destination, data=answers, defaults=True, quiet=True)
            copies[key] = destination
        return copies[key]

    return rendered


@pytest.fixture
def render(rendered: Rendered, tmp_path: Path) -> Render:
    """Return a project with given answers, for one test."""
    number = itertools.count(1)

    def render(**answers: str | bool) -> Path:
        return shutil.copytree(rendered(answers), tmp_path / f"project-{next(number)}")

    return render


@pytest.fixture(scope="session")
def install(tmp_path_factory: pytest.TempPathFactory) -> Install:
    """Install what a project asks for; return the folder of its commands. Projects that ask for the same share one.

    uv keeps the versions of a lock that it finds, so projects are tested with the versions that this repository pins.
    """
    installed: dict[str, Path] = {}

    def install(project: Path) -> Path:
        asked = tomllib.loads((project / "pyproject.toml").read_text("utf-8"))
        del asked["project"]["name"], asked["project"]["description"]
        if str(asked) not in installed:
            folder = tmp_path_factory.mktemp("environment")
            shutil.copy(project / "pyproject.toml", folder)
            shutil.copy(ROOT / "uv.lock", folder)
            run(os.environ.get("UV", "uv"), "sync", "--quiet", "--python", sys.executable, cwd=folder)
            installed[str(asked)] = folder / ".venv/bin"
        return installed[str(asked)]

    return install


@pytest.fixture(scope="session")
def check_types(tmp_path_factory: pytest.TempPathFactory) -> CheckTypes:
    """Run mypy in projects, with one cache for all: most of what it reads are the same libraries, half a minute's work.

    Its arguments are the command, the project, and the files that are checked, if not all.
    """
    cache = tmp_path_factory.mktemp("mypy")
    return lambda mypy, project, *names: run(mypy, "--cache-dir", cache, *names, cwd=project)


@pytest.fixture(scope="module")
def once() -> Once:
    """Check the same thing once and repeat what came of it: shapes share most of their files, and checks take time."""
    outcomes: dict[object, str] = {}

    def once(thing: object, check: Callable[[], object]) -> None:
        if thing not in outcomes:
            try:
                check()
                outcomes[thing] = ""
            except AssertionError as failure:
                outcomes[thing] = str(failure)
        assert not outcomes[thing], outcomes[thing]

    return once


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """The address of Debian's Postgres, run as its own user, who may not be root."""
    debian("pg_ctlcluster", "postgresql")
    [*_, initdb] = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    binaries = initdb.parent
    folder = Path(tempfile.mkdtemp(prefix="postgres-"))  # pytest's own folders are closed to other users
    user: list[str | Path] = (
        ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"] if os.getuid() == 0 else []
    )
    if user:
        shutil.chown(folder, "postgres", "postgres")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    run(*user, binaries / "initdb", "-D", folder / "data", "-A", "trust", "-U", "postgres", cwd=Path("/"))
    options = f"-p {port} -k {folder} -c listen_addresses=127.0.0.1 -c fsync=off"
    control: list[str | Path] = [*user, binaries / "pg_ctl", "-D", folder / "data", "-l", folder / "log", "-w"]
    run(*control, "-o", options, "start", cwd=Path("/"))
    yield f"postgresql+psycopg://postgres@127.0.0.1:{port}/postgres"
    run(*control, "-m", "immediate", "stop", cwd=Path("/"))
    shutil.rmtree(folder)
