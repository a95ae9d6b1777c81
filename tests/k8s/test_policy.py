"""Our own rules for what is applied: least rights, fixed sizes, nothing of the node."""

from __future__ import annotations

import copy
import re
import shlex
from typing import Any

import pytest

from rayvisor.ops import exposition
from rayvisor.runtime import probe
from tests.k8s.conftest import K8S, ROOT
from tests.k8s.rendering import Manifest, containers, pod_templates, render

VOLUMES = {"emptyDir", "configMap", "secret", "projected"}
TAGGED = re.compile(r"[a-z0-9./-]+:(?!latest$)\d[\w.-]*")


def violations(manifest: Manifest) -> list[str]:
    """The rules that a manifest with pods breaks, a line each."""
    found = []
    for template in pod_templates(manifest):
        spec, inside = template["spec"], template["spec"].get("securityContext", {})
        rules = {
            "shares the node's namespaces": any(
                spec.get(key) for key in ("hostNetwork", "hostPID", "hostIPC", "hostUsers")
            ),
            "runs as root": inside.get("runAsNonRoot") is not True or not inside.get("runAsUser"),
            "no seccomp": inside.get("seccompProfile", {}).get("type") != "RuntimeDefault",
            "has a token": spec.get("automountServiceAccountToken") is not False,
            "default account": spec.get("serviceAccountName") in {None, "default"},
            "foreign volume": any(not VOLUMES & set(v) for v in spec.get("volumes", ())),
            "unbounded volume": any(
                "emptyDir" in v and "sizeLimit" not in v["emptyDir"]
                for v in spec.get("volumes", ())
            ),
        }
        found += [rule for rule, broken in rules.items() if broken]
    for container in containers(manifest):
        context, sizes = container.get("securityContext", {}), container.get("resources", {})
        rules = {
            "privileged": context.get("privileged", False),
            "may gain privileges": context.get("allowPrivilegeEscalation") is not False,
            "capabilities": context.get("capabilities") != {"drop": ["ALL"]},
            "writable root": context.get("readOnlyRootFilesystem") is not True,
            "root after all": context.get("runAsUser", 1) == 0
            or context.get("runAsNonRoot", True) is not True,
            "own seccomp": "seccompProfile" in context,
            "node's port": any("hostPort" in p for p in container.get("ports", ())),
            "tag": not TAGGED.fullmatch(container["image"]),
            "not guaranteed": not {"cpu", "memory"} <= set(sizes.get("limits", {}))
            or sizes["limits"] != sizes.get("requests"),
            "unprobed": not {"startupProbe", "readinessProbe", "livenessProbe"} <= set(container),
        }
        found += [rule for rule, broken in rules.items() if broken]
    return found


def test_no_rule_is_broken(manifests: list[Manifest]) -> None:
    for manifest in manifests:
        assert violations(manifest) == []


@pytest.mark.parametrize(
    ("rule", "path", "value"),
    [
        ("shares the node's namespaces", ("hostNetwork",), True),
        ("runs as root", ("securityContext", "runAsNonRoot"), False),
        ("runs as root", ("securityContext", "runAsUser"), 0),
        ("no seccomp", ("securityContext", "seccompProfile"), {"type": "Unconfined"}),
        ("has a token", ("automountServiceAccountToken",), True),
        ("default account", ("serviceAccountName",), "default"),
        ("foreign volume", ("volumes",), [{"name": "x", "hostPath": {"path": "/"}}]),
        ("unbounded volume", ("volumes",), [{"name": "x", "emptyDir": {}}]),
        ("privileged", ("containers", 0, "securityContext", "privileged"), True),
        (
            "may gain privileges",
            ("containers", 0, "securityContext", "allowPrivilegeEscalation"),
            True,
        ),
        (
            "capabilities",
            ("containers", 0, "securityContext", "capabilities"),
            {"drop": ["ALL"], "add": ["SYS_PTRACE"]},
        ),
        ("writable root", ("containers", 0, "securityContext", "readOnlyRootFilesystem"), False),
        ("root after all", ("containers", 0, "securityContext", "runAsUser"), 0),
        ("own seccomp", ("containers", 0, "securityContext", "seccompProfile"), {"type": "x"}),
        ("node's port", ("containers", 0, "ports", 0, "hostPort"), 6379),
        ("tag", ("containers", 0, "image"), "rayvisor"),
        ("tag", ("containers", 0, "image"), "rayvisor:latest"),
        ("not guaranteed", ("containers", 0, "resources", "requests", "cpu"), "100m"),
        ("not guaranteed", ("containers", 0, "resources"), {}),
        ("unprobed", ("containers", 0, "readinessProbe"), None),
    ],
)
def test_a_broken_rule_is_found(rule: str, path: tuple[str | int, ...], value: object) -> None:
    (cluster,) = (m for m in render(K8S / "overlays/local") if m["kind"] == "RayCluster")
    broken = copy.deepcopy(cluster)
    at: Any = broken["spec"]["headGroupSpec"]["template"]["spec"]
    for part in path[:-1]:
        at = at[part]
    if value is None:
        del at[path[-1]]
    else:
        at[path[-1]] = value
    assert violations(broken) == [rule]


def test_only_the_known_kinds(manifests: list[Manifest]) -> None:
    """No role, no binding, no secret comes with it."""
    assert {m["kind"] for m in manifests} <= {
        *("Namespace", "ServiceAccount", "RayCluster", "PodDisruptionBudget", "NetworkPolicy"),
        *("PodMonitor", "PrometheusRule", "ConfigMap"),
    }


def test_namespace_enforces_the_restricted_standard(manifests: list[Manifest]) -> None:
    (namespace,) = (m for m in manifests if m["kind"] == "Namespace")
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"


def test_all_is_in_the_namespace(manifests: list[Manifest], examples: list[Manifest]) -> None:
    for manifest in [*manifests, *examples]:
        if manifest["kind"] != "Namespace":
            assert manifest["metadata"]["namespace"] == "rayvisor"


def test_budget_lets_one_host_leave(manifests: list[Manifest], cluster: Manifest) -> None:
    (budget,) = (m for m in manifests if m["kind"] == "PodDisruptionBudget")
    (group,) = cluster["spec"]["workerGroupSpecs"]
    assert group["minReplicas"] == group["replicas"] == group["maxReplicas"]
    assert budget["spec"]["minAvailable"] == group["replicas"] - 1 >= 1
    assert budget["spec"]["selector"]["matchLabels"] == {
        "ray.io/cluster": cluster["metadata"]["name"],
        "ray.io/node-type": "worker",
    }


def test_hosts_are_spread(cluster: Manifest, overlay: str) -> None:
    (group,) = cluster["spec"]["workerGroupSpecs"]
    spread = {
        c["topologyKey"]: c["whenUnsatisfiable"]
        for c in group["template"]["spec"]["topologySpreadConstraints"]
    }
    expected = {"local": "ScheduleAnyway", "production": "DoNotSchedule"}[overlay]
    assert spread["kubernetes.io/hostname"] == expected


def test_every_host_is_evacuated_within_its_grace(cluster: Manifest) -> None:
    for template in pod_templates(cluster):
        (container,) = template["spec"]["containers"]
        shell, flag, command = container["lifecycle"]["preStop"]["exec"]["command"]
        assert (shell, flag) == ("sh", "-c")
        words = shlex.split(command)
        assert words[:4] == ["exec", "rayvisor", "evacuate", "$RAYVISOR_HOST"]
        timeout_s = int(words[words.index("--timeout") + 1])
        assert timeout_s + 30 <= template["spec"]["terminationGracePeriodSeconds"]
        assert {"fieldPath": "metadata.name"} in [
            v["valueFrom"]["fieldRef"] for v in container["env"] if v["name"] == "RAYVISOR_HOST"
        ]


def test_probes_ask_our_program(cluster: Manifest) -> None:
    for container in containers(cluster):
        asked = {}
        for name in ("startupProbe", "readinessProbe", "livenessProbe"):
            *program, asked[name] = container[name]["exec"]["command"]
            assert program == ["python", "-m", probe.__name__]
            assert container[name]["timeoutSeconds"] > probe.ANSWER_S
        assert asked == {
            "startupProbe": "ready",
            "readinessProbe": "ready",
            "livenessProbe": "live",
        }
        start = container["startupProbe"]
        assert start["periodSeconds"] * start["failureThreshold"] > probe.JOIN_S


def test_network_is_closed_but_for_what_is_named(manifests: list[Manifest]) -> None:
    (policy,) = (m["spec"] for m in manifests if m["kind"] == "NetworkPolicy")
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    for rule, peers in (
        (r, r.get("from") or r.get("to")) for r in policy["ingress"] + policy["egress"]
    ):
        assert peers, "a rule without a peer lets everybody in"
        for peer in peers:
            labels = peer["podSelector"]["matchLabels"]
            assert labels
            assert "ipBlock" not in peer
            own = labels == {"ray.io/cluster": "rayvisor"} and "namespaceSelector" not in peer
            assert own or rule["ports"], "others reach single ports"


def test_what_is_scraped_is_there_and_may_be_reached(
    overlay: str, manifests: list[Manifest], cluster: Manifest
) -> None:
    if overlay != "production":
        assert all(m["kind"] != "PodMonitor" for m in manifests)
        return
    scraped = {
        endpoint["port"]
        for m in manifests
        if m["kind"] == "PodMonitor"
        for endpoint in m["spec"]["podMetricsEndpoints"]
    }
    (policy,) = (m["spec"] for m in manifests if m["kind"] == "NetworkPolicy")
    open_ports = {p["port"] for rule in policy["ingress"] for p in rule.get("ports", ())}
    for container in containers(cluster):
        ports = {p["name"]: p["containerPort"] for p in container["ports"]}
        assert scraped <= set(ports)
        assert {ports[name] for name in scraped} <= open_ports
        assert ports["host-metrics"] == exposition.HOST_PORT
        assert ports["cluster-metrics"] == exposition.CLUSTER_PORT


def test_versions_agree(cluster: Manifest) -> None:
    lock = (K8S / "requirements.txt").read_text()
    ray = re.search(r"^ray==(\S+)", lock, re.MULTILINE)
    assert ray is not None
    assert cluster["spec"]["rayVersion"] == ray[1]
    from rayvisor import __version__

    assert {c["image"].rpartition(":")[2] for c in containers(cluster)} == {__version__}


def test_entry_point_is_the_images(cluster: Manifest) -> None:
    annotations = cluster["metadata"]["annotations"]
    assert annotations["ray.io/overwrite-container-cmd"] == "true"
    dockerfile = (ROOT / "Dockerfile").read_text()
    for container in containers(cluster):
        (command,) = container["command"]
        assert f"k8s/entrypoint /usr/local/bin/{command}\n" in dockerfile
