"""Real S3 servers for tests: moto for breadth, OpenStack Swift for truth."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from uuid import uuid4

from infra.settings import Settings
from infra.store.open import open_store
from infra.store.s3 import S3Store
from tests.support import swift
from tests.support.cli import wait_until
from tests.support.services import answers, free_port


@dataclass(frozen=True, kw_only=True)
class Bucket:
    """A bucket on a server, and the credentials for it."""

    endpoint: str
    access_key: str
    secret_key: str
    name: str = "studio"

    @property
    def environment(self) -> dict[str, str]:
        """What a process needs to reach it."""
        return {
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_DEFAULT_REGION": "us-east-1",
            "CHORALE_S3_ENDPOINT_URL": self.endpoint,
        }

    def at(self, endpoint: str) -> Bucket:
        """The same, reached by way of another address."""
        return replace(self, endpoint=endpoint)

    def fresh_url(self) -> str:
        """A prefix that nobody has used."""
        return f"s3://{self.name}/{uuid4().hex[:12]}"

    def settings(self, **more: str) -> Settings:
        return Settings(s3_endpoint_url=self.endpoint, **more)

    def store(self, url: str, **options: Any) -> Any:
        """Opened in this process; its environment must have the credentials."""
        return open_store(url, self.settings(), **options)

    def make(self) -> None:
        made = open_store(f"s3://{self.name}", self.settings())
        assert isinstance(made, S3Store)
        made.client.create_bucket(Bucket=self.name)


@contextmanager
def credentials(bucket: Bucket) -> Iterator[None]:
    """This process's credentials, for as long as the block lasts."""
    before = {name: os.environ.get(name) for name in bucket.environment}
    os.environ.update(bucket.environment)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value


@contextmanager
def moto_server(host: str = "127.0.0.1") -> Iterator[Bucket]:
    """A moto server with an empty bucket."""
    port = free_port()
    bucket = Bucket(endpoint=f"http://{host}:{port}", access_key="anna", secret_key="anna-secret-key")
    words = ["-m", "moto.server", "-H", host, "-p", str(port)]
    with _serving(words, host, port), credentials(bucket):
        bucket.make()
        yield bucket


@contextmanager
def swift_server(folder: Path, host: str = "127.0.0.1") -> Iterator[Bucket]:
    """An OpenStack Swift with an empty bucket, its files in the folder."""
    port = free_port()
    bucket = Bucket(
        endpoint=f"http://{host}:{port}", access_key=swift.ACCESS_KEY, secret_key=swift.SECRET_KEY
    )
    words = ["-m", "tests.support.swift", str(folder), host, str(port)]
    with _serving(words, host, port), credentials(bucket):
        bucket.make()
        yield bucket


@contextmanager
def _serving(words: list[str], host: str, port: int) -> Iterator[None]:
    server = subprocess.Popen(
        [sys.executable, *words],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_until(lambda: server.poll() is not None or answers(host, port), 60)
        assert server.poll() is None, f"{words} has ended"
        yield
    finally:
        server.kill()
        server.wait()
