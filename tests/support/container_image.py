"""The container image, built without a daemon and run without a registry or an engine.

buildah builds it (chroot isolation) on a base that mmdebstrap makes; a container is then a mount, pid and
network namespace of ours with the image's root, read-only, under the volumes that a test declares.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.services import require

TOP = Path(__file__).parent.parent.parent
DOCKER = TOP / "infra" / "docker"
USER = "12345"
"""Not the image's own user, and in no passwd file of it."""
_BASE = "localhost/chorale-base"
_ENTER = r"""
set -e
scratch=$1 image=$2 shm=$3 user=$4 directory=$5 mounts=$6; shift 6
mount --make-rprivate /
mount -t tmpfs container "$scratch"
mkdir "$scratch/upper" "$scratch/work" "$scratch/root"
root=$scratch/root
mount -t overlay overlay -o "lowerdir=$image,upperdir=$scratch/upper,workdir=$scratch/work" "$root"
mount -t proc proc "$root/proc"
mount --rbind /dev "$root/dev"
mount -t tmpfs -o "size=$shm,mode=1777" shm "$root/dev/shm"
printf '%s\n' "$mounts" | while read -r source target; do
  [ -n "$source" ] || continue
  mkdir -p "$root$target"
  mount --bind "$source" "$root$target"
done
mount -o remount,ro "$root"
/usr/sbin/ip link set lo up
exec /usr/sbin/chroot "$root" setpriv --reuid "$user" --regid "$user" --clear-groups --no-new-privs \
  --bounding-set=-all --inh-caps=-all sh -c 'cd "$0" && exec "$@"' "$directory" "$@"
"""


@dataclass(frozen=True)
class ContainerImage:
    """A built image: its root, where it is mounted, and its configuration."""

    root: Path
    config: dict[str, Any]
    layers: tuple[int, ...]
    """Bytes of each layer, the base's first."""
    scratch: Path

    @property
    def environment(self) -> dict[str, str]:
        return dict(line.split("=", 1) for line in self.config["Env"])

    def start(
        self,
        *words: str,
        volumes: Mapping[str, Path],
        environment: Mapping[str, str] | None = None,
        shm: str = "64m",
        entry: Sequence[str] | None = None,
        **options: Any,
    ) -> subprocess.Popen[str]:
        """Run the image's program, or `entry`, with arguments. Nothing is writable but `volumes` (path in the
        container -> folder) and `shm` bytes of /dev/shm."""
        scratch = self.scratch / f"container-{len(list(self.scratch.iterdir()))}"
        scratch.mkdir()
        for folder in volumes.values():
            # As a pod's fsGroup makes them.
            os.chown(folder, -1, int(USER))
            folder.chmod(0o2775)
        mounts = "\n".join(f"{folder} {path}" for path, folder in volumes.items())
        directory = self.config["WorkingDir"]
        return subprocess.Popen(
            [
                *("unshare", "--mount", "--pid", "--net", "--uts", "--fork", "--kill-child"),
                *("sh", "-c", _ENTER, "container"),
                *(str(scratch), str(self.root), shm, USER, directory, mounts),
                *(self.config["Entrypoint"] if entry is None else entry),
                *words,
            ],
            stdin=subprocess.DEVNULL,
            env=self.environment | dict(environment or {}),
            text=True,
            **options,
        )

    def run(self, *words: str, **options: Any) -> subprocess.CompletedProcess[str]:
        """As `start`, but wait for its end."""
        process = self.start(*words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)
        try:
            out, err = process.communicate(timeout=300)
        finally:
            process.kill()
        return subprocess.CompletedProcess(words, process.returncode, out, err)


@contextmanager
def built_image(folder: Path, target: str = "cpu") -> Iterator[ContainerImage]:
    """Build the image of a target. It is gone with the block, and so is the storage, unless the variable
    `CHORALE_TEST_IMAGE_STORAGE` names a folder: its base is used again."""
    for program, package in (("buildah", "buildah"), ("mmdebstrap", "mmdebstrap")):
        require(shutil.which(program) and os.geteuid() == 0, f"{program} (as root)", package)
    kept = os.environ.get("CHORALE_TEST_IMAGE_STORAGE")
    storage = Path(kept) if kept else folder / "storage"
    try:
        tag = _build(folder, storage, target)
        container = _buildah(storage, "from", tag).strip()
        root = Path(_buildah(storage, "mount", container).strip())
        inspected = json.loads(_buildah(storage, "inspect", "--type", "image", tag))
        scratch = folder / "scratch"
        scratch.mkdir()
        yield ContainerImage(root, inspected["OCIv1"]["config"], _layers(storage, inspected), scratch)
    finally:
        if storage.exists():
            _buildah(storage, "umount", "--all")
            _buildah(storage, "rm", "--all")
        if storage.exists() and not kept:
            _buildah(storage, "rmi", "--all", "--force")


def _build(folder: Path, storage: Path, target: str) -> str:
    if _BASE not in _buildah(storage, "images", "--format", "{{.Name}}"):
        _build_base(folder, storage)
    tag = f"localhost/chorale:{target}"
    _buildah(
        storage,
        # With layers, as Docker makes them; buildah 1.28 cannot mount a stage that it takes from its cache.
        *("build", "--isolation", "chroot", "--layers", "--no-cache", "-f", str(DOCKER / "Dockerfile")),
        *("--ignorefile", str(DOCKER / "Dockerfile.dockerignore")),
        *("--build-arg", f"BASE={_BASE}", "--build-arg", f"TARGET={target}", "--build-arg", "INDEX="),
        *_pip_of_this_machine(folder),
        *("-t", tag, str(TOP)),
    )
    return tag


def _build_base(folder: Path, storage: Path) -> None:
    base = folder / "base.tar"
    _run([str(DOCKER / "base.sh"), str(base)])
    (folder / "base").write_text("FROM scratch\nADD base.tar /\n")
    _buildah(storage, "build", "--isolation", "chroot", "-f", str(folder / "base"), "-t", _BASE, str(folder))
    base.unlink()


def _pip_of_this_machine(folder: Path) -> Iterator[str]:
    """Lends the build pip's configuration, with the folders of wheels and the certificates that it names."""
    words = [shutil.which("python3") or "python3", "-m", "pip", "config", "list"]
    listed = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    lines = (line.partition("=") for line in listed.splitlines())
    values = {key.rpartition(".")[2]: value.strip("'").replace("\\n", " ") for key, _, value in lines}
    wanted = {
        key: values[key] for key in ("cert", "find-links", "index-url", "extra-index-url") if key in values
    }
    config = folder / "pip.conf"
    config.write_text("[global]\n" + "".join(f"{key} = {value}\n" for key, value in wanted.items()))
    yield from ("--volume", f"{config}:/etc/pip.conf:ro")
    paths = {word.removeprefix("file://") for value in wanted.values() for word in value.split()}
    for path in sorted(path for path in paths if path.startswith("/") and Path(path).exists()):
        # An index of files has its files beside it.
        place = str(Path(path).parent) if Path(path).name == "simple" else path
        yield from ("--volume", f"{place}:{place}:ro")


def _layers(storage: Path, inspected: dict[str, Any]) -> tuple[int, ...]:
    known = json.loads((storage / "root" / "overlay-layers" / "layers.json").read_text())
    sizes = {layer.get("diff-digest"): layer.get("diff-size", 0) for layer in known}
    return tuple(sizes[digest] for digest in inspected["OCIv1"]["rootfs"]["diff_ids"])


def _buildah(storage: Path, *words: str) -> str:
    where = [
        "--storage-driver",
        "overlay",
        "--root",
        str(storage / "root"),
        "--runroot",
        str(storage / "run"),
    ]
    return _run(["buildah", *where, *words])


def _run(words: list[str]) -> str:
    ran = subprocess.run(words, capture_output=True, text=True)
    assert ran.returncode == 0, f"{' '.join(words)}\n{ran.stdout[-4000:]}\n{ran.stderr[-4000:]}"
    return ran.stdout
