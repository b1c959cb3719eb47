"""The commands of the Dockerfile and of compose.yaml run for real, without a container engine.

bubblewrap gives what the image would: an empty environment, a root file system that can't be written, a user without a
name, and process 1. The image's own Python and libraries are this machine's, at the image's paths.
"""

import contextlib
import hashlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import copier
import pytest
import yaml

from operations.servers import (
    TEXT,
    Call,
    Program,
    Stub,
    accepts,
    answers,
    free_port,
    program,
    valkey_server,
    wait_until,
)
from workspace import ROOT, run


@dataclass
class Stage:
    """A stage of the Dockerfile.

    Attributes:
        env: its variables.
        copied: what it copies from outside.
        commands: what it runs, without mounts.
        entrypoint: what its image runs.
        healthcheck: what tells whether that is well.
        user: who it runs as: user and group, as numbers.
    """

    env: dict[str, str] = field(default_factory=dict)
    copied: list[str] = field(default_factory=list)
    commands: list[str] = field(default_factory=list)
    entrypoint: list[str] = field(default_factory=list)
    healthcheck: list[str] = field(default_factory=list)
    user: tuple[str, str] = ("0", "0")


def stages(dockerfile: str) -> list[Stage]:
    """Return the stages of a Dockerfile, as far as ours goes; fail on an instruction that isn't known here."""
    found: list[Stage] = []
    for line in re.sub(r"^#.*\n", "", dockerfile, flags=re.MULTILINE).replace("\\\n", " ").splitlines():
        instruction, _, rest = line.strip().partition(" ")
        rest = rest.strip()
        match instruction:
            case "":
                continue
            case "FROM":
                found.append(Stage())
            case "ENV":
                found[-1].env |= dict(item.split("=", 1) for item in rest.split())
            case "COPY":
                found[-1].copied += [] if rest.startswith("--from") else rest.split()[:-1]
            case "RUN":
                found[-1].commands.append(re.sub(r"--mount=\S+\s+", "", rest))
            case "ENTRYPOINT":
                found[-1].entrypoint = json.loads(rest)
            case "HEALTHCHECK":
                found[-1].healthcheck = json.loads(rest.partition("CMD ")[2])
            case "USER":
                user, _, group = rest.partition(":")
                found[-1].user = user, group
            case "WORKDIR":
                assert rest == "/srv"
            case "EXPOSE":
                assert rest == "8000"
            case _:
                raise AssertionError(line)
    return found


class Image:
    """What the Dockerfile makes, and what runs of it.

    Args:
        folder: what the image has at /srv.
        tools: a folder with the image's `python`, and while it is built with `uv`.
    """

    def __init__(self, folder: Path, tools: Path) -> None:
        self._folder, self._tools = folder, tools

    def command(
        self,
        stage: Stage,
        command: list[str],
        env: Mapping[str, str],
        mounts: Mapping[str, Path] | None = None,
        *,
        writable: bool = False,
    ) -> list[str]:
        """Return what runs a command as a stage of the Dockerfile would.

        Args:
            stage: the stage.
            command: what to run.
            env: variables on top of the stage's own.
            mounts: what is mounted besides, by its path inside.
            writable: whether /srv can be written, as it can be while it is built.
        """
        line = [program("bwrap"), "--die-with-parent", "--unshare-all", "--share-net", "--as-pid-1"]
        line += ["--uid", stage.user[0], "--gid", stage.user[1], "--tmpfs", "/", "--ro-bind", "/usr", "/usr"]
        for name in ("bin", "lib", "lib64"):
            line += ["--symlink", f"usr/{name}", f"/{name}"]
        hosts = self._tools / "hosts"
        hosts.write_text("127.0.0.1 localhost valkey\n")
        outside = {name: Path(name) for name in ("/etc/ssl", "/etc/resolv.conf", "/etc/ld.so.cache", sys.base_prefix)}
        outside |= {"/etc/hosts": hosts, "/image": self._tools} | dict(mounts or {})
        for inside, path in outside.items():
            if path.exists():
                line += ["--ro-bind", str(path), inside]
        cache = run("uv", "cache", "dir", cwd=ROOT).strip()
        for inside, bound in (("/srv", str(self._folder)), (cache, cache)):
            line += ["--bind" if writable else "--ro-bind", bound, inside]
        line += ["--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp"]  # noqa: S108 - inside, and empty
        line += ["--remount-ro", "/", "--chdir", "/srv"]
        programs = "/image:/usr/bin:/bin"
        variables = {"PATH": programs} | stage.env | dict(env)
        variables["PATH"] = variables["PATH"].replace("$PATH", programs)
        line.append("--clearenv")
        for name, value in variables.items():
            line += ["--setenv", name, value]
        return [*line, *command]


@dataclass
class Built:
    """A project, and the image that its Dockerfile makes."""

    project: Path
    image: Image
    stage: Stage

    def run(self, command: list[str], **env: str) -> subprocess.CompletedProcess[str]:
        """Run a command in a container of its own, to its end."""
        line = self.image.command(self.stage, command, env)
        return subprocess.run(line, text=True, capture_output=True, check=False, timeout=60)

    @contextlib.contextmanager
    def running(self, port: int, env: Mapping[str, str], mounts: Mapping[str, Path] | None = None) -> Iterator[Program]:
        """Run the image's own command until it is told to end, which it must do well."""
        line = self.image.command(self.stage, self.stage.entrypoint, env, mounts)
        with Program(*line, ready=lambda: answers(f"http://127.0.0.1:{port}/health"), cwd=self.project) as container:
            yield container
            children = Path(f"/proc/{container.pid}/task/{container.pid}/children").read_text().split()
            os.kill(int(children[0]), signal.SIGTERM)
            assert container.wait() == 0


@pytest.fixture(scope="module")
def built(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Built:
    """The default project, built as the Dockerfile says, but for bytecode, and with links into uv's cache."""
    folder = tmp_path_factory.mktemp("image")
    project, srv, tools = folder / "project", folder / "srv", folder / "tools"
    copier.run_copy(str(source), project, data={"kubernetes": True}, defaults=True, quiet=True)
    shutil.copy(ROOT / "uv.lock", project)  # so that uv keeps its versions
    run("uv", "lock", "--quiet", "--python", sys.executable, cwd=project)
    srv.mkdir()
    tools.mkdir()
    (tools / "python").symlink_to(Path(sys.base_prefix) / "bin/python3")
    uv = os.environ.get("UV") or run("python", "-c", "import uv; print(uv.find_uv_bin())", cwd=ROOT).strip()
    shutil.copy(uv, tools)
    _, build, last = stages((project / "Dockerfile").read_text("utf-8"))
    outside = {name: os.environ[name] for name in ("SSL_CERT_FILE", "HTTPS_PROXY", "NO_PROXY") if name in os.environ}
    outside |= {"UV_CACHE_DIR": run("uv", "cache", "dir", cwd=ROOT).strip(), "HOME": "/root"}
    outside |= {"UV_COMPILE_BYTECODE": "0", "UV_LINK_MODE": "symlink"}
    image = Image(srv, tools)
    for name in build.copied:
        copy = shutil.copytree if (project / name).is_dir() else shutil.copy
        copy(project / name, srv / name)
    for command in build.commands:
        run(*image.command(build, ["/bin/sh", "-c", command], outside, writable=True), cwd=folder)
    (tools / "uv").unlink()
    return Built(project, image, last)


def chat(port: int) -> str:
    body = json.dumps({"model": "demo", "messages": [{"role": "user", "content": "Hello"}]}).encode()
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/chat/completions", body, {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=30) as response:  # noqa: S310 - see above
        return str(json.loads(response.read())["content"])


def test_the_image_has_the_app_its_libraries_and_nothing_else(built: Built) -> None:
    listed = built.run(["/bin/sh", "-c", "ls -A; command -v uv"])
    assert listed.stdout.split() == [".venv", "app", "pyproject.toml", "uv.lock"]
    find = "from importlib.util import find_spec; print(*[name for name in {} if find_spec(name)])"
    libraries = built.run(["python", "-c", find.format(["litellm", "opentelemetry", "pytest", "mypy"])])
    assert libraries.stdout.split() == ["litellm", "opentelemetry"]


def test_it_serves_as_process_1_without_a_name_and_on_a_disk_that_is_read_only(built: Built) -> None:
    who = built.run(["/bin/sh", "-c", "id -u; echo $$; touch /srv/x /etc/x || true"])
    assert who.stdout.split() == ["65532", "1"]
    assert who.stderr.count("Read-only file system") == 2
    port = free_port()
    with built.running(port, {"APP_PORT": str(port)}):
        assert chat(port) == "You said: Hello"
        assert built.run(built.stage.healthcheck, APP_PORT=str(port)).returncode == 0


def test_it_listens_on_the_port_that_a_platform_gives(built: Built) -> None:
    port = free_port()
    with built.running(port, {"PORT": str(port)}):
        assert built.run(built.stage.healthcheck, PORT=str(port)).returncode == 0


def test_several_workers_find_what_they_need(built: Built) -> None:
    port = free_port()
    metrics_port = free_port()
    with built.running(port, {"APP_PORT": str(port), "APP_METRICS_PORT": str(metrics_port), "APP_WORKERS": "2"}):
        assert chat(port) == "You said: Hello"
        with urllib.request.urlopen(f"http://127.0.0.1:{metrics_port}/metrics", timeout=30) as metrics:
            assert b"llm_upstream_calls_total" in metrics.read()


def test_litellm_needs_neither_a_home_nor_a_disk(built: Built) -> None:
    port = free_port()
    with Stub() as stub:
        env = {
            "APP_MODELS": json.dumps({"claude": {"upstream": "anthropic/claude-sonnet-4-5", "api_base": stub.url}}),
            "APP_DEFAULT_MODEL": "claude",
            "APP_CALLERS": json.dumps({"web": {"key_sha256": hashlib.sha256(b"key").hexdigest()}}),
        }
        with built.running(port, {"APP_PORT": str(port)} | env):
            wait_until(lambda: answers(f"http://127.0.0.1:{port}/ready"), seconds=60)
            with Call(f"http://127.0.0.1:{port}", "key", model="claude") as call:
                assert call.json["content"] == TEXT


def test_its_health_check_fails_where_nobody_answers(built: Built) -> None:
    assert built.run(built.stage.healthcheck, APP_PORT=str(free_port())).returncode != 0


def test_its_command_takes_arguments(built: Built) -> None:
    added = built.run([*built.stage.entrypoint, "callers", "add", "web"])
    assert (added.returncode, added.stderr) == (0, "")
    assert '[callers."web"]' in added.stdout


def test_a_pod_serves_and_passes_its_probes(built: Built) -> None:
    base = built.project / "k8s/base"
    pod = yaml.safe_load((base / "deployment.yaml").read_text("utf-8"))["spec"]["template"]["spec"]
    [container] = pod["containers"]
    env = {variable["name"]: variable["value"] for variable in container["env"]}
    mounts = {env["APP_SETTINGS_FILE"]: base / "settings.toml"}
    port = free_port()
    with built.running(port, {"APP_PORT": str(port)} | env, mounts) as backend:
        probes = [container[f"{kind}Probe"]["httpGet"]["path"] for kind in ("startup", "liveness", "readiness")]
        assert [answers(f"http://127.0.0.1:{port}{path}") for path in probes] == [True] * 3
        assert chat(port) == "You said: Hello"
        assert all(line.startswith("{") for line in backend.output.splitlines()), "the ConfigMap asks for JSON"


def test_what_compose_starts_counts_in_its_valkey(built: Built, tmp_path: Path) -> None:
    services: dict[str, Any] = yaml.safe_load((built.project / "compose.yaml").read_text("utf-8"))["services"]
    port, counts = free_port(), free_port()
    name, *options = services["valkey"]["command"]
    assert name == "valkey-server"
    valkey = Program(
        valkey_server(), *options, "--port", str(counts), ready=lambda: accepts(counts), cwd=tmp_path, env={}
    )
    env = services["backend"]["environment"] | {
        "APP_PORT": str(port),
        "APP_METRICS_PORT": str(free_port()),
        "APP_MODELS": '{"demo": {"upstream": "demo/echo", "requests_per_minute": 100}}',
        "APP_DEFAULT_MODEL": "demo",
    }
    env["APP_LIMIT_STORAGE"] = env["APP_LIMIT_STORAGE"].replace(":6379", f":{counts}")
    with valkey, built.running(port, env) as backend:
        assert chat(port) == "You said: Hello"
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/ready", timeout=30) as ready:
            assert json.loads(ready.read()) == {"status": "ready"}, "nothing is degraded"
        assert all(line.startswith("{") for line in backend.output.splitlines())
        with socket.create_connection(("127.0.0.1", counts)) as connection:
            connection.sendall(b"DBSIZE\r\n")
            assert connection.recv(100) == b":1\r\n"
