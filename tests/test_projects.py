"""Every shape of project passes its own tests, on the libraries that it asks for."""

import shutil

import pytest

from shapes import SHAPES
from workspace import Install, Once, Render, run, tree

READ_BY_NO_TEST = (
    *(".github", ".gitlab-ci.yml", ".copier-answers.yml"),
    *("README.md", "Dockerfile", ".dockerignore", "compose.yaml", "monitoring", "k8s"),
)


@pytest.mark.parametrize("answers", SHAPES.values(), ids=SHAPES)
def test_its_own_tests_pass(render: Render, install: Install, once: Once, answers: dict[str, str | bool]) -> None:
    """Once for each distinct project; what no test reads is taken away, as it would only make more of them."""
    project = render(**answers)
    for name in READ_BY_NO_TEST:
        if (project / name).is_dir():
            shutil.rmtree(project / name)
        else:
            (project / name).unlink(missing_ok=True)
    once(
        frozenset(tree(project).items()),
        lambda: run(install(project) / "pytest", "--quiet", "tests", "tests/template", cwd=project),
    )
