"""What no schema tells: do the objects of a set fit together, and do they fit our programs?

Each check yields one sentence for each thing that is wrong.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from urllib.parse import urlsplit

from infra.metrics import names
from tests.k8s.objects import Document, Pod, environment, named, of_kind, pods, selects
from tests.k8s.pod_checks import after, commands, grace, references, restricted, variables, volumes
from tests.k8s.schemas import VERSIONS, schema_problems

Objects = list[Document]


def problems(objects: Objects, versions: tuple[str, ...] = VERSIONS) -> list[str]:
    """All that is wrong with a set, for these versions of Kubernetes."""
    found = [problem for document in objects for problem in schema_problems(document, versions)]
    # The others take the shapes for granted.
    return found or [problem for check in CHECKS for problem in check(objects)]


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
        "http": after(words, "--port"),
        "rendezvous": after(words, "--master-port"),
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
        owner = named(objects, target["kind"], target["name"])
        if owner is None:
            yield f"{_name(document)}: there is no {target['kind']} {target['name']}"
        else:
            yield from _scales_by_slots(document, owner)


def _scales_by_slots(document: Document, owner: Document) -> Iterator[str]:
    """An agent more for every so many needed slots as an agent has."""
    slots = after(owner["spec"]["template"]["spec"]["containers"][0]["args"], "--slots")
    for trigger in document["spec"]["triggers"]:
        wanted = trigger["metadata"]["threshold"]
        if wanted != slots:
            yield f"{_name(document)}: an agent for every {wanted} slots, which has {slots}"
    if "replicas" in owner["spec"]:
        yield f"{_name(document)}: {_name(owner)} has a number of replicas of its own"


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
            ranks = after(words, "--slots") or after(words, "--ranks")
            if wanted is None:
                wanted = _claimed_gpus(objects, pod, container)
            if wanted is not None and wanted != ranks:
                yield f"{pod.name}: {ranks} ranks on {wanted} GPUs"


def _claimed_gpus(objects: Objects, pod: Pod, container: Document) -> str | None:
    """How many GPUs a container gets by its claims; None without one. A claim that is nowhere counts as 0."""
    templates = {one["name"]: one["resourceClaimTemplateName"] for one in pod.spec.get("resourceClaims", [])}
    counts = []
    for claim in container["resources"].get("claims", []):
        template = named(objects, "ResourceClaimTemplate", templates.get(claim["name"], ""))
        requests = [] if template is None else template["spec"]["spec"]["devices"]["requests"]
        counts.append(sum(each["exactly"]["count"] for each in requests))
    return str(sum(counts)) if counts else None


def gangs(objects: Objects) -> Iterator[str]:
    """A group that starts as a whole is the whole group."""
    for document in of_kind(objects, "Job"):
        policy = document["spec"].get("scheduling", {}).get("schedulingPolicy", {})
        if "gang" in policy and policy["gang"]["minCount"] != document["spec"]["parallelism"]:
            yield f"{_name(document)}: starts with {policy['gang']['minCount']} pods"
    for pod in pods(objects):
        wanted = pod.spec.get("schedulingGroup", {}).get("podGroupName")
        if wanted is not None:
            group = named(objects, "PodGroup", wanted)
            count = None if group is None else group["spec"]["schedulingPolicy"]["gang"]["minCount"]
            most = (after(pod.containers[0]["args"], "--nnodes") or "").rpartition(":")[2]
            if str(count) != most:
                yield f"{pod.name}: PodGroup {wanted} starts with {count} of {most} pods"


def _group(objects: Objects, document: Document, prefix: str, spec: Document) -> Iterator[str]:
    name, pod = _name(document), spec["template"]["spec"]
    words = pod["containers"][0]["args"]
    most = (after(words, "--nnodes") or "").rpartition(":")[2]
    if not spec["completions"] == spec["parallelism"] == int(most or 0):
        yield f"{name}: {spec['completions']} completions, {spec['parallelism']} at once, {most} nodes"
    if after(words, "--master-address") != f"{prefix}-0.{pod['subdomain']}":
        yield f"{name}: {after(words, '--master-address')} is not the name of its first pod"
    if document["kind"] == "JobSet":
        subdomain = document["spec"]["network"]["subdomain"]
    else:
        service = named(objects, "Service", pod["subdomain"])
        headless = service is not None and service["spec"].get("clusterIP") == "None"
        resolvable = service is not None and service["spec"].get("publishNotReadyAddresses")
        subdomain = pod["subdomain"] if headless and resolvable else None
    if subdomain != pod["subdomain"]:
        yield f"{name}: no headless Service names its pods before they are ready"
    for rule in spec["podFailurePolicy"]["rules"]:
        watched = rule.get("onExitCodes", {}).get("containerName")
        if watched not in (None, pod["containers"][0]["name"]):
            yield f"{name}: podFailurePolicy watches {watched}, which is no container"


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
    known, recorded = names(), set()
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
        for name in sorted(set(re.findall(r"(?<![:\w])chorale_[a-z0-9_]+(?!:)\b", expression)) - known):
            yield f"{_name(document)}: nothing exports {name}"


CHECKS: tuple[Callable[[Objects], Iterator[str]], ...] = (
    selectors,
    ports,
    let_through,
    closed_groups,
    names_and_addresses,
    groups,
    gangs,
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
