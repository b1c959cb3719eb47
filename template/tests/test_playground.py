"""The playground is off unless asked for, shows no secret, and runs nothing but its own files."""

import re
from collections.abc import Iterator

import pytest
from starlette.testclient import TestClient

from app.config import ModelEntry, Settings
from app.main import create_app
from app.quotas import Price
from app.routers.playground import FILES


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    with TestClient(create_app(Settings(playground=True)), follow_redirects=False) as client:
        yield client


@pytest.mark.parametrize(
    ("given", "status"), [({}, 404), ({"dev": True}, 200), ({"dev": True, "playground": False}, 404)]
)
def test_it_is_on_with_dev_unless_said_otherwise(given: dict[str, bool], status: int) -> None:
    with TestClient(create_app(Settings(**given))) as client:  # type: ignore[arg-type]  # booleans
        assert client.get("/playground").status_code == status


def test_the_root_leads_there(client: TestClient) -> None:
    answer = client.get("/")
    assert (answer.status_code, answer.headers["location"]) == (307, "/playground")


@pytest.mark.parametrize("name", ["", *(f"/{path.name}" for path in FILES.iterdir())])
def test_each_file_may_load_its_own_kind_alone(client: TestClient, name: str) -> None:
    answer = client.get(f"/playground{name}")
    assert answer.status_code == 200
    policy = dict(rule.split(" ", 1) for rule in answer.headers["content-security-policy"].split("; "))
    assert policy["default-src"] == policy["frame-ancestors"] == policy["form-action"] == "'none'"
    assert policy["script-src"] == policy["connect-src"] == "'self'"
    assert answer.headers["x-frame-options"] == "DENY"
    assert answer.headers["x-content-type-options"] == "nosniff"


def test_a_file_is_compressed_for_those_who_take_it_so(client: TestClient) -> None:
    compressed = client.get("/playground/main.js", headers={"Accept-Encoding": "gzip"})
    plain = client.get("/playground/main.js", headers={"Accept-Encoding": "identity"})
    assert compressed.text == plain.text == (FILES / "main.js").read_text("utf-8")
    assert "content-encoding" not in plain.headers
    assert int(compressed.headers["content-length"]) < int(plain.headers["content-length"]) / 2
    assert compressed.headers["vary"] == plain.headers["vary"] == "Accept-Encoding"


def test_its_page_has_no_script_and_no_address_of_another(client: TestClient) -> None:
    page = client.get("/playground").text
    assert re.findall(r"<script(?![^>]*src=)|\son\w+=|(?:src|href)=.https?:", page) == []


@pytest.mark.parametrize("name", ["none.js", "..%2fconfig.py", "%2e%2e/config.py", "index.html%00", ".env"])
def test_nothing_else_is_served(client: TestClient, name: str) -> None:
    assert client.get(f"/playground/{name}").status_code == 404


@pytest.mark.parametrize("dev", [False, True])
def test_it_is_told_prices_for_developers_alone(dev: bool) -> None:
    models = {"m": ModelEntry(upstream="openai/m", price=Price(input=1, output=2))}
    with TestClient(create_app(Settings(models=models, default_model="m", playground=True, dev=dev))) as client:
        [model] = client.get("/playground/config.json").json()["models"]
    assert ("price" in model) == dev


def test_it_is_told_names_and_bounds_and_nothing_more(client: TestClient) -> None:
    config = client.get("/playground/config.json").json()
    assert config.keys() == {"models", "default_model", "limits", "key_required"}
    assert {name for model in config["models"] for name in model} == {"name", "needs", "kind"}
    assert {model["kind"] for model in config["models"]} <= {"demo", "own", None}
