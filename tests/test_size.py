"""A module is read in one sitting, and app/ stays small enough to own. The spine: see test_architecture.py."""

import ast
import tokenize
from pathlib import Path

from workspace import ROOT

APP = ROOT / "template/app"
LINES_OF_A_MODULE = 300
LINES_OF_CODE = 7_800
LINES_OF_THE_DATABASE = 1470
CLOSED_ROOMS = ("database", "dialects")
"""Rooms that a reader may leave closed. They don't count."""

NO_CODE = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENDMARKER,
    tokenize.ENCODING,
}


def lines_of_code(module: Path) -> int:
    """Count the lines that are not blank, comment or docstring, those of attributes included."""
    with module.open("rb") as source:
        tokens = [token for token in tokenize.tokenize(source.readline) if token.type not in NO_CODE]
    code = {line for token in tokens for line in range(token.start[0], token.end[0] + 1)}
    for node in ast.walk(ast.parse(module.read_bytes())):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            code -= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return len(code)


def test_lines_of_code_are_counted(tmp_path: Path) -> None:
    module = tmp_path / "module.py"
    module.write_text(
        '"""Two\nlines."""\n\n# Why.\nX = (\n    1,  # why\n)\n"""What X is."""\n\n\n'
        'def f() -> str:\n    """Do."""\n    return "a"\n'
    )
    assert lines_of_code(module) == 5


def test_no_module_is_longer_than_one_sitting() -> None:
    lengths = {module: len(module.read_text("utf-8").splitlines()) for module in APP.rglob("*.py")}
    assert lengths
    assert {str(module): length for module, length in lengths.items() if length > LINES_OF_A_MODULE} == {}


def test_the_app_is_small_enough_to_own() -> None:
    modules = [path for path in APP.rglob("*.py") if path.relative_to(APP).parts[0] not in CLOSED_ROOMS]
    assert sum(map(lines_of_code, modules)) < LINES_OF_CODE


def test_the_database_is_small_enough_to_read() -> None:
    assert sum(map(lines_of_code, (APP / "database").glob("*.py"))) <= LINES_OF_THE_DATABASE
