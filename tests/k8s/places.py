"""Where the rendered Job's image goes: a claim that all pods mount, or a bucket."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from infra.errors import StoreMissing
from tests.k8s.objects import Document
from tests.support.buckets import moto_server
from tests.support.pods import Cluster


@dataclass(frozen=True)
class Place:
    """`flags` of `chorale k8s render`, the objects that it takes for granted, and what lies there."""

    flags: tuple[str, ...]
    objects: list[Document]
    read: Callable[[str, str], bytes | None]
    """(digest, key) -> what is kept there."""
    url: Callable[[str], str]
    """digest -> the image, for `chorale verify`."""


def claim(cluster: Cluster) -> Place:
    document = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "images"},
        "spec": {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "1Gi"}}},
    }
    folder = cluster.folder / "volumes" / "images"

    def read(digest: str, key: str) -> bytes | None:
        try:
            return (folder / digest / key).read_bytes()
        except FileNotFoundError:
            return None

    return Place(("--claim", "images"), [document], read, lambda digest: str(folder / digest))


@contextmanager
def bucket(cluster: Cluster) -> Iterator[Place]:
    """A bucket on a server that pods can reach."""
    with moto_server(cluster.network.gateway) as server:
        url = server.fresh_url()
        given = server.environment
        endpoint = given.pop("CHORALE_S3_ENDPOINT_URL")
        config = {"CHORALE_STORE_URL": url, "CHORALE_S3_ENDPOINT_URL": endpoint}
        secret = {key: base64.b64encode(value.encode()).decode() for key, value in given.items()}

        def read(digest: str, key: str) -> bytes | None:
            try:
                found: bytes = server.store(f"{url}/{digest}").get(key)
            except StoreMissing:
                return None
            return found

        name = {"name": "chorale-store"}
        objects: list[Document] = [
            {"apiVersion": "v1", "kind": "ConfigMap", "metadata": name, "data": config},
            {"apiVersion": "v1", "kind": "Secret", "metadata": name, "data": secret},
        ]
        yield Place((), objects, read, lambda digest: f"{url}/{digest}")
