"""The Helm chart, made from the Kustomize base and its components: `make k8s` writes it.

An object of the base becomes a template by putting Helm's expressions in the place of some of its values; the
default values are those that were there. So there is one truth, and `tests/k8s/test_chart.py` holds what Helm
makes of the chart against what Kustomize makes of base and overlays.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import yaml

K8S = Path(__file__).parent
Document = dict[str, Any]
_PARTS = K8S / "chart_parts"
_FREE = {"agents", "settings", "resources", "nodeSelector", "podAnnotations"}
"""Mappings whose keys are the user's."""
_POOLS = """{{- range $pool, $given := .Values.agents }}
{{- $agent := mustMergeOverwrite (deepCopy $.Values.agentDefaults) ($given | default dict) }}
{{- $name := eq $pool "default" | ternary "chorale-agent" (printf "chorale-agent-%s" $pool) }}
---
"""
_DRAIN = """{{- with $agent.drainSeconds }}
- --wait
- {{ . | quote }}
{{- end }}"""
_MODELS_MOUNT = """{{- if or $.Values.models.image $.Values.models.claim }}
- name: models
  mountPath: /models
  readOnly: true
{{- end }}"""
_MODELS_VOLUME = """{{- if $.Values.models.image }}
- name: models
  image:
    reference: {{ $.Values.models.image }}
    pullPolicy: IfNotPresent
{{- else if $.Values.models.claim }}
- name: models
  persistentVolumeClaim:
    claimName: {{ $.Values.models.claim }}
    readOnly: true
{{- end }}"""
_RESOURCES = """resources:
  {{- toYaml $agent.resources | nindent @2 }}
  {{- if $agent.deviceClass }}
  claims:
  - name: gpus
  {{- end }}"""
_CLAIMS = """{{- if $agent.deviceClass }}
resourceClaims:
- name: gpus
  resourceClaimTemplateName: {{ $name }}
{{- end }}"""
AGENT_NAME = "{{ $name }}"
_IMAGE = '{{ include "chorale.image" $ }}'
_NAMESPACE = "{{ $.Release.Namespace }}"


class Template:
    """An object with expressions in it, printed as YAML that Helm reads."""

    def __init__(self, document: Document, *, of_base: bool = True) -> None:
        self.document = copy.deepcopy(document)
        self._expressions: dict[str, str] = {}
        self._blocks: dict[str, str] = {}
        metadata = self.document["metadata"]
        metadata["namespace"] = self.expression(_NAMESPACE)
        if of_base:
            # As the base's kustomization labels what is its own.
            metadata.setdefault("labels", {})["app.kubernetes.io/part-of"] = "chorale"

    def expression(self, text: str) -> str:
        """A value's stand-in until the object is printed."""
        token = f"__E{len(self._expressions)}__"
        self._expressions[token] = text
        return token

    def put(self, path: str, text: str) -> None:
        """Let the value at a path of keys and numbers be an expression."""
        place, key = self._place(path)
        assert key in place if isinstance(place, dict) else True, path
        place[key] = self.expression(text)

    def replace(self, path: str, block: str) -> None:
        """Put lines in the place of a key and its value. `@N` in them is N columns right of the key."""
        place, key = self._place(path)
        place[self._block(block)] = None
        place.pop(key, None)

    def append(self, path: str, block: str) -> None:
        """Put lines behind the items of a list, or behind the keys of a mapping."""
        place, key = self._place(path)
        inside = place.setdefault(key, {}) if isinstance(place, dict) else place[key]
        if isinstance(inside, list):
            inside.append(self._block(block))
        else:
            inside[self._block(block)] = None

    def text(self) -> str:
        printed = yaml.safe_dump(self.document, sort_keys=False, allow_unicode=True, width=1000)
        lines = [self._line(line) for line in printed.splitlines()]
        text = "\n".join(lines) + "\n"
        for token, expression in self._expressions.items():
            text = text.replace(token, expression)
        return text

    def _line(self, line: str) -> str:
        token = line.strip().removeprefix("- ").partition(":")[0]
        if token not in self._blocks:
            return line
        columns = len(line) - len(line.lstrip())
        lines = []
        for row in self._blocks[token].strip("\n").splitlines():
            for more in (8, 6, 4, 2, 0):
                row = row.replace(f"@{more}", str(columns + more))
            lines.append(" " * columns + row)
        return "\n".join(lines)

    def _block(self, block: str) -> str:
        token = f"__B{len(self._blocks)}__"
        self._blocks[token] = block
        return token

    def _place(self, path: str) -> tuple[Any, Any]:
        keys: list[Any] = [int(key) if key.isdigit() else key for key in path.split()]
        place: Any = self.document
        for key in keys[:-1]:
            place = place[key]
        return place, keys[-1]


def chart_files(version: str, rules: Document) -> dict[str, str]:
    """Path under k8s/ -> text, of every file of the chart. `rules` is the PrometheusRule."""
    base = {_key(document): document for document in _base()}
    keda = {_key(document): document for document in _documents("components/keda")}
    egress = _documents("components/egress")
    values = _values(base, keda)
    files = {
        "Chart.yaml": _chart_yaml(version),
        "values.yaml": values,
        "values.schema.json": json.dumps(_schema(yaml.safe_load(values)), indent=1) + "\n",
        "files/rules.yaml": _yaml(rules["spec"]),
        "templates/_helpers.tpl": _part("_helpers.tpl"),
        "templates/farm.yaml": _farm(base),
        "templates/agents.yaml": _agents(base),
        "templates/devices.yaml": _devices(),
        "templates/board.yaml": _board(base),
        "templates/migrate.yaml": _migrate(base),
        "templates/network.yaml": _joined(
            Template(one).text() for one in base.values() if one["kind"] == "NetworkPolicy"
        ),
        "templates/egress.yaml": _guarded(".Values.egress.enabled", _egress(egress)),
        "templates/keda.yaml": _guarded(".Values.keda.enabled", _keda(keda)),
        "templates/monitoring.yaml": _guarded(".Values.monitoring.enabled", _monitoring()),
    }
    return {f"chart/{name}": text for name, text in files.items()}


def _base() -> list[Document]:
    """What the base's kustomization names, but for the namespace, which is Helm's own affair."""
    files = yaml.safe_load((K8S / "base" / "kustomization.yaml").read_text(encoding="utf-8"))["resources"]
    found = [*_documents("place"), *_documents("base")]
    assert set(files) - {"../place"} == {
        path.name for path in (K8S / "base").glob("*.yaml") if path.name != "kustomization.yaml"
    }
    return [document for document in found if document["kind"] != "Namespace"]


def _documents(folder: str) -> list[Document]:
    paths = sorted(path for path in (K8S / folder).glob("*.yaml") if path.name != "kustomization.yaml")
    return [one for path in paths for one in yaml.safe_load_all(path.read_text(encoding="utf-8"))]


def _key(document: Document) -> str:
    return f"{document['kind']}/{document['metadata']['name']}"


def _farm(base: dict[str, Document]) -> str:
    """Accounts, settings, Secrets that are given as values, and budgets."""
    store = Template(base["ConfigMap/chorale-store"])
    store.put("data CHORALE_STORE_URL", "{{ $.Values.store.url | quote }}")
    store.append("data", "{{- with $.Values.store.settings }}\n{{- toYaml . | nindent @0 }}\n{{- end }}")
    farm = Template(base["ConfigMap/chorale-farm"])
    farm.replace("data", "data:\n  {{- toYaml $.Values.settings | nindent @2 }}")
    plain = ["ServiceAccount/chorale-agent", "ServiceAccount/chorale-board"]
    plain += ["PodDisruptionBudget/chorale-agent", "PodDisruptionBudget/chorale-board"]
    parts = [store.text(), farm.text(), *(Template(base[key]).text() for key in plain)]
    return _joined(parts) + _part("secrets.yaml")


def _agents(base: dict[str, Document]) -> str:
    made = Template(base["StatefulSet/chorale-agent"])
    pod, container = "spec template spec", "spec template spec containers 0"
    made.put("metadata name", AGENT_NAME)
    made.replace(
        "spec replicas",
        "{{- if not (and $.Values.keda.enabled $agent.maxReplicas) }}\n"
        "replicas: {{ $agent.replicas }}\n{{- end }}",
    )
    made.put("spec selector matchLabels chorale-pool", "{{ $pool }}")
    made.put("spec template metadata labels chorale-pool", "{{ $pool }}")
    made.append("spec template metadata", _with("podAnnotations", "annotations"))
    _image(made, container, pod)
    made.put(f"{container} args 3", "{{ $agent.slots | quote }}")
    made.put(f"{pod} terminationGracePeriodSeconds", "{{ $agent.gracePeriodSeconds }}")
    made.append(f"{container} lifecycle preStop exec command", _DRAIN)
    made.put(f"{container} envFrom 2 secretRef name", "{{ $.Values.database.secret }}")
    made.put(f"{container} envFrom 3 secretRef name", "{{ $.Values.store.secret }}")
    made.append(f"{container} env", _items("$agent.env"))
    made.replace(f"{container} resources", _RESOURCES)
    for number, key in enumerate(("home", "scratch", "sharedMemory")):
        made.put(f"{pod} volumes {number} emptyDir sizeLimit", f"{{{{ $agent.{key} }}}}")
    made.append(f"{container} volumeMounts", _MODELS_MOUNT + "\n" + _items("$agent.volumeMounts"))
    made.append(f"{pod} volumes", _MODELS_VOLUME + "\n" + _items("$agent.volumes"))
    made.append(pod, _CLAIMS)
    for key in ("nodeSelector", "tolerations"):
        made.append(pod, _with(key, key))
    return _POOLS + made.text() + "{{- end }}\n---\n" + Template(base["Service/chorale-agents"]).text()


def _devices() -> str:
    (claim,) = [one for one in _documents("components/dra") if one["kind"] == "ResourceClaimTemplate"]
    made, request = Template(claim, of_base=False), "spec spec devices requests 0 exactly"
    made.put("metadata name", AGENT_NAME)
    made.put(f"{request} deviceClassName", "{{ $agent.deviceClass }}")
    made.put(f"{request} count", "{{ $agent.slots }}")
    return (
        _POOLS.replace("---\n", "")
        + "{{- if $agent.deviceClass }}\n---\n"
        + made.text()
        + "{{- end }}\n{{- end }}\n"
    )


def _board(base: dict[str, Document]) -> str:
    made = Template(base["Deployment/chorale-board"])
    container = "spec template spec containers 0"
    made.put("spec replicas", "{{ $.Values.board.replicas }}")
    _image(made, container, "spec template spec")
    made.replace(
        f"{container} resources", "resources:\n  {{- toYaml $.Values.board.resources | nindent @2 }}"
    )
    made.put("spec template spec volumes 0 secret secretName", "{{ $.Values.board.tokensSecret }}")
    made.put(f"{container} envFrom 1 secretRef name", "{{ $.Values.database.secret }}")
    made.put(f"{container} envFrom 2 secretRef name", "{{ $.Values.store.secret }}")
    made.append(f"{container} volumeMounts", _items("$.Values.board.volumeMounts"))
    made.append("spec template spec volumes", _items("$.Values.board.volumes"))
    return _joined([made.text(), Template(base["Service/chorale-board"]).text()])


def _migrate(base: dict[str, Document]) -> str:
    made = Template(base["Job/chorale-migrate"])
    # A Job cannot be changed: each release has one of its own.
    made.put("metadata name", "chorale-migrate-{{ $.Release.Revision }}")
    _image(made, "spec template spec containers 0", "spec template spec")
    made.put("spec template spec containers 0 envFrom 0 secretRef name", "{{ $.Values.database.secret }}")
    return made.text()


def _keda(keda: dict[str, Document]) -> str:
    dispatcher = Template(keda["StatefulSet/chorale-dispatcher"], of_base=False)
    container = "spec template spec containers 0"
    _image(dispatcher, container, "spec template spec")
    dispatcher.put(f"{container} envFrom 2 secretRef name", "{{ $.Values.database.secret }}")
    dispatcher.put(f"{container} envFrom 3 secretRef name", "{{ $.Values.store.secret }}")
    scale = Template(keda["ScaledObject/chorale-agent"], of_base=False)
    scale.put("metadata name", AGENT_NAME)
    scale.put("spec scaleTargetRef name", AGENT_NAME)
    scale.put("spec minReplicaCount", "{{ $agent.minReplicas }}")
    scale.put("spec maxReplicaCount", "{{ $agent.maxReplicas }}")
    scale.put("spec triggers 0 metadata serverAddress", "{{ $.Values.keda.serverAddress }}")
    scale.put("spec triggers 0 metadata threshold", "{{ $agent.slots | quote }}")
    pools = _POOLS.replace("---\n", "") + "{{- if $agent.maxReplicas }}\n---\n"
    return dispatcher.text() + pools + scale.text() + "{{- end }}\n{{- end }}\n"


def _egress(documents: list[Document]) -> str:
    parts = []
    for document in documents:
        made, name = (
            Template(document, of_base=False),
            document["metadata"]["name"].removeprefix("chorale-egress-"),
        )
        if name in ("services", "store", "webhooks"):
            made.replace("spec egress", f"egress:\n  {{{{- toYaml $.Values.egress.{name} | nindent @2 }}}}")
        parts.append(made.text())
    return _joined(parts)


def _monitoring() -> str:
    (monitor,) = [one for one in _documents("components/monitoring") if one["kind"] == "PodMonitor"]
    rule = Template(
        {"apiVersion": "monitoring.coreos.com/v1", "kind": "PrometheusRule", "metadata": {"name": "chorale"}},
        of_base=False,
    )
    # From a file, since alerts have expressions of Prometheus' own in braces.
    text = rule.text() + 'spec:\n  {{- $.Files.Get "files/rules.yaml" | nindent 2 }}\n'
    return _joined([Template(monitor, of_base=False).text(), text])


def _image(made: Template, container: str, pod: str) -> None:
    made.put(f"{container} image", _IMAGE)
    made.append(
        pod,
        "{{- with $.Values.image.pullSecrets }}\n"
        "imagePullSecrets:\n  {{- toYaml . | nindent @2 }}\n{{- end }}",
    )


def _with(value: str, key: str) -> str:
    return f"{{{{- with $agent.{value} }}}}\n{key}:\n  {{{{- toYaml . | nindent @2 }}}}\n{{{{- end }}}}"


def _items(value: str) -> str:
    return f"{{{{- with {value} }}}}\n{{{{- toYaml . | nindent @0 }}}}\n{{{{- end }}}}"


def _guarded(condition: str, text: str) -> str:
    return f"{{{{- if {condition} }}}}\n{text}{{{{- end }}}}\n"


def _joined(parts: Any) -> str:
    return "---\n".join(parts)


def _part(name: str) -> str:
    return (_PARTS / name).read_text(encoding="utf-8")


def _yaml(document: Any) -> str:
    return yaml.safe_dump(document, sort_keys=False, allow_unicode=True, width=110)


def _chart_yaml(version: str) -> str:
    described = "Chorale: batch rendering of large diffusion images on many GPUs"
    chart = {"apiVersion": "v2", "name": "chorale", "description": described, "type": "application"}
    return _yaml(chart | {"version": version, "appVersion": version, "kubeVersion": ">=1.34.0-0"})


def _values(base: dict[str, Document], keda: dict[str, Document]) -> str:
    """The text of values.yaml: each default is the base's."""
    agents = base["StatefulSet/chorale-agent"]["spec"]
    pod, board = agents["template"]["spec"], base["Deployment/chorale-board"]["spec"]
    volumes = {one["name"]: one["emptyDir"]["sizeLimit"] for one in pod["volumes"]}
    scale = keda["ScaledObject/chorale-agent"]["spec"]
    rules = {one["metadata"]["name"]: one["spec"]["egress"] for one in _documents("components/egress")}
    given = {
        "settings": base["ConfigMap/chorale-farm"]["data"],
        "store_url": base["ConfigMap/chorale-store"]["data"]["CHORALE_STORE_URL"],
        "replicas": agents["replicas"],
        "slots": int(pod["containers"][0]["args"][3]),
        "grace": pod["terminationGracePeriodSeconds"],
        "resources": pod["containers"][0]["resources"],
        "home": volumes["home"],
        "scratch": volumes["scratch"],
        "shm": volumes["shm"],
        "board_replicas": board["replicas"],
        "board_resources": board["template"]["spec"]["containers"][0]["resources"],
        "server": scale["triggers"][0]["metadata"]["serverAddress"],
        **{f"egress_{name}": rules[f"chorale-egress-{name}"] for name in ("services", "store", "webhooks")},
    }
    text = _part("values.yaml")
    for key, value in given.items():
        text = text.replace(f"${{{key}}}", json.dumps(value))
    return text


def _schema(values: Document) -> Document:
    """What values may be: the keys that are there, of their defaults' types. A misspelt key is refused."""
    made = _types(values, "")
    pool = made["properties"]["agentDefaults"] | {"type": ["object", "null"]}
    made["properties"]["agents"] = {"type": "object", "additionalProperties": pool}
    # What subcharts and parents put there.
    made["properties"]["global"] = {"type": "object"}
    return made


def _types(value: Any, path: str) -> Document:
    if isinstance(value, dict) and path.rpartition(".")[2] not in _FREE:
        inner = {key: _types(each, f"{path}.{key}") for key, each in value.items()}
        return {"type": "object", "additionalProperties": False, "properties": inner}
    if value is None:
        return {"type": ["integer", "null"]}
    names = {bool: "boolean", int: "integer", str: "string", list: "array", dict: "object"}
    return {"type": names[type(value)]}
