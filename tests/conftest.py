"""The template as it stands in the working tree, copied without git, and projects rendered from it."""

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

from workspace import ROOT, Install, Once, Render, debian, run, snapshot

os.environ["APP_DATABASE_URL"] = "off"  # template/ has every option's files; its own tests turn this one on


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The template, where there is no git repository."""
    return snapshot(tmp_path_factory.mktemp("source"))


@pytest.fixture
def render(source: Path, tmp_path: Path) -> Render:
    """Copy a project with default answers, except those given, and without --trust."""
    rendered = 0

    def render(**answers: str | bool) -> Path:
        nonlocal rendered
        rendered += 1
        destination = tmp_path / f"project-{rendered}"
        copier.run_copy(str(source), destination, data=answers, defaults=True, quiet=True)
        return destination

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
