"""Writes the manifests that are made from something else: `make k8s`.

The PrometheusRule comes from the farm's own rules, the example images from `chorale k8s render`, the Helm
chart from the Kustomize base.
"""

from __future__ import annotations

import io
from contextlib import redirect_stdout
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from jobs.cli.main import cli
from k8s.chart import chart_files

TOP = Path(__file__).parent.parent
RULES = TOP / "infra" / "prometheus" / "rules"
_EXAMPLE = ("k8s", "render", "examples/vase.yaml", "--ranks", "8", "--gpus-per-pod", "4")
IMAGES = {
    "k8s/one-image/image.yaml": _EXAMPLE,
    "k8s/overlays/kueue/image.yaml": (*_EXAMPLE, "--queue", "night", "--least-ranks", "4"),
    "k8s/overlays/jobset/image.yaml": (*_EXAMPLE, "--jobset"),
}
"""File -> the command that makes it, from the repository's root."""
_MADE = "# Made by `make k8s`; change what it is made from.\n"


def generated() -> dict[str, str]:
    """File -> its text."""
    made = {
        path: f"# chorale {' '.join(words)}\n{_MADE}{_output_of(words)}" for path, words in IMAGES.items()
    }
    rule = prometheus_rule()
    made["k8s/components/monitoring/rules.yaml"] = _MADE + _yaml(rule)
    chart = chart_files(version("chorale"), rule)
    return made | {f"k8s/{path}": text for path, text in chart.items()}


def prometheus_rule() -> dict[str, Any]:
    """All rules of the farm as the Prometheus operator takes them."""
    files = [yaml.safe_load(path.read_text(encoding="utf-8")) for path in sorted(RULES.glob("*.yaml"))]
    return {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": "chorale"},
        "spec": {"groups": [group for file in files for group in file["groups"]]},
    }


def _output_of(words: tuple[str, ...]) -> str:
    with redirect_stdout(io.StringIO()) as output:
        cli.main(list(words), standalone_mode=False)
    return output.getvalue()


def _yaml(document: dict[str, Any]) -> str:
    return yaml.safe_dump(document, sort_keys=False, allow_unicode=True, width=110)


if __name__ == "__main__":
    for path, text in generated().items():
        (TOP / path).parent.mkdir(parents=True, exist_ok=True)
        (TOP / path).write_text(text, encoding="utf-8")
