"""OpenStack Swift with its S3 API in one process: `python -m tests.support.swift FOLDER HOST PORT`.

A real proxy with tempauth and s3api (SigV4 and checksums verified), over one account, container and object
server in a folder. The bucket's region is us-east-1.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

ACCESS_KEY, SECRET_KEY = "studio:anna", "studio-secret-key"

_HASH = "[swift-hash]\nswift_hash_path_prefix = chorale\nswift_hash_path_suffix = chorale\n"
_POLICY = "[storage-policy:0]\nname = one\ndefault = yes\n"
_PROXY = f"""
[DEFAULT]
swift_dir = %(folder)s
[pipeline:main]
pipeline = catch_errors proxy-logging s3api tempauth copy slo dlo proxy-logging proxy-server
[app:proxy-server]
use = egg:swift#proxy
account_autocreate = true
[filter:catch_errors]
use = egg:swift#catch_errors
[filter:proxy-logging]
use = egg:swift#proxy_logging
[filter:s3api]
use = egg:swift#s3api
location = us-east-1
s3_acl = false
[filter:tempauth]
use = egg:swift#tempauth
user_{ACCESS_KEY.replace(":", "_")} = {SECRET_KEY} .admin
user_studio_guest = guest-secret-key
[filter:copy]
use = egg:swift#copy
[filter:slo]
use = egg:swift#slo
[filter:dlo]
use = egg:swift#dlo
"""


def main() -> None:
    """Serve until killed."""
    import eventlet

    eventlet.patcher.monkey_patch(all=False, socket=True, select=True, thread=True)
    folder, host, port = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    (folder / "devices" / "one").mkdir(parents=True)
    (folder / "swift.conf").write_text(_HASH + _POLICY)

    from swift.common import utils

    # Read before anything else of Swift, which keeps it for good.
    utils.SWIFT_CONF_FILE = str(folder / "swift.conf")
    utils.HASH_PATH_PREFIX = utils.HASH_PATH_SUFFIX = b"chorale"
    from swift.common import storage_policy

    storage_policy.reload_storage_policies()
    sockets = {kind: eventlet.listen(("127.0.0.1", 0)) for kind in ("account", "container", "object")}
    for kind, server_socket in sockets.items():
        _make_ring(folder, kind, server_socket.getsockname()[1])
        eventlet.spawn(_serve, server_socket, _storage_server(kind, folder))
    (folder / "proxy-server.conf").write_text(_PROXY % {"folder": folder})
    from swift.common.wsgi import loadapp

    proxy = loadapp(str(folder / "proxy-server.conf"), global_conf={"log_level": "ERROR"})
    _serve(eventlet.listen((host, port), backlog=100), proxy)


def _make_ring(folder: Path, kind: str, port: int) -> None:
    """One replica on one device."""
    from swift.common.ring import RingBuilder

    builder = RingBuilder(4, 1, 0)
    builder.add_dev(
        {"id": 0, "region": 1, "zone": 1, "weight": 1, "ip": "127.0.0.1", "port": port, "device": "one",
         "meta": ""}
    )  # fmt: skip
    builder.rebalance()
    builder.get_ring().save(str(folder / f"{kind}.ring.gz"))


def _storage_server(kind: str, folder: Path) -> Any:
    conf = {
        "devices": str(folder / "devices"),
        "swift_dir": str(folder),
        "mount_check": "false",
        "fallocate_reserve": "0",
        "log_level": "ERROR",
    }
    if kind == "account":
        from swift.account.server import AccountController as Controller
    elif kind == "container":
        from swift.container.server import ContainerController as Controller
    else:
        from swift.obj.server import ObjectController as Controller
    return Controller(conf)


def _serve(server_socket: Any, app: Any) -> None:
    from eventlet import wsgi
    from swift.common.wsgi import SwiftHttpProtocol

    wsgi.server(
        server_socket, app, log_output=False, custom_pool=None, max_size=1000, protocol=SwiftHttpProtocol
    )


if __name__ == "__main__":
    main()
