"""deploy/: checks of the image and the manifest without Docker and Kubernetes."""

from __future__ import annotations

import inspect
import json
import re
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from yocobit.serving import serve

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
KEY_FILE = "/run/secrets/yocobit-key"


@pytest.fixture(scope="module")
def manifest() -> dict[str, dict]:
    """The manifest's objects by kind."""
    yaml = pytest.importorskip("yaml")
    objects = yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text("utf-8"))
    return {each["kind"]: each for each in objects}


@pytest.fixture(scope="module")
def container(manifest) -> dict:
    [found] = manifest["Deployment"]["spec"]["template"]["spec"]["containers"]
    return found


def instruction(name: str) -> list[str]:
    """The arguments of one of the Dockerfile's instructions that is in JSON."""
    text = (DEPLOY / "Dockerfile").read_text("utf-8")
    [found] = re.findall(rf"^\s*{name} (\[.*\])$", text, re.MULTILINE)
    return json.loads(found)


def test_image_with_the_manifests_options_requires_the_secrets_key(container, tmp_path):
    (tmp_path / "key").write_text("a-key-for-tests\n")
    command, *options = [*instruction("ENTRYPOINT"), *container["args"]]
    options[options.index(KEY_FILE)] = str(tmp_path / "key")
    options[options.index("8080")] = "0"
    assert command == "yocobit"

    with subprocess.Popen(
        [sys.executable, "-m", "yocobit", *options], stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            port = re.search(r":(\d+)\s*$", process.stderr.readline())[1]
            url = f"http://127.0.0.1:{port}"
            python, *check = instruction("CMD")
            check = [argument.replace("http://127.0.0.1:8080", url) for argument in check]
            healthy = subprocess.run([sys.executable, *check], timeout=60)
            answers = [
                httpx.get(url + "/v1/models", headers={"authorization": f"Bearer {key}"})
                for key in ("a-key-for-tests", "another-key")
            ]
        finally:
            process.kill()

    assert python == "python" and healthy.returncode == 0
    assert [answer.status_code for answer in answers] == [200, 401]


def test_probes_get_health_at_the_containers_port(container):
    [port] = container["ports"]

    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container[probe]["httpGet"] == {"path": "/health", "port": port["name"]}
    assert port["containerPort"] == 8080


def test_grace_period_of_the_pod_exceeds_the_drain_time(manifest, container):
    pod = manifest["Deployment"]["spec"]["template"]["spec"]
    _, before_s = container["lifecycle"]["preStop"]["exec"]["command"]
    drain_s = inspect.signature(serve).parameters["drain_s"].default

    assert pod["terminationGracePeriodSeconds"] >= int(before_s) + drain_s + 5


def test_secret_is_mounted_where_the_image_reads_it(manifest, container):
    pod = manifest["Deployment"]["spec"]["template"]["spec"]
    [mount] = [m for m in container["volumeMounts"] if m["mountPath"] == KEY_FILE]
    [volume] = [v for v in pod["volumes"] if v["name"] == mount["name"]]

    assert "secret" in volume and mount["readOnly"]


def test_selectors_match_the_deployments_pods(manifest):
    labels = manifest["Deployment"]["spec"]["template"]["metadata"]["labels"]

    assert manifest["Deployment"]["spec"]["selector"]["matchLabels"] == labels
    assert manifest["Service"]["spec"]["selector"] == labels
    assert manifest["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"] == labels
    ports = manifest["Service"]["spec"]["ports"]
    assert [port["targetPort"] for port in ports] == ["http"]
