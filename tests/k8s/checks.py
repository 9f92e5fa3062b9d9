"""What no schema tells: do the objects of a set fit together, and do they fit our programs?

Each check yields one sentence for each thing that is wrong.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterator
from dataclasses import fields
from importlib.util import find_spec
from typing import Any
from urllib.parse import urlsplit

import click

from infra.settings import Settings
from jobs.cli.main import cli
from tests.k8s.objects import Document, Pod, environment, named, of_kind, pods, selects
from tests.k8s.schemas import schema_problems

Objects = list[Document]
OURS = "chorale"
"""The image with our command line as its entry point."""
BROUGHT_ALONG = {("Secret", "chorale-database"), ("Secret", "chorale-tokens"), ("ConfigMap", "chorale-store")}
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


def problems(objects: Objects) -> list[str]:
    """All that is wrong with a set."""
    found = [problem for document in objects for problem in schema_problems(document)]
    # The others take the shapes for granted.
    return found or [problem for check in CHECKS for problem in check(objects) if not _pending(problem)]


def _pending(problem: str) -> bool:
    """The board and the metrics come from elsewhere; their names are held against them once they are here."""
    board = find_spec("jobs.board") is None and problem.endswith("serve is no command")
    return board or (exported_metrics() is None and problem.endswith("CHORALE_METRICS_ADDRESS"))


def selectors(objects: Objects) -> Iterator[str]:
    every = pods(objects)
    for document in of_kind(objects, "Deployment", "StatefulSet"):
        labels = document["spec"]["template"]["metadata"]["labels"]
        if not selects(document["spec"]["selector"], labels):
            yield f"{_name(document)} does not select its own pods"
        others = [pod for pod in every if pod.owner is not document]
        if any(selects(document["spec"]["selector"], pod.labels) for pod in others):
            yield f"{_name(document)} selects pods of others"
    for document, where, selector in _selectors(objects):
        if not any(selects(selector, pod.labels) for pod in every):
            yield f"{_name(document)}: {where} selects no pod"
    for pod in every:
        for selector in _of_mates(pod.spec):
            if not selects(selector, pod.labels):
                yield f"{pod.name} seeks the company of others than its own kind"


def _selectors(objects: Objects) -> Iterator[tuple[Document, str, Document]]:
    for document in of_kind(objects, "Service"):
        yield document, "selector", {"matchLabels": document["spec"]["selector"]}
    for document in of_kind(objects, "PodDisruptionBudget", "PodMonitor"):
        yield document, "selector", document["spec"]["selector"]
    for document in of_kind(objects, "NetworkPolicy"):
        yield document, "podSelector", document["spec"]["podSelector"]
        for rule in document["spec"].get("ingress", []):
            for peer in rule.get("from", []):
                if "podSelector" in peer:
                    yield document, "from", peer["podSelector"]


def _of_mates(spec: Document) -> Iterator[Document]:
    terms = spec.get("affinity", {}).get("podAffinity", {})
    for term in terms.get("preferredDuringSchedulingIgnoredDuringExecution", []):
        yield term["podAffinityTerm"]["labelSelector"]
    for constraint in spec.get("topologySpreadConstraints", []):
        yield constraint["labelSelector"]


def ports(objects: Objects) -> Iterator[str]:
    every = pods(objects)
    for document, port, selector in _wanted_ports(objects):
        for pod in every:
            if selects(selector, pod.labels) and pod.port(port) is None:
                yield f"{_name(document)}: {pod.name} has no port {port}"
    for pod in every:
        for container in pod.containers:
            yield from _probes(pod, container)
            yield from _listening(objects, pod, container)


def _wanted_ports(objects: Objects) -> Iterator[tuple[Document, object, Document]]:
    for document in of_kind(objects, "Service"):
        for port in document["spec"]["ports"]:
            yield (
                document,
                port.get("targetPort", port["port"]),
                {"matchLabels": document["spec"]["selector"]},
            )
    for document in of_kind(objects, "PodMonitor"):
        for endpoint in document["spec"]["podMetricsEndpoints"]:
            yield document, endpoint["port"], document["spec"]["selector"]
    for document in of_kind(objects, "NetworkPolicy"):
        for rule in document["spec"].get("ingress", []):
            for port in rule.get("ports", []):
                yield document, port["port"], document["spec"]["podSelector"]


def _probes(pod: Pod, container: Document) -> Iterator[str]:
    for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
        for action in container.get(kind, {}).values():
            if isinstance(action, dict) and pod.port(action["port"]) is None:
                yield f"{pod.name}: {kind} asks at port {action['port']}, which is none"


def _listening(objects: Objects, pod: Pod, container: Document) -> Iterator[str]:
    """The ports of a container are those where its program really listens."""
    words, variables = container.get("args", []), environment(objects, pod, container)
    expected = {
        "http": _after(words, "--port"),
        "rendezvous": _after(words, "--master-port"),
        "metrics": variables.get("CHORALE_METRICS_ADDRESS", "").rpartition(":")[2] or None,
        "redis": "6379",
        "postgres": "5432",
    }
    for port in container.get("ports", []):
        if str(port["containerPort"]) != expected[port["name"]]:
            yield f"{pod.name}: nothing listens at {port['name']} {port['containerPort']}"


def let_through(objects: Objects) -> Iterator[str]:
    """Whatever a Service offers is let in by a policy, since nothing is by default."""
    policies = of_kind(objects, "NetworkPolicy")
    for service in of_kind(objects, "Service"):
        for pod in pods(objects):
            if not selects({"matchLabels": service["spec"]["selector"]}, pod.labels):
                continue
            own = [one for one in policies if selects(one["spec"]["podSelector"], pod.labels)]
            for port in service["spec"]["ports"]:
                if not any(_lets(policy, port["targetPort"]) for policy in own):
                    yield f"{_name(service)}: no policy lets anybody reach {port['targetPort']}"


def _lets(policy: Document, port: object) -> bool:
    rules = policy["spec"].get("ingress", [])
    return any("ports" not in rule or port in [one["port"] for one in rule["ports"]] for rule in rules)


def closed_groups(objects: Objects) -> Iterator[str]:
    """Nobody but its mates may reach a rank at any port."""
    for pod in pods(objects):
        if pod.labels.get("app.kubernetes.io/component") not in ("agent", "image"):
            continue
        own = [
            one
            for one in of_kind(objects, "NetworkPolicy")
            if selects(one["spec"]["podSelector"], pod.labels)
        ]
        if not own:
            yield f"{pod.name}: anybody may reach its ranks"
        for rule in (rule for policy in own for rule in policy["spec"].get("ingress", [])):
            peers = [peer.get("podSelector", {}).get("matchLabels", {}) for peer in rule.get("from", [{}])]
            if "ports" not in rule and any(not peer.items() >= _group_of(pod).items() for peer in peers):
                yield f"{pod.name}: others than its mates may reach its ranks"


def _group_of(pod: Pod) -> dict[str, str]:
    keys = ("app.kubernetes.io/component", "app.kubernetes.io/instance")
    return {key: pod.labels[key] for key in keys if key in pod.labels}


def names_and_addresses(objects: Objects) -> Iterator[str]:
    for document in of_kind(objects, "StatefulSet"):
        service = document["spec"].get("serviceName")
        if service is not None and named(objects, "Service", service) is None:
            yield f"{_name(document)}: there is no Service {service}"
    for pod in pods(objects):
        for container in pod.containers:
            for name, value in environment(objects, pod, container).items():
                if name.endswith("_URL"):
                    yield from _service_at(objects, name, value)
    for document in of_kind(objects, "ScaledObject"):
        target = document["spec"]["scaleTargetRef"]
        if named(objects, target["kind"], target["name"]) is None:
            yield f"{_name(document)}: there is no {target['kind']} {target['name']}"


def _service_at(objects: Objects, name: str, url: str) -> Iterator[str]:
    parts = urlsplit(url)
    if parts.scheme in ("s3", "file") or "." in (parts.hostname or "."):
        return
    service = named(objects, "Service", parts.hostname or "")
    if service is None:
        yield f"{name}: there is no Service {parts.hostname}"
    elif parts.port not in [port["port"] for port in service["spec"]["ports"]]:
        yield f"{name}: Service {parts.hostname} has no port {parts.port}"


def groups(objects: Objects) -> Iterator[str]:
    """Pods, ranks, GPUs and names of an image's Job fit each other, and slots fit GPUs."""
    for document in of_kind(objects, "Job", "JobSet"):
        spec, prefix = document["spec"], document["metadata"]["name"]
        if document["kind"] == "JobSet":
            prefix, spec = (
                f"{prefix}-{spec['replicatedJobs'][0]['name']}-0",
                spec["replicatedJobs"][0]["template"]["spec"],
            )
        if spec.get("completionMode") == "Indexed":
            yield from _group(objects, document, prefix, spec)
    for pod in pods(objects):
        for container in pod.containers:
            wanted = container["resources"]["limits"].get("nvidia.com/gpu")
            words = container.get("args", [])
            ranks = _after(words, "--slots") or _after(words, "--ranks")
            if wanted is not None and wanted != ranks:
                yield f"{pod.name}: {ranks} ranks on {wanted} GPUs"


def _group(objects: Objects, document: Document, prefix: str, spec: Document) -> Iterator[str]:
    name, pod = _name(document), spec["template"]["spec"]
    words = pod["containers"][0]["args"]
    most = (_after(words, "--nnodes") or "").rpartition(":")[2]
    if not spec["completions"] == spec["parallelism"] == int(most or 0):
        yield f"{name}: {spec['completions']} completions, {spec['parallelism']} at once, {most} nodes"
    if _after(words, "--master-address") != f"{prefix}-0.{pod['subdomain']}":
        yield f"{name}: {_after(words, '--master-address')} is not the name of its first pod"
    if document["kind"] == "JobSet":
        subdomain = document["spec"]["network"]["subdomain"]
    else:
        service = named(objects, "Service", pod["subdomain"])
        headless = service is not None and service["spec"].get("clusterIP") == "None"
        early = service is not None and service["spec"].get("publishNotReadyAddresses")
        subdomain = pod["subdomain"] if headless and early else None
    if subdomain != pod["subdomain"]:
        yield f"{name}: no headless Service names its pods before they are ready"
    for rule in spec["podFailurePolicy"]["rules"]:
        watched = rule.get("onExitCodes", {}).get("containerName")
        if watched not in (None, pod["containers"][0]["name"]):
            yield f"{name}: podFailurePolicy watches {watched}, which is no container"


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
    known = {f"CHORALE_{field.name.upper()}" for field in fields(Settings)} | FOREIGN_VARIABLES
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
            slots = _after(container.get("args", []), "--slots")
            if given and slots != "0":
                least = int(given) + SIGN_OFF_S
                if pod.spec.get("terminationGracePeriodSeconds", 30) < least:
                    yield f"{pod.name}: is killed before its ranks have kept a checkpoint ({least} s)"


def queueing(objects: Objects) -> Iterator[str]:
    for document in objects:
        queue = document["metadata"].get("labels", {}).get("kueue.x-k8s.io/queue-name")
        if queue is not None and named(objects, "LocalQueue", queue) is None:
            yield f"{_name(document)}: there is no LocalQueue {queue}"
    for document in of_kind(objects, "LocalQueue"):
        if named(objects, "ClusterQueue", document["spec"]["clusterQueue"]) is None:
            yield f"{_name(document)}: there is no ClusterQueue {document['spec']['clusterQueue']}"
    for document in of_kind(objects, "ClusterQueue"):
        for group in document["spec"]["resourceGroups"]:
            for flavor in group["flavors"]:
                covered = [one["name"] for one in flavor["resources"]]
                if (
                    named(objects, "ResourceFlavor", flavor["name"]) is None
                    or covered != group["coveredResources"]
                ):
                    yield f"{_name(document)}: flavor {flavor['name']} is not there or covers other resources"


def metrics(objects: Objects) -> Iterator[str]:
    """Every series in a rule or a query is one that we export, or one that a rule records."""
    known, recorded = exported_metrics(), set()
    asked: list[tuple[Document, str]] = []
    for document in of_kind(objects, "PrometheusRule"):
        for rule in (rule for group in document["spec"]["groups"] for rule in group["rules"]):
            recorded.add(rule.get("record"))
            asked.append((document, rule["expr"]))
    for document in of_kind(objects, "ScaledObject"):
        asked += [(document, trigger["metadata"]["query"]) for trigger in document["spec"]["triggers"]]
    for document, expression in asked:
        for name in sorted(set(re.findall(r"[a-z_]*:[a-z0-9_:]+", expression)) - recorded):
            yield f"{_name(document)}: nothing records {name}"
        if known is not None:
            for name in sorted(set(re.findall(r"(?<![:\w])chorale_[a-z0-9_]+(?!:)\b", expression)) - known):
                yield f"{_name(document)}: nothing exports {name}"


def exported_metrics() -> set[str] | None:
    """The names that a node's /metrics shows; None while the farm has none."""
    if find_spec("infra.metrics") is None:
        return None
    from infra.metrics import every_series

    return {name for series in every_series() for name in series.exported()}


CHECKS: tuple[Callable[[Objects], Iterator[str]], ...] = (
    selectors,
    ports,
    let_through,
    closed_groups,
    names_and_addresses,
    groups,
    commands,
    variables,
    references,
    volumes,
    restricted,
    grace,
    queueing,
    metrics,
)


def _name(document: Document) -> str:
    return f"{document['kind']} {document['metadata']['name']}"


def _after(words: list[str], flag: str) -> str | None:
    return words[words.index(flag) + 1] if flag in words else None


def _bytes(quantity: Any) -> int:
    units = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30}
    return int(quantity[:-2]) * units[quantity[-2:]]
