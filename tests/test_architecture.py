"""docs/architecture.md of a project says what is so, and the imports of app/ go the way that it draws."""

import ast
import functools
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from test_size import lines_of_code
from workspace import ROOT

TEMPLATE = ROOT / "template"
APP = TEMPLATE / "app"
PAGE = (TEMPLATE / "docs/architecture.md").read_text("utf-8")

LAYERS = {
    name: rank
    for rank, names in enumerate(
        [
            ("__init__", "config", "environment", "errors", "models", "network", "quotas"),
            ("telemetry",),
            ("access",),
            ("llm",),
            ("dialects",),
            ("http",),
            ("dependencies", "middleware"),
            ("routers",),
            ("database",),
            ("own",),
            ("main",),
            ("__main__",),
        ]
    )
    for name in names
}
"""Rooms, and the modules beside them, from the lowest up. A module imports from its own layer and from lower ones."""

FILES_AT_THE_TOP = 12
LINES_OF_THE_PAGE = 142
LINES_OF_THE_SPINE = 1500

WAITING = {"create_task", "call_later", "call_at", "to_thread", "timeout", "timeout_at", "Thread"}
"""Of asyncio and threading: what starts a task, a thread or a timer."""


def section(heading: str) -> str:
    return PAGE.partition(f"## {heading}\n")[2].partition("\n## ")[0]


def names_in(text: str) -> list[str]:
    """Return what stands in backticks and looks like a name or a path."""
    return [name for name in re.findall(r"`([^`\s]+)`", text) if re.fullmatch(r"[\w./]+", name)]


STEPS = re.findall(r"^\| (\d+) \| `([^`]+)` \| `([^`]+)` \|", section("A streamed request, step by step"), re.MULTILINE)
SPINE = re.findall(r"`([\w/]+\.py)`", section("Rooms").partition("The spine")[2])


# --- Names ------------------------------------------------------------------------------------------------------------


def definitions(module: Path) -> Iterator[str]:
    """Yield the functions, classes and variables of a module, and what its classes define, as `Class.name`."""

    def of(body: list[ast.stmt], prefix: str) -> Iterator[str]:
        for node in body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                yield prefix + node.name
            if isinstance(node, ast.ClassDef):
                yield from of(node.body, f"{prefix}{node.name}.")
            targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
            yield from (prefix + target.id for target in targets if isinstance(target, ast.Name))

    yield from of(ast.parse(module.read_bytes()).body, "")


@functools.cache
def defined() -> dict[str, set[str]]:
    """Return what each module of app/ defines."""
    return {module.relative_to(APP).as_posix(): set(definitions(module)) for module in APP.rglob("*.py")}


def unknown_names(text: str) -> list[str]:
    """Return the names and paths of a text that are not in app/: neither a file, nor defined, nor a class's field."""
    known = set().union(*defined().values())
    known |= {name.rpartition(".")[2] for name in known}
    known |= {"asyncio.timeout", "chat.completion.chunk", "finally", "HTTPException", "app/"}  # defined elsewhere
    paths = [name for name in names_in(text) if (APP / name).exists()]
    return [name for name in names_in(text) if name not in known and name not in paths]


def test_the_page_stays_one_page() -> None:
    assert len(PAGE.splitlines()) <= LINES_OF_THE_PAGE


def test_what_the_page_names_is_in_the_app() -> None:
    assert len(names_in(PAGE)) > 100
    assert unknown_names(PAGE) == []


def test_a_name_that_is_gone_is_found() -> None:
    text = "`Exchange.send` and `Exchange.sent` in `http/exchange.py` and `http/exchanges.py`; `get_llm`, `get_llms`"
    assert unknown_names(text) == ["Exchange.sent", "http/exchanges.py", "get_llms"]


def test_a_function_of_a_table_is_in_the_file_beside_it() -> None:
    rows = [(file, name) for _, file, name in STEPS]
    rows += [(file, name) for name, file in re.findall(r"^\| `([\w.]+)` \| `([\w/]+\.py)` \|", PAGE, re.MULTILINE)]
    rows += [(file, name) for name, file in re.findall(r"`([\w.]+)` in `([\w/]+\.py)`", PAGE)]
    assert len(rows) > len(STEPS) + 10
    assert [(file, name) for file, name in rows if name not in defined()[file]] == []


def test_every_room_and_every_module_beside_the_rooms_is_on_the_page() -> None:
    there = {path.name + "/" for path in APP.iterdir() if (path / "__init__.py").exists()}
    there |= {path.name for path in APP.glob("*.py")} - {"__init__.py"}
    there -= {"database/"}  # an option's, so on a page of its own
    assert there <= set(names_in(section("Rooms")))


def test_every_task_thread_and_timer_is_on_the_page() -> None:
    database = APP / "database"
    modules = {module for module in APP.rglob("*.py") if not module.is_relative_to(database)}
    text = section("Tasks, threads and timers")
    assert starting(modules) == listed(text)
    page = (TEMPLATE / "docs/database.md").read_text("utf-8")
    assert starting(database.rglob("*.py")) == listed(page.partition("## Tasks\n")[2])


def listed(text: str) -> set[str]:
    """Return what a section's table says starts a task, a thread or a timer, and what it says of time limits."""
    limits = re.split("Time limits?", text)[-1]
    found = set(re.findall(r"^\| `([\w.]+)` \|", text, re.MULTILINE)) | set(names_in(limits))
    return found - {"asyncio.timeout", "timeouts"}


def starting(modules: Iterable[Path]) -> set[str]:
    """Return the functions that start a task, a thread or a timer."""
    started = set()
    for module in modules:
        for owner, function in functions(ast.parse(module.read_bytes())):
            for node in ast.walk(function):
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in WAITING:
                    started.add(owner)
    return started


def functions(module: ast.Module) -> Iterator[tuple[str, ast.AST]]:
    """Yield each function of a module, and each method of its classes, by its qualified name."""
    for node in module.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name, node
        elif isinstance(node, ast.ClassDef):
            for method in node.body:
                if isinstance(method, ast.FunctionDef | ast.AsyncFunctionDef):
                    yield f"{node.name}.{method.name}", method


# --- The way of a request ---------------------------------------------------------------------------------------------


def order_of(model: str) -> list[tuple[str, str]]:
    """Return the functions that a streamed request enters, in the order in which it first enters each."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("APP_", "OTEL_"))}
    done = subprocess.run(
        [sys.executable, ROOT / "tests/call_order.py", model],
        cwd=TEMPLATE,
        env=kept | {"APP_ENV_FILE": ""},
        text=True,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return [(file, function) for file, function in json.loads(done.stderr.splitlines()[-1])]


def out_of_order(steps: list[tuple[str, str]], entered: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Return the steps that were not entered, or that were entered before the step that stands above them."""
    places = {function: place for place, function in enumerate(entered)}
    wrong, last = [], -1
    for step in steps:
        if places.get(step, -1) <= last:
            wrong.append(step)
        else:
            last = places[step]
    return wrong


def test_the_steps_are_numbered() -> None:
    assert [number for number, _, _ in STEPS] == [str(number) for number in range(1, len(STEPS) + 1)]
    assert len(STEPS) > 20


def test_a_stream_over_the_direct_adapter_takes_the_steps_of_the_page_in_their_order() -> None:
    assert out_of_order([(file, function) for _, file, function in STEPS], order_of("direct")) == []


def test_a_stream_of_the_demo_model_takes_the_same_steps_with_another_adapter() -> None:
    steps = [("llm/demo.py", "Demo.stream") if function == "Direct.stream" else (file, function)
             for _, file, function in STEPS if function not in ("Direct._post", "Relay.feed")]  # fmt: skip
    assert out_of_order(steps, order_of("demo")) == []


def test_a_step_that_is_not_taken_or_comes_too_early_is_found() -> None:
    entered = [("a.py", "first"), ("b.py", "second"), ("c.py", "third")]
    assert out_of_order(entered, entered) == []
    assert out_of_order([("a.py", "first"), ("a.py", "gone"), ("c.py", "third")], entered) == [("a.py", "gone")]
    assert out_of_order([("b.py", "second"), ("a.py", "first")], entered) == [("a.py", "first")]


# --- Imports ----------------------------------------------------------------------------------------------------------

Imports = dict[str, set[str]]


def imports_of(app: Path) -> Imports:
    """Return which modules of a package each of its modules imports: at its top, in functions, and for types alone."""
    modules = {}
    for path in app.rglob("*.py"):
        parts = path.relative_to(app.parent).with_suffix("").parts
        modules[".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 2 else parts)] = path
    imports: Imports = {}
    for name, path in modules.items():
        found = set()
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                package = ".".join(path.relative_to(app.parent).parts[: -node.level]) if node.level else ""
                source = ".".join(filter(None, [package, node.module]))
                found |= {source if f"{source}.{a.name}" not in modules else f"{source}.{a.name}" for a in node.names}
        found = {f"{app.name}.__init__" if module == app.name else module for module in found}
        imports[name] = found & modules.keys() - {name}
    return imports


def upward(imports: Imports) -> list[str]:
    """Return the imports that lead from a lower layer to a higher one."""
    layer = {module: LAYERS[module.split(".")[1]] for module in imports}
    return sorted(f"{a} -> {b}" for a, found in imports.items() for b in found if layer[a] < layer[b])


def circles(imports: Imports) -> list[str]:
    """Return the modules that import themselves by way of others."""

    def reached(module: str) -> set[str]:
        seen: set[str] = set()
        waiting = list(imports[module])
        while waiting:
            if (found := waiting.pop()) not in seen:
                seen.add(found)
                waiting += imports[found]
        return seen

    return sorted(module for module in imports if module in reached(module))


def test_imports_go_one_way_between_the_rooms() -> None:
    imports = imports_of(APP)
    assert sum(map(len, imports.values())) > 100
    assert upward(imports) == []


def test_no_two_modules_import_each_other() -> None:
    assert circles(imports_of(APP)) == []


@pytest.fixture
def tangled(tmp_path: Path) -> Path:
    """A package with a circle, and with upward imports of every kind."""
    app = tmp_path / "app"
    for name, text in {
        "__init__.py": "",
        "config.py": "def late():\n    from app.errors import E\n",
        "errors.py": "import app.config\n",
        "own.py": "from app import main\n",
        "main.py": "from app import own\nfrom app.http import exchange\n",
        "http/__init__.py": "",
        "http/exchange.py": "from app.llm.client import C\n",
        "llm/__init__.py": "",
        "llm/client.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from app.http.exchange import E\n",
        "llm/call.py": "from ..routers import chat\n",
        "routers/__init__.py": "",
        "routers/chat.py": "",
        "access/__init__.py": "",
        "access/limits.py": "from app.config import Limits\n",
    }.items():
        (app / name).parent.mkdir(parents=True, exist_ok=True)
        (app / name).write_text(text)
    return app


def test_an_upward_import_is_found(tangled: Path) -> None:
    assert upward(imports_of(tangled)) == [
        "app.llm.call -> app.routers.chat",
        "app.llm.client -> app.http.exchange",
        "app.own -> app.main",
    ]


def test_a_circle_is_found(tangled: Path) -> None:
    found = ["app.config", "app.errors", "app.http.exchange", "app.llm.client", "app.main", "app.own"]
    assert circles(imports_of(tangled)) == found


# --- Size -------------------------------------------------------------------------------------------------------------


def test_the_ground_floor_is_seen_at_a_glance() -> None:
    assert len(list(APP.glob("*.py"))) <= FILES_AT_THE_TOP


def test_the_spine_is_read_in_an_evening() -> None:
    assert {"main.py", "llm/sse.py"} <= set(SPINE)
    assert sum(lines_of_code(APP / file) for file in SPINE) < LINES_OF_THE_SPINE
