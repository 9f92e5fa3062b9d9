"""What is asked of each pod by itself: its programs, its variables, its volumes, and what it may do."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from typing import Any

import click

from infra.settings import Settings
from jobs.cli.main import cli
from tests.k8s.objects import Document, Pod, environment, named, pods

Objects = list[Document]
OURS = "chorale"
"""The image with our command line as its entry point."""
BROUGHT_ALONG = {
    ("Secret", "chorale-database"),
    ("Secret", "chorale-tokens"),
    ("Secret", "chorale-group"),
    ("ConfigMap", "chorale-store"),
}
"""What README.md has people make; secrets are in no file of ours."""
FOREIGN_VARIABLES = {
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_DEFAULT_REGION",
    "NCCL_IB_HCA",
    "NCCL_SOCKET_IFNAME",
    "PGDATA",
    "POSTGRES_USER",
    "POSTGRES_PASSWORD",
    "POSTGRES_DB",
    "REDIS_PASSWORD",
}
SIGN_OFF_S = 20
"""A preStop takes a few seconds, and so does an agent's end after its ranks'."""


def commands(objects: Objects) -> Iterator[str]:
    """Whatever runs our image is parsed by our own command line."""
    for pod in pods(objects):
        for container in pod.containers:
            if container["image"].partition(":")[0] != OURS:
                continue
            hook = container.get("lifecycle", {}).get("preStop", {}).get("exec", {}).get("command")
            lines = [container.get("args", []), *([hook[1:]] if hook else [])]
            if container.get("command") or (hook and hook[0] != "chorale"):
                yield f"{pod.name}: {container['name']} bypasses the image's entry point"
            for words in lines:
                yield from _parsed(pod, words)


def _parsed(pod: Pod, words: list[str]) -> Iterator[str]:
    line = shlex.join(words)
    words = [word.replace("$(JOB_COMPLETION_INDEX)", "0") for word in words]
    command: click.Command = cli
    while isinstance(command, click.Group):
        if words[0] not in command.commands:
            yield f"{pod.name}: chorale {line}: {words[0]} is no command"
            return
        command, words = command.commands[words[0]], words[1:]
    try:
        command.make_context(line, words)
    except click.ClickException as exc:
        yield f"{pod.name}: chorale {line}: {exc.format_message()}"


def variables(objects: Objects) -> Iterator[str]:
    known = {f"CHORALE_{name.upper()}" for name in Settings.model_fields} | FOREIGN_VARIABLES
    for pod in pods(objects):
        for container in pod.containers:
            given = set(environment(objects, pod, container)) | {
                one["name"] for one in container.get("env", [])
            }
            for name in sorted(given - known):
                yield f"{pod.name}: nobody knows the variable {name}"
            for name in re.findall(r"\$\((\w+)\)", shlex.join(container.get("args", []))):
                if name not in given | {"JOB_COMPLETION_INDEX", "CHORALE_STORE_URL"}:
                    yield f"{pod.name}: the variable {name} is not set"


def references(objects: Objects) -> Iterator[str]:
    """Whatever a pod names is there, or is optional, or is what people bring along."""
    for pod in pods(objects):
        for kind, name, optional in _named_by(pod):
            here = named(objects, kind, name) is not None or (kind, name) in BROUGHT_ALONG
            if not here and not optional:
                yield f"{pod.name}: there is no {kind} {name}"


def _named_by(pod: Pod) -> Iterator[tuple[str, str, bool]]:
    if "serviceAccountName" in pod.spec:
        yield "ServiceAccount", pod.spec["serviceAccountName"], False
    for container in pod.containers:
        for source in container.get("envFrom", []):
            for kind, key in (("ConfigMap", "configMapRef"), ("Secret", "secretRef")):
                if key in source:
                    yield kind, source[key]["name"], source[key].get("optional", False)
        for variable in container.get("env", []):
            if (key := variable.get("valueFrom", {}).get("secretKeyRef")) is not None:
                yield "Secret", key["name"], key.get("optional", False)
    for volume in pod.spec.get("volumes", []):
        if "configMap" in volume:
            yield "ConfigMap", volume["configMap"]["name"], False
        if "secret" in volume:
            yield "Secret", volume["secret"]["secretName"], False
        if "persistentVolumeClaim" in volume:
            yield "PersistentVolumeClaim", volume["persistentVolumeClaim"]["claimName"], False


def volumes(objects: Objects) -> Iterator[str]:
    for pod in pods(objects):
        templates = pod.owner["spec"].get("volumeClaimTemplates", [])
        there = {volume["name"]: volume for volume in pod.spec.get("volumes", [])}
        there |= {template["metadata"]["name"]: {} for template in templates}
        mounted = {
            mount["name"] for container in pod.containers for mount in container.get("volumeMounts", [])
        }
        if mounted != there.keys():
            yield f"{pod.name}: mounts {sorted(mounted)} of the volumes {sorted(there)}"
        for container in pod.containers:
            in_memory = sum(
                _bytes(there[mount["name"]]["emptyDir"]["sizeLimit"])
                for mount in container.get("volumeMounts", [])
                if there.get(mount["name"], {}).get("emptyDir", {}).get("medium") == "Memory"
            )
            if in_memory * 2 > _bytes(container["resources"]["limits"]["memory"]):
                yield f"{pod.name}: /dev/shm leaves little of its memory"


def restricted(objects: Objects) -> Iterator[str]:
    """Pod Security's `restricted`, a read-only root, and no token for the cluster's API."""
    for pod in pods(objects):
        if pod.spec.get("automountServiceAccountToken") is not False:
            yield f"{pod.name}: gets a token for the cluster's API"
        context = pod.spec.get("securityContext", {})
        if context.get("runAsNonRoot") is not True or context.get("seccompProfile") != {
            "type": "RuntimeDefault"
        }:
            yield f"{pod.name}: may run as root or without a seccomp profile"
        kinds = {"configMap", "emptyDir", "persistentVolumeClaim", "secret", "projected", "downwardAPI"}
        kinds |= {"image"}
        for volume in pod.spec.get("volumes", []):
            if volume.keys() - {"name"} - kinds:
                yield f"{pod.name}: volume {volume['name']} is of a forbidden kind"
        for container in pod.containers:
            if container.get("securityContext") != {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }:
                yield f"{pod.name}: {container['name']} may do more than it needs"


def grace(objects: Objects) -> Iterator[str]:
    for pod in pods(objects):
        for container in pod.containers:
            given = environment(objects, pod, container).get("CHORALE_STOP_S")
            slots = after(container.get("args", []), "--slots")
            if given and slots != "0":
                stop = container.get("lifecycle", {}).get("preStop", {}).get("exec", {}).get("command", [])
                least = int(given) + SIGN_OFF_S + int(after(stop, "--wait") or 0)
                if pod.spec.get("terminationGracePeriodSeconds", 30) < least:
                    yield f"{pod.name}: is killed before its ranks have kept a checkpoint ({least} s)"


def after(words: list[str], flag: str) -> str | None:
    """The word behind a flag."""
    return words[words.index(flag) + 1] if flag in words else None


def _bytes(quantity: Any) -> int:
    units = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30}
    return int(quantity[:-2]) * units[quantity[-2:]]
