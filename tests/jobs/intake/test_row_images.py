"""Images of rows: files, URLs of listed hosts within a size, and objects of a store."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path

import pytest
import urllib3
from PIL import Image

from infra.settings import Settings
from jobs.intake.row_images import RowImages
from render.errors import BadInput
from render.spec import IMAGE_FIELDS
from tests.jobs.intake.batches import read_file

_OTHERS = [name for name in IMAGE_FIELDS if name != "init"]


def png(size: tuple[int, int] = (64, 64)) -> bytes:
    data = BytesIO()
    Image.radial_gradient("L").resize(size).convert("RGB").save(data, "png")
    return data.getvalue()


@dataclass
class Site:
    """A web server on the loopback interface."""

    host: str
    asked: list[str] = field(default_factory=list)

    def url(self, path: str) -> str:
        return f"http://{self.host}/{path}"


@pytest.fixture
def site() -> Iterator[Site]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found.asked.append(self.path)
            if self.path.startswith("/to/"):
                self.send_response(302)
                self.send_header("location", self.path[4:])
                self.end_headers()
                return
            self.send_response(200 if self.path.startswith("/ok") else 404)
            self.end_headers()
            # Without a length, so that only counting ends it.
            self.wfile.write(png() + b"\0" * (2 << 20) * (self.path == "/ok-large"))

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    found = Site(f"127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield found
    server.shutdown()
    thread.join()
    server.server_close()


@contextmanager
def images(folder: Path | None, hosts: str = "") -> Iterator[RowImages]:
    with closing(RowImages(Settings(image_hosts=hosts, image_max_mib=1), folder)) as found:
        yield found


def test_an_image_is_downloaded_once(site: Site, tmp_path: Path) -> None:
    with images(tmp_path, site.host) as found:
        paths = {found.local("init", site.url("ok")) for _ in range(3)}
        assert len(paths) == 1 and site.asked == ["/ok"]
        path = Path(paths.pop())
        assert path.read_bytes() == png()
        moved = found.local("init", site.url("to//ok?1"))
        assert Path(moved).read_bytes() == png()
    assert not path.exists()


@pytest.mark.parametrize(
    ("path", "problem"),
    [
        ("ok-large", "is larger than CHORALE_IMAGE_MAX_MIB, 1"),
        ("none", "answers with status 404"),
        ("to/http://localhost:1/ok", "is on localhost:1, which is not allowed"),
        ("to/http://169.254.169.254/latest", "is on 169.254.169.254, which is not allowed"),
        ("to/file:///etc/passwd", "does not lead to an http or https URL"),
        ("to//to//to//to//to//to//ok", "redirects too often"),
    ],
)
def test_what_is_not_wanted_is_not_downloaded(site: Site, tmp_path: Path, path: str, problem: str) -> None:
    with images(tmp_path, site.host) as found, pytest.raises(BadInput, match=problem):
        found.local("init", site.url(path))


@pytest.mark.parametrize(
    ("hosts", "url", "allowed"),
    [
        ("", "http://127.0.0.1:9/a", False),
        ("127.0.0.1", "http://127.0.0.1:9/a", False),
        ("*.0.0.1:9", "http://127.0.0.1:9/a", False),
        ("cdn.example, 127.0.0.1:9", "http://127.0.0.1:9/a", True),
        ("example", "http://example.evil/a", False),
        ("*.example", "http://example/a", False),
        ("127.0.0.1:9", "http://127.0.0.1:9@evil.example/a", False),
        ("127.0.0.1:9", "http://[/a", False),
        ("*", "http://127.0.0.1:9/a", False),
    ],
)
def test_only_listed_hosts_are_asked(tmp_path: Path, hosts: str, url: str, allowed: bool) -> None:
    problem = "cannot be downloaded" if allowed else "not allowed|is not a URL|private network"
    with images(tmp_path, hosts) as found, pytest.raises(BadInput, match=problem):
        found.local("init", url)


def test_a_batch_from_elsewhere_names_no_files_and_no_buckets(tmp_path: Path) -> None:
    for name in ("a.png", "/etc/passwd", "file:///etc/passwd", "s3://bucket/a.png", "ftp://host/a"):
        with images(None) as found, pytest.raises(BadInput, match="init"):
            found.local("init", name)


def test_a_column_names_images(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.png").write_bytes(png((128, 64)))
    path = tmp_path / "b.csv"
    path.write_text(f"prompt,Init\na vase,a.png\na mug,{site.url('ok')}\na bowl,\na box,b.png\n")
    monkeypatch.setenv("CHORALE_IMAGE_HOSTS", site.host)
    good, bad, _ = read_file(path, defaults={"width": 64, "height": 64})
    # The first one has another shape than the size that is asked for.
    assert [text.partition(":")[0] for text in bad] == ["2", "5"] and "b.png" in bad[1]
    assert [row.spec.init is not None for row in good] == [True, False]


def test_an_image_of_any_field_may_be_a_url(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CHORALE_IMAGE_HOSTS", site.host)
    (tmp_path / "a.png").write_bytes(png())
    path = tmp_path / "b.csv"
    path.write_text("prompt,init," + ",".join(_OTHERS) + "\na vase,a.png," + site.url("ok") + "\n")
    good, bad, _ = read_file(path)
    assert bad == [] and {*good[0].spec.images} == {*IMAGE_FIELDS} and site.asked == ["/ok"]


def test_paths_of_other_files_are_beside_the_batch_too(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    path = tmp_path / "sub" / "b.csv"
    path.write_text("prompt,lora\na vase,brand.safetensors:0.5\n")
    _, bad, _ = read_file(path)
    # A long path is shortened in the sentence.
    assert len(bad) == 1 and str(tmp_path / "sub")[:60] in bad[0]


@pytest.fixture
def resolver(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Addresses that names under `.example` have at each question, in turn; the last one stays."""
    answers: list[str] = []
    ask = socket.getaddrinfo

    def getaddrinfo(host: str, *arguments: object, **options: object) -> object:
        if not host.endswith(".example"):
            return ask(host, *arguments, **options)  # type: ignore[arg-type]
        address = answers.pop(0) if len(answers) > 1 else answers[0]
        return [found for each in address.split() for found in ask(each, *arguments, **options)]  # type: ignore[arg-type]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return answers


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "::1", "::ffff:127.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::", "10.1.2.3", "192.168.0.1",
        "172.16.9.9", "169.254.169.254", "fe80::1", "fd00::1", "0.0.0.0", "100.64.0.1", "224.0.0.1",
        "93.184.215.14 127.0.0.1",
    ],
)  # fmt: skip
def test_a_listed_name_in_a_private_network_is_refused(
    site: Site, tmp_path: Path, resolver: list[str], address: str
) -> None:
    resolver.append(address)
    port = site.host.partition(":")[2]
    with images(tmp_path, f"cdn.example:{port}") as found, pytest.raises(BadInput, match="private network"):
        found.local("init", f"http://cdn.example:{port}/ok")
    assert site.asked == []


def test_a_name_that_changes_its_address_after_the_check_gains_nothing(
    site: Site, tmp_path: Path, resolver: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """DNS rebinding: allowed when it is looked at, the loopback interface when it is connected to."""
    port = site.host.partition(":")[2]
    resolver += ["203.0.113.9", "127.0.0.1"]
    connected: list[str] = []

    def refuse(address: tuple[str, int], *_: object, **__: object) -> None:
        connected.append(address[0])
        raise ConnectionRefusedError

    monkeypatch.setattr(urllib3.util.connection, "create_connection", refuse)
    hosts = f"cdn.example:{port},203.0.113.0/24"
    with images(tmp_path, hosts) as found, pytest.raises(BadInput, match="private network"):
        found.local("init", f"http://cdn.example:{port}/ok")
    # What was checked is what was connected to; the second try looked again, and was refused.
    assert connected == ["203.0.113.9"] and site.asked == []


def test_a_private_network_may_be_listed(site: Site, tmp_path: Path, resolver: list[str]) -> None:
    resolver.append("127.0.0.1")
    port = site.host.partition(":")[2]
    for network in ("127.0.0.0/8", "127.0.0.1"):
        with images(tmp_path, f"cdn.example:{port},{network}") as found:
            assert Path(found.local("init", f"http://cdn.example:{port}/ok")).read_bytes() == png()


def test_a_redirect_into_a_private_network_is_refused(
    site: Site, tmp_path: Path, resolver: list[str]
) -> None:
    resolver.append("10.0.0.1")
    port = site.host.partition(":")[2]
    with (
        images(tmp_path, f"{site.host},inside.example:{port}") as found,
        pytest.raises(BadInput, match="private network"),
    ):
        found.local("init", site.url(f"to/http://inside.example:{port}/ok"))
