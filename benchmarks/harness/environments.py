"""An environment for each contender: our project as a user would get it, and the peers' own."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import copier

REPOSITORY = Path(__file__).parents[2]
CONTENDERS = REPOSITORY / "benchmarks" / "contenders"
CACHE = REPOSITORY / "benchmarks" / ".cache"
PYTHON = ".".join(map(str, sys.version_info[:3]))
# What the report names of each environment.
NAMED = ("fastapi", "starlette", "pydantic", "uvicorn", "uvloop", "httptools", "aiohttp", "litellm", "openai", "smg")


@dataclass(frozen=True)
class Environment:
    """A program that runs contenders, the folder to run it in, and the versions of what it brings."""

    program: str
    folder: Path
    versions: dict[str, str]


class Unavailable(Exception):
    """An environment that can't be had here."""


def run(*command: str, folder: Path = REPOSITORY, **variables: str) -> str:
    """Run to the end; raises RuntimeError with what the command said when it fails."""
    done = subprocess.run(
        command, cwd=folder, env=base_environment() | variables, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stdout[-1000:]}{done.stderr[-2000:]}")
    return done.stdout


def base_environment() -> dict[str, str]:
    """Ours, without what ties uv to the environment that runs this harness."""
    return {name: value for name, value in os.environ.items() if name not in ("VIRTUAL_ENV", "PYTHONPATH")}


def installed(python: Path) -> dict[str, str]:
    listed = json.loads(run("uv", "pip", "list", "--format", "json", "--python", str(python)))
    found = {package["name"]: package["version"] for package in listed}
    return {"python": PYTHON} | {name: found[name] for name in NAMED if name in found}


def render(project: Path, **answers: object) -> None:
    """Render the working tree's template with its default answers but these.

    The tree is copied first, since copier would take a git repository's latest release instead of it.
    """
    shutil.rmtree(project, ignore_errors=True)
    with tempfile.TemporaryDirectory() as folder:
        snapshot = Path(folder)
        for name in run("git", "ls-files", "--cached", "--others", "--exclude-standard", "-z").split("\0"):
            if (REPOSITORY / name).is_file():
                (snapshot / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(REPOSITORY / name, snapshot / name)
        copier.run_copy(str(snapshot), project, data=answers, defaults=True, quiet=True)


def sync(project: Path) -> Path:
    """Install a rendered project as its README says; return its Python."""
    environment = project.with_name(f"{project.name}-environment")
    command = ("uv", "sync", "--quiet", "--no-dev", "--compile-bytecode", "--python", PYTHON)
    run(*command, folder=project, UV_PROJECT_ENVIRONMENT=str(environment))
    return environment / "bin" / "python"


def build_project() -> Environment:
    project = CACHE / "project"
    render(project)
    python = sync(project)
    export = ("uv", "export", "--quiet", "--no-dev", "--no-hashes", "--no-emit-project", "--python", PYTHON)
    run(*export, "--output-file", str(constraints()), folder=project)
    return Environment(str(python), project, installed(python))


def build_project_own() -> Environment:
    """The same project, with a model of its team's own."""
    project = CACHE / "project_own"
    shutil.rmtree(project, ignore_errors=True)
    shutil.copytree(CACHE / "project", project)
    shutil.copy(CONTENDERS / "own.py", project / "app" / "own.py")
    python = CACHE / "project-environment" / "bin" / "python"
    return Environment(str(python), project, installed(python))


def build_project_database() -> Environment:
    """A project with the option `database`, on SQLite, its tables made.

    Raises:
        Unavailable: This template has no such option.
    """
    if "\ndatabase:" not in (REPOSITORY / "copier.yml").read_text():
        raise Unavailable("the template has no option `database` yet")
    project = CACHE / "project_database"
    render(project, database=True)
    python = sync(project)
    run(str(python), "-m", "app", "migrate", folder=project)
    return Environment(str(python), project, installed(python))


def constraints() -> Path:
    """The versions that our project resolved to, for contenders that are compared with it directly."""
    return CACHE / "constraints.txt"


def build_python(name: str, *, constrained: bool) -> Environment:
    """Install `contenders/<name>.txt`; constrained: with our project's versions of what both use."""
    requirements = CONTENDERS / f"{name}.txt"
    arguments = ["--requirements", str(requirements)]
    wanted = PYTHON + requirements.read_text()
    if constrained:
        arguments += ["--constraints", str(constraints())]
        wanted += constraints().read_text()
    environment = CACHE / name
    python = environment / "bin" / "python"
    stamp = environment / "made-from"
    digest = hashlib.sha256(wanted.encode()).hexdigest()
    if not stamp.exists() or stamp.read_text() != digest:
        run("uv", "venv", "--quiet", "--clear", "--python", PYTHON, str(environment))
        run("uv", "pip", "install", "--quiet", "--compile-bytecode", "--python", str(python), *arguments)
        stamp.write_text(digest)
    return Environment(str(python), CONTENDERS, installed(python))


def build_node(name: str) -> Environment:
    """Install `contenders/<name>/package.json` with npm."""
    folder = CACHE / name
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(CONTENDERS / name / "package.json", folder)
    run("npm", "install", "--silent", "--no-audit", "--no-fund", folder=folder)
    versions = {"node": run("node", "--version").strip().removeprefix("v")}
    for package in json.loads((folder / "package.json").read_text())["dependencies"]:
        manifest = folder / "node_modules" / package / "package.json"
        versions[package] = json.loads(manifest.read_text())["version"]
    return Environment(shutil.which("node") or "node", folder, versions)


def build(name: str) -> Environment:
    """Make or reuse the environment that a contender names. "project" has to be the first.

    Raises:
        Unavailable: It can't be had here; the reason is for the report.
        RuntimeError: A command failed.
    """
    CACHE.mkdir(exist_ok=True)
    match name:
        case "project":
            return build_project()
        case "project_own":
            return build_project_own()
        case "project_database":
            return build_project_database()
        case "floor" | "plain_litellm":
            return build_python(name, constrained=True)
        case "portkey":
            return build_node(name)
        case _:
            return build_python(name, constrained=False)
