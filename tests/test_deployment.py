"""The files of containers and Kubernetes pass the tools that read them, and agree with each other and with the app."""

import json
import re
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from shapes import SHAPES
from workspace import ROOT, Render, run, tree

TOOLS = Path(sys.executable).parent
Documents = dict[str, dict[str, Any]]


def documents(folder: Path) -> Documents:
    """Return Kubernetes' objects by kind and name; kustomizations by their folder's name."""
    found = {}
    for path in sorted(folder.rglob("*.yaml")):
        for document in yaml.safe_load_all(path.read_text("utf-8")):
            name = document["metadata"]["name"] if "metadata" in document else path.parent.name
            found[f"{document['kind']}/{name}"] = document
    return found


def constant(module: str, name: str) -> float:
    """Return a number that a module of the app sets, without importing the app."""
    [value] = re.findall(rf"^{name} = ([\d.]+)", (ROOT / f"template/app/{module}.py").read_text("utf-8"), re.MULTILINE)
    return float(value)


def way_out() -> float:
    """Return the seconds between SIGTERM and the end of a process that has open streams."""
    [grace] = re.findall(
        r"shutdown_grace: float = Field\(default=(\d+)", (ROOT / "template/app/config.py").read_text("utf-8")
    )
    return float(grace) + constant("http/draining", "AFTER_EXIT") + constant("http/serving", "SERVER_BACKSTOP")


@pytest.fixture
def project(render: Render) -> Path:
    """A project with all that can be had."""
    return render(kubernetes=True)


@pytest.fixture
def kubernetes(project: Path) -> Documents:
    return documents(project / "k8s")


@pytest.fixture
def pod(kubernetes: Documents) -> dict[str, Any]:
    spec: dict[str, Any] = kubernetes["Deployment/backend"]["spec"]["template"]["spec"]
    return spec


@pytest.fixture
def compose(project: Path) -> dict[str, Any]:
    services: dict[str, Any] = yaml.safe_load((project / "compose.yaml").read_text("utf-8"))["services"]
    return services


# The tools that read them.


@pytest.fixture(scope="module")
def checked() -> list[dict[str, bytes]]:
    """Files in which nothing was found. Most shapes have the same."""
    return []


@pytest.mark.parametrize("answers", SHAPES.values(), ids=SHAPES)
def test_the_checkers_find_nothing_in_any_shape(
    render: Render, checked: list[dict[str, bytes]], answers: dict[str, str | bool]
) -> None:
    project = render(**answers)
    assert (project / "Dockerfile").exists() == (answers.get("container", True) is True)
    assert (project / "k8s").exists() == (answers.get("kubernetes", False) is True)
    names = ("Dockerfile", "compose.yaml", "k8s/")
    if (files := {name: text for name, text in tree(project).items() if name.startswith(names)}) in checked:
        return
    if (project / "Dockerfile").exists():
        run(TOOLS / "hadolint", project / "Dockerfile", cwd=project)
        schema = ("--builtin-schema", "vendor.compose-spec")
        run(TOOLS / "check-jsonschema", *schema, project / "compose.yaml", cwd=project)
    if (project / "k8s").exists():
        objects = sorted(path for path in (project / "k8s").rglob("*.yaml") if path.name != "kustomization.yaml")
        run(TOOLS / "kubernetes-validate", "--strict", "--quiet", *objects, cwd=project)
    checked.append(files)


def test_the_checkers_are_seen_to_find_something(project: Path) -> None:
    (project / "Dockerfile").write_text("FROM python\nRUN cd /\n")
    with pytest.raises(AssertionError, match="DL3006"):
        run(TOOLS / "hadolint", project / "Dockerfile", cwd=project)
    (project / "compose.yaml").write_text("services: {backend: {imagee: x}}\n")
    with pytest.raises(AssertionError, match="imagee"):
        run(
            *(TOOLS / "check-jsonschema", "--builtin-schema", "vendor.compose-spec", project / "compose.yaml"),
            cwd=project,
        )
    service = project / "k8s/base/service.yaml"
    service.write_text(service.read_text().replace("targetPort", "targetport"))
    with pytest.raises(AssertionError, match="targetport"):
        run(TOOLS / "kubernetes-validate", "--strict", service, cwd=project)


@pytest.mark.parametrize("slug", ["My.Back_end-2", "x", "0", "a..b", "n" * 90])
def test_any_short_name_is_a_name_for_images_projects_and_namespaces(render: Render, slug: str) -> None:
    project = render(kubernetes=True, project_slug=slug)
    compose = yaml.safe_load((project / "compose.yaml").read_text("utf-8"))
    overlay = documents(project / "k8s/overlays")["Kustomization/production"]
    image = r"[a-z0-9]+(-[a-z0-9]+)*"
    assert re.fullmatch(image, compose["name"])
    assert re.fullmatch(image, compose["services"]["backend"]["image"])
    assert re.fullmatch(rf"registry\.example\.com/{image}", overlay["images"][0]["newName"])
    assert re.fullmatch(image, overlay["namespace"])
    assert len(overlay["namespace"]) <= 63


# They agree with each other.


def test_the_base_brings_all_of_its_files_and_the_overlay_the_base(project: Path, kubernetes: Documents) -> None:
    base = kubernetes["Kustomization/base"]
    [generated] = base["configMapGenerator"]
    listed = {"kustomization.yaml", *base["resources"], *generated["files"]}
    assert listed == {path.name for path in (project / "k8s/base").iterdir()}
    overlay = kubernetes["Kustomization/production"]
    folder = project / "k8s/overlays/production"
    assert [(folder / resource).resolve() for resource in overlay["resources"]] == [(project / "k8s/base").resolve()]
    images = {c["image"] for d in kubernetes.values() if d["kind"] == "Deployment" for c in containers(d)}
    assert {image["name"] for image in overlay["images"]} <= images
    for patch in overlay["patches"]:
        assert f"{patch['target']['kind']}/{patch['target']['name']}" in kubernetes
        for operation in yaml.safe_load(patch["patch"]):
            target: Any = kubernetes[f"{patch['target']['kind']}/{patch['target']['name']}"]
            for step in operation["path"].strip("/").split("/"):
                target = target[step]


def containers(deployment: dict[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = deployment["spec"]["template"]["spec"]["containers"]
    return found


def test_every_selector_finds_a_deployment(kubernetes: Documents) -> None:
    labels = {
        document["metadata"]["name"]: document["spec"]["template"]["metadata"]["labels"]
        for document in kubernetes.values()
        if document["kind"] == "Deployment"
    }
    for document in kubernetes.values():
        spec, name = document.get("spec", {}), document.get("metadata", {}).get("name")
        for selector in (spec.get("selector"), spec.get("podSelector")):
            if selector:
                assert selector.get("matchLabels", selector) == labels[name], name
    scaled = kubernetes["HorizontalPodAutoscaler/backend"]["spec"]["scaleTargetRef"]
    assert f"{scaled['kind']}/{scaled['name']}" in kubernetes
    assert "replicas" not in kubernetes["Deployment/backend"]["spec"], "the autoscaler sets them"


def test_every_named_port_is_one_of_the_container(kubernetes: Documents) -> None:
    for name in ("backend", "valkey"):
        [container] = containers(kubernetes[f"Deployment/{name}"])
        ports = {port["name"] for port in container["ports"]}
        named = {port["targetPort"] for port in kubernetes[f"Service/{name}"]["spec"]["ports"]}
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            action = container.get(probe, {})
            named |= {action[kind]["port"] for kind in ("httpGet", "tcpSocket") if kind in action}
        assert named == ports


def test_the_settings_are_mounted_where_the_app_is_told_to_look(kubernetes: Documents, pod: dict[str, Any]) -> None:
    [container] = pod["containers"]
    [generated] = kubernetes["Kustomization/base"]["configMapGenerator"]
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert volumes["settings"]["configMap"]["name"] == generated["name"]
    env = {item["name"]: item["value"] for item in container["env"]}
    assert env["APP_SETTINGS_FILE"] == f"{mounts['settings']}/{generated['files'][0]}"
    assert volumes.keys() == mounts.keys()


def test_the_limits_are_counted_in_the_valkey_that_comes_along(
    project: Path, compose: dict[str, Any], kubernetes: Documents
) -> None:
    settings = tomllib.loads((project / "k8s/base/settings.toml").read_text("utf-8"))
    [port] = kubernetes["Service/valkey"]["spec"]["ports"]
    assert settings["limit_storage"] == f"async+valkey://valkey:{port['port']}"
    assert compose["backend"]["environment"]["APP_LIMIT_STORAGE"] == settings["limit_storage"]
    assert "valkey" in compose


def test_grafana_finds_its_dashboard_and_prometheus(project: Path, compose: dict[str, Any]) -> None:
    provisioning = project / "monitoring/grafana/provisioning"
    [source] = yaml.safe_load((provisioning / "datasources/prometheus.yml").read_text())["datasources"]
    [provider] = yaml.safe_load((provisioning / "dashboards/backend.yml").read_text())["providers"]
    mounts = dict(volume.removesuffix(":ro").split(":") for volume in compose["grafana"]["volumes"])
    assert mounts["./monitoring/grafana/provisioning"] == "/etc/grafana/provisioning"
    assert mounts["./monitoring/grafana/dashboards"] == provider["options"]["path"]
    home = Path(compose["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"])
    assert (project / "monitoring/grafana/dashboards" / home.relative_to(provider["options"]["path"])).exists()
    assert source["url"] == "http://backend:9090"
    assert compose["prometheus"]["network_mode"] == "service:backend"
    assert "127.0.0.1:9090:9090" in compose["backend"]["ports"]


def test_every_file_that_compose_mounts_exists(project: Path, compose: dict[str, Any]) -> None:
    mounted = [v.split(":")[0] for service in compose.values() for v in service.get("volumes", ()) if v[0] == "."]
    assert mounted
    assert [path for path in mounted if not (project / path).exists()] == []


def test_compose_listens_on_this_machine_alone(compose: dict[str, Any]) -> None:
    assert all(port.startswith("127.0.0.1:") for service in compose.values() for port in service.get("ports", ()))


# They agree with the app.


def test_what_stops_the_app_waits_until_open_streams_have_ended(pod: dict[str, Any], compose: dict[str, Any]) -> None:
    [container] = pod["containers"]
    before = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert pod["terminationGracePeriodSeconds"] >= before + way_out() + 5
    assert int(compose["backend"]["stop_grace_period"].removesuffix("s")) >= way_out() + 5


def test_a_pod_is_out_of_its_service_before_it_drains(pod: dict[str, Any]) -> None:
    [container] = pod["containers"]
    assert container["lifecycle"]["preStop"]["sleep"]["seconds"] >= 5


def test_no_service_injects_variables_that_look_like_settings(kubernetes: Documents, pod: dict[str, Any]) -> None:
    assert pod["enableServiceLinks"] is False
    assert "Service/app" not in kubernetes


def test_pods_and_image_agree_on_a_user_who_is_not_root(project: Path, pod: dict[str, Any]) -> None:
    [user] = re.findall(r"^USER (\d+):(\d+)$", (project / "Dockerfile").read_text("utf-8"), re.MULTILINE)
    assert (pod["securityContext"]["runAsUser"], pod["securityContext"]["runAsGroup"]) == tuple(map(int, user))
    assert "0" not in user


def test_the_models_that_the_documentation_shows_can_be_set(tmp_path: Path) -> None:
    shown = re.findall(
        r"^```toml\n(.*?)^```", (ROOT / "template/docs/scaling.md").read_text("utf-8"), re.MULTILINE | re.DOTALL
    )
    assert shown
    file = tmp_path / "settings.toml"
    for text in shown:
        file.write_text('default_model = "qwen"\n' + text)
        load = "from app.environment import load_settings; print(*load_settings().models)"
        environment = {"PATH": "/usr/bin:/bin", "APP_SETTINGS_FILE": str(file), "APP_ENV_FILE": ""}
        assert run(sys.executable, "-c", load, cwd=ROOT / "template", env=environment) == "qwen small\n"


def test_the_schema_is_migrated_before_anything_serves(render: Render) -> None:
    project = render(database=True, kubernetes=True)
    found = documents(project / "k8s")
    pod = found["Deployment/backend"]["spec"]["template"]["spec"]
    [migration], [backend] = pod["initContainers"], pod["containers"]
    assert (migration["image"], migration["args"]) == (backend["image"], ["migrate"])
    assert (migration["env"], migration["volumeMounts"]) == (backend["env"], backend["volumeMounts"][:1])
    assert "postgres.yaml" in found["Kustomization/base"]["resources"]
    services = yaml.safe_load((project / "compose.yaml").read_text("utf-8"))["services"]
    assert services["backend"]["depends_on"]["migrate"] == {"condition": "service_completed_successfully"}
    assert services["migrate"]["command"] == ["migrate"]
    address = services["backend"]["environment"]["APP_DATABASE_URL"]
    assert services["migrate"]["environment"]["APP_DATABASE_URL"] == address
    ignored = (project / ".dockerignore").read_text("utf-8").splitlines()
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", (project / "Dockerfile").read_text("utf-8"), re.MULTILINE)
    assert {"migrations", "alembic.ini"} <= {name for names in copied for name in names.split()}
    assert {"!migrations", "!alembic.ini"} <= set(ignored)


def test_the_pods_ask_for_what_the_documentation_says(pod: dict[str, Any]) -> None:
    requests = pod["containers"][0]["resources"]["requests"]
    assert requests == {"cpu": "500m", "memory": "384Mi"}
    scaling = " ".join((ROOT / "template/docs/scaling.md").read_text("utf-8").split())
    assert "ask for half a core and 384 MB. At 70 % of that half, where the autoscaler adds another" in scaling


def test_the_image_gets_only_what_is_listed(project: Path) -> None:
    ignored = (project / ".dockerignore").read_text("utf-8").splitlines()
    rules = [line for line in ignored if not line.startswith("#")]
    assert rules[0] == "*"
    let_in = {rule.removeprefix("!") for rule in rules if rule.startswith("!")}
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", (project / "Dockerfile").read_text("utf-8"), re.MULTILINE)
    assert {name for names in copied for name in names.split()} == let_in


def test_the_dashboard_is_whole(project: Path) -> None:
    dashboard = json.loads((project / "monitoring/grafana/dashboards/backend.json").read_text("utf-8"))
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    covered: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert place["x"] + place["w"] <= 24
        assert not cells & covered, panel["title"]
        covered |= cells
        if panel["type"] != "row":
            assert panel["description"]
            assert {target["datasource"]["uid"] for target in panel["targets"]} == {"${datasource}"}
    assert {variable["name"] for variable in dashboard["templating"]["list"]} == {
        "datasource",
        "job",
        "instance",
        "model",
    }
