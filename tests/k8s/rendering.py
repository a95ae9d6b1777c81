"""What `kustomize build` makes of k8s/, for machines without it.

Only what k8s/ uses: resources, components, namespace, labels, images, JSON patches (RFC 6902),
config maps from files. Anything else in a kustomization is refused, so that a manifest cannot be
checked in another form than it is applied in; test_manifests.py compares with the real one.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

Manifest = dict[str, Any]

KNOWN = {
    *("apiVersion", "kind", "namespace", "labels", "resources", "components", "images", "patches"),
    *("configMapGenerator", "generatorOptions"),
}
CLUSTER_WIDE = {"Namespace"}


@dataclass
class Refused(Exception):  # noqa: N818 - what it says, not an error of a program
    """A kustomization uses what this renderer does not know."""

    what: str


@dataclass
class Build:
    """The manifests of one folder, and what its kustomization does to them."""

    folder: Path
    manifests: list[Manifest] = field(default_factory=list)

    def run(self) -> list[Manifest]:
        """Manifests in the order in which they were met."""
        made = yaml.safe_load((self.folder / "kustomization.yaml").read_text())
        unknown = set(made) - KNOWN
        if unknown:
            raise Refused(f"{self.folder}: {sorted(unknown)}")
        for name in made.get("resources", ()):
            self._add(self.folder / name)
        self._generate(made)
        for name in made.get("components", ()):
            self.manifests = Build((self.folder / name).resolve(), self.manifests).run()
        for patch in made.get("patches", ()):
            self._patch(patch)
        for entry in made.get("labels", ()):
            self._label(entry)
        for image in made.get("images", ()):
            self._rename(image)
        for manifest in self.manifests:
            if "namespace" in made and manifest["kind"] not in CLUSTER_WIDE:
                manifest["metadata"]["namespace"] = made["namespace"]
        return self.manifests

    def _add(self, path: Path) -> None:
        if path.is_dir():
            self.manifests += Build(path.resolve()).run()
        else:
            read = [m for m in yaml.safe_load_all(path.read_text()) if m is not None]
            # By way of JSON, so that what an anchor names twice is there twice.
            self.manifests += json.loads(json.dumps(read))

    def _generate(self, made: Manifest) -> None:
        options = made.get("generatorOptions", {})
        generators = made.get("configMapGenerator", ())
        if generators and options.get("disableNameSuffixHash") is not True:
            raise Refused(f"{self.folder}: a config map's name with a hash")
        for entry in generators:
            if set(entry) - {"name", "files", "options"}:
                raise Refused(f"{self.folder}: {sorted(entry)}")
            metadata: Manifest = {"name": entry["name"]}
            labels = entry.get("options", {}).get("labels") or options.get("labels")
            if labels:
                metadata["labels"] = dict(labels)
            data = {Path(name).name: (self.folder / name).read_text() for name in entry["files"]}
            self.manifests.append(
                {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data}
            )

    def _patch(self, patch: Manifest) -> None:
        text = patch["patch"] if "patch" in patch else (self.folder / patch["path"]).read_text()
        target = patch["target"]
        if set(target) - {"kind", "name"}:
            raise Refused(f"{self.folder}: {target}")
        hit = [
            m
            for m in self.manifests
            if m["kind"] == target["kind"] and m["metadata"]["name"] == target["name"]
        ]
        if not hit:
            raise Refused(f"{self.folder}: nothing is {target}")
        for manifest in hit:
            for step in yaml.safe_load(text):
                apply_step(manifest, step)

    def _label(self, entry: Manifest) -> None:
        if set(entry) != {"pairs"}:
            raise Refused(f"{self.folder}: labels {sorted(entry)}")
        for manifest in self.manifests:
            manifest["metadata"].setdefault("labels", {}).update(entry["pairs"])

    def _rename(self, image: Manifest) -> None:
        if set(image) - {"name", "newName", "newTag"}:
            raise Refused(f"{self.folder}: images {sorted(image)}")
        for manifest in self.manifests:
            for container in containers(manifest):
                name, _, tag = container["image"].partition(":")
                if name == image["name"]:
                    new = image.get("newName", name)
                    container["image"] = f"{new}:{image.get('newTag', tag)}"


def apply_step(document: Manifest, step: Manifest) -> None:
    """One operation of RFC 6902: add, replace or remove."""
    *way, last = (p.replace("~1", "/").replace("~0", "~") for p in step["path"].split("/")[1:])
    at: Any = document
    for part in way:
        at = at[int(part)] if isinstance(at, list) else at[part]
    match step["op"], at:
        case "add", list():
            at.insert(len(at) if last == "-" else int(last), step["value"])
        case "add", dict():
            at[last] = step["value"]
        case "replace", list() | dict():
            key = int(last) if isinstance(at, list) else last
            at[key]
            at[key] = step["value"]
        case "remove", list() | dict():
            del at[int(last) if isinstance(at, list) else last]
        case _:
            raise Refused(str(step))


def pod_templates(manifest: Manifest) -> list[Manifest]:
    """The pod templates in a RayCluster, in a RayJob that makes one, or in nothing else."""
    spec = manifest.get("spec", {})
    if manifest["kind"] == "RayJob":
        spec = spec.get("rayClusterSpec", {})
    elif manifest["kind"] != "RayCluster":
        return []
    groups = [spec["headGroupSpec"], *spec["workerGroupSpecs"]] if spec else []
    return [group["template"] for group in groups]


def containers(manifest: Manifest) -> list[Manifest]:
    """Every container of every pod template, those that initialise included."""
    return [
        container
        for template in pod_templates(manifest)
        for kind in ("initContainers", "containers")
        for container in template["spec"].get(kind, ())
    ]


def render(folder: Path) -> list[Manifest]:
    """What `kustomize build` gives for `folder`, without YAML's anchors."""
    return Build(folder.resolve()).run()
