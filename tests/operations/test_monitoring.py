"""Dashboards and alerts ask for what `/metrics` shows: each query parses, and has data in a real Prometheus."""

import contextlib
import json
import math
import re
import shutil
import urllib.parse
import urllib.request
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import copier
import pytest
import yaml

from operations.servers import Process, Program, Stub, answers, free_port, program, session, wait_until
from workspace import ROOT, run

SCRAPE = "1s"
VARIABLES = {"$__rate_interval": "1m", "$model": ".*", "$job": "backend", "$instance": ".*"}
THRESHOLD = re.compile(r"\s*(==|!=|>|<|>=|<=)\s*[\d.]+\s*(#.*)?$")

MONITORING = ROOT / "template/monitoring"
PANELS = [
    (panel["title"], target["expr"], target["legendFormat"])
    for panel in json.loads((MONITORING / "grafana/dashboards/backend.json").read_text("utf-8"))["panels"]
    for target in panel.get("targets", ())
]
ALERTS = [
    (rule["alert"], rule["expr"])
    for group in yaml.safe_load((MONITORING / "alerts.yml").read_text("utf-8"))["groups"]
    for rule in group["rules"]
]


def has_counted(prometheus: "Prometheus", counter: str, number: int) -> bool:
    return prometheus.ask(f"sum({counter})") == [({}, number)]


def with_values(query: str) -> str:
    """Return a dashboard's query with values in place of Grafana's variables."""
    for name, value in VARIABLES.items():
        query = query.replace(name, value)
    return query


class Prometheus:
    """A running Prometheus."""

    def __init__(self, url: str) -> None:
        self._url = url

    def get(self, path: str, **parameters: str) -> Any:
        """Return what a path of its API says."""
        query = urllib.parse.urlencode(parameters)
        with urllib.request.urlopen(f"{self._url}/api/v1/{path}?{query}", timeout=30) as answer:  # noqa: S310 - http
            return json.loads(answer.read())["data"]

    def ask(self, query: str) -> list[tuple[dict[str, str], float]]:
        """Return the labels and values of a query's result."""
        return [(row["metric"], float(row["value"][1])) for row in self.get("query", query=query)["result"]]


@pytest.fixture(scope="module")
def prometheus(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """Prometheus as compose.yaml starts it, after it has scraped a session twice."""
    folder = tmp_path_factory.mktemp("monitoring")
    copier.run_copy(str(source), folder / "project", defaults=True, quiet=True)
    services = yaml.safe_load((folder / "project/compose.yaml").read_text("utf-8"))["services"]
    service = services["prometheus"]
    port = free_port()
    with contextlib.ExitStack() as stack:
        stub = stack.enter_context(Stub())
        env = {f"APP_{name.upper()}": json.dumps(value) for name, value in session.settings(stub).items()}
        metrics = free_port()
        env |= {"APP_DEFAULT_MODEL": "main", "APP_METRICS_PORT": str(metrics)}
        process = stack.enter_context(Process(env=env))
        mounts = {"/prometheus": folder / "data"}
        for volume in service["volumes"]:
            host, inside = volume.removesuffix(":ro").split(":")
            if host.startswith("./"):
                mounts[inside] = Path(shutil.copy(folder / "project" / host, folder))
        configuration = mounts["/etc/prometheus/prometheus.yml"]
        text = configuration.read_text("utf-8")
        at = f"127.0.0.1:{services['backend']['environment']['APP_METRICS_PORT']}"
        assert at in text
        configuration.write_text(text.replace(at, f"127.0.0.1:{metrics}").replace("15s", SCRAPE))
        command = [f"--web.listen-address=127.0.0.1:{port}"]
        for option in service["command"]:
            name, _, path = option.partition("=")
            command.append(f"{name}={mounts[path]}")
        url = f"http://127.0.0.1:{port}"
        stack.enter_context(
            Program(program("prometheus"), *command, ready=lambda: answers(f"{url}/-/ready"), cwd=folder)
        )
        prometheus = Prometheus(url)
        for times in (1, 2):  # a rate is one between two scrapes
            session.play(process.url, stub)
            wait_until(partial(has_counted, prometheus, "llm_retries_total", 3 * times))
        yield prometheus


def test_prometheus_takes_its_configuration_and_its_rules() -> None:
    run(program("promtool"), "check", "config", MONITORING / "prometheus.yml", cwd=ROOT)


def test_every_query_of_the_dashboard_parses(tmp_path: Path) -> None:
    rules = [{"record": f"panel:{number}", "expr": with_values(query)} for number, (_, query, _) in enumerate(PANELS)]
    assert len(rules) > 15
    file = tmp_path / "panels.yml"
    file.write_text(json.dumps({"groups": [{"name": "panels", "rules": rules}]}))
    assert f"{len(rules)} rules found" in run(program("promtool"), "check", "rules", file, cwd=tmp_path)
    file.write_text(
        json.dumps({"groups": [{"name": "panels", "rules": [{"record": "a:b", "expr": "sum(rate(a[1m])"}]}]})
    )
    with pytest.raises(AssertionError, match="parse error"):
        run(program("promtool"), "check", "rules", file, cwd=tmp_path)


def test_alerts_fire_on_what_they_are_for(tmp_path: Path) -> None:
    shutil.copy(MONITORING / "alerts.yml", tmp_path)
    cases = Path(shutil.copy(Path(__file__).with_name("alerts.yml"), tmp_path / "cases.yml"))
    assert "SUCCESS" in run(program("promtool"), "test", "rules", cases, cwd=tmp_path)
    tried = {
        case["alertname"] for test in yaml.safe_load(cases.read_text())["tests"] for case in test["alert_rule_test"]
    }
    assert tried == {name for name, _ in ALERTS}


@pytest.mark.parametrize(("title", "query", "legend"), PANELS, ids=[f"{p[0]}-{p[2]}" for p in PANELS])
def test_every_query_of_the_dashboard_has_data(prometheus: Prometheus, title: str, query: str, legend: str) -> None:
    rows = prometheus.ask(with_values(query))
    assert [value for _, value in rows if not math.isnan(value)], title
    for labels, _ in rows:
        assert labels.keys() == set(re.findall(r"{{(\w+)}}", legend)), "the legend tells the rows apart"


@pytest.mark.parametrize(("name", "query"), ALERTS, ids=[name for name, _ in ALERTS])
def test_every_alert_has_data_to_go_by(prometheus: Prometheus, name: str, query: str) -> None:
    measured = THRESHOLD.sub("", query.strip())
    assert measured != query.strip()
    rows = prometheus.ask(measured)
    assert [value for _, value in rows if not math.isnan(value)], name


def test_prometheus_evaluates_every_rule_and_finds_its_target(prometheus: Prometheus) -> None:
    wait_until(lambda: {health for _, health in rules_of(prometheus)} == {"ok"})
    assert [name for name, _ in rules_of(prometheus)] == [name for name, _ in ALERTS]
    [target] = prometheus.get("targets")["activeTargets"]
    assert (target["health"], target["lastError"]) == ("up", "")


def test_the_dashboards_list_of_models_has_them_all(prometheus: Prometheus) -> None:
    dashboard = json.loads((MONITORING / "grafana/dashboards/backend.json").read_text("utf-8"))
    [variable] = [v for v in dashboard["templating"]["list"] if v["name"] == "model"]
    [(metric, label)] = re.findall(r"label_values\((.+), (\w+)\)", with_values(variable["query"]["query"]))
    assert set(prometheus.get(f"label/{label}/values", **{"match[]": metric})) == {
        "main",
        "spare",
        "fragile",
        "dear",
        "demo",
    }


def test_every_query_of_the_dashboard_asks_one_service_and_the_instances_that_are_chosen() -> None:
    for title, query, _ in PANELS:
        metrics = len(re.findall(r"\w+_\w+{", query))
        assert metrics == query.count('job=~"$job", instance=~"$instance"') >= 1, title


def rules_of(prometheus: Prometheus) -> list[tuple[str, str]]:
    return [(rule["name"], rule["health"]) for group in prometheus.get("rules")["groups"] for rule in group["rules"]]
