"""The manifests against Kubernetes' own schemas and KubeRay's."""

from __future__ import annotations

import copy
import functools
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from tests.k8s.conftest import K8S, OVERLAYS, ROOT
from tests.k8s.rendering import Manifest, Refused, pod_templates, render

KUBERNETES = "1.33"
"""The oldest release that the package has schemas of: what is valid there is in later ones."""

# Kinds that operators define; KubeRay's are checked below.
FOREIGN = {"RayCluster", "RayJob", "PodMonitor", "PrometheusRule"}

CRDS = Path(
    os.environ.get("RAYVISOR_KUBERAY_CRDS") or ROOT.parent / "shared" / "data" / "kuberay-crds"
)
needs_crds = pytest.mark.skipif(
    not (CRDS / "ray.io_rayclusters.yaml").is_file(),
    reason=f"no definitions of KubeRay in {CRDS}: name their folder in RAYVISOR_KUBERAY_CRDS",
)


def closed(schema: Any) -> Any:  # noqa: ANN401 - JSON
    """The schema, refusing what it does not name, as the server does with strict validation."""
    if isinstance(schema, list):
        return [closed(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: closed(value) for key, value in schema.items()}
    named = isinstance(schema.get("properties"), dict) and schema.get("type") == "object"
    if named and not schema.get("x-kubernetes-preserve-unknown-fields"):
        made.setdefault("additionalProperties", False)
    return made


@functools.cache
def kuberays(kind: str) -> jsonschema.protocols.Validator:
    """A validator of one of KubeRay's kinds, version v1."""
    text = (CRDS / f"ray.io_{kind.lower()}s.yaml").read_text()
    (version,) = (
        v for v in yaml.load(text, Loader=yaml.CSafeLoader)["spec"]["versions"] if v["name"] == "v1"
    )
    schema = closed(version["schema"]["openAPIV3Schema"])
    schema["properties"]["metadata"] = {"type": "object"}  # the server's own
    return jsonschema.Draft202012Validator(schema)


def check(manifest: Manifest) -> None:
    kubernetes_validate.validate(manifest, KUBERNETES, strict=True)


def test_manifests_are_kubernetes(manifests: list[Manifest]) -> None:
    own = [m for m in manifests if m["kind"] not in FOREIGN]
    assert {"Namespace", "ServiceAccount", "PodDisruptionBudget", "NetworkPolicy"} <= {
        m["kind"] for m in own
    }
    for manifest in own:
        check(manifest)


def test_pods_are_kubernetes(cluster: Manifest) -> None:
    templates = pod_templates(cluster)
    assert len(templates) == 2
    for template in templates:
        check({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, **template})


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("spec", "containers", 0, "comand"), ["x"]),
        (("spec", "containers", 0, "readinessProbe", "periodSeconds"), "10"),
        (("spec", "securityContext", "seccompProfile"), {}),
    ],
)
def test_a_mistake_in_a_pod_is_found(path: tuple[str | int, ...], value: object) -> None:
    (cluster,) = (m for m in render(K8S / "overlays/local") if m["kind"] == "RayCluster")
    template = copy.deepcopy(pod_templates(cluster)[0])
    at: Any = template
    for part in path[:-1]:
        at = at[part]
    at[path[-1]] = value
    with pytest.raises(kubernetes_validate.ValidationError):
        check({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, **template})


@needs_crds
def test_cluster_is_kuberays(cluster: Manifest) -> None:
    kuberays("RayCluster").validate(cluster)


@needs_crds
def test_examples_are_kuberays(examples: list[Manifest]) -> None:
    assert {m["kind"] for m in examples} == {"RayJob"}
    for job in examples:
        kuberays("RayJob").validate(job)


@needs_crds
@pytest.mark.parametrize(
    "wrong",
    [
        {"rayVersions": "2.60.0"},
        {"authOptions": {"mode": "password"}},
        {"gcsFaultToleranceOptions": {"redisAdress": "redis:6379"}},
    ],
)
def test_a_mistake_in_a_cluster_is_found(wrong: Manifest) -> None:
    (cluster,) = (m for m in render(K8S / "overlays/local") if m["kind"] == "RayCluster")
    with pytest.raises(jsonschema.ValidationError):
        kuberays("RayCluster").validate({**cluster, "spec": {**cluster["spec"], **wrong}})


def by_name(manifests: list[Manifest]) -> dict[tuple[str, str], Manifest]:
    return {(m["kind"], m["metadata"]["name"]): m for m in manifests}


def kustomize() -> list[str] | None:
    """The command that builds as this machine's kustomize does, of version 5 or later."""
    for command, version in (
        (["kustomize", "build"], ["kustomize", "version"]),
        (["kubectl", "kustomize"], ["kubectl", "version", "--client", "-o", "json"]),
    ):
        if shutil.which(command[0]):
            done = subprocess.run(version, capture_output=True, text=True, check=False, timeout=60)
            told = done.stdout
            if command[0] == "kubectl" and done.returncode == 0:
                told = json.loads(told).get("kustomizeVersion", "")
            if told.strip().startswith(("v5", "v6")):
                return command
    return None


def test_real_kustomize_builds_the_same(overlay: str) -> None:
    command = kustomize()
    if command is None:
        pytest.skip("neither kubectl nor kustomize (5 or later) is on this machine")
    folder = K8S / "overlays" / overlay
    done = subprocess.run(
        [*command, str(folder)], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    built = [m for m in yaml.safe_load_all(done.stdout) if m is not None]
    assert by_name(built) == by_name(render(folder))


def test_renderer_refuses_what_it_does_not_know(tmp_path: Path) -> None:
    (tmp_path / "kustomization.yaml").write_text("namePrefix: x-\n")
    with pytest.raises(Refused):
        render(tmp_path)


def test_every_overlay_is_tested() -> None:
    assert sorted(p.name for p in (K8S / "overlays").iterdir()) == sorted(OVERLAYS)
