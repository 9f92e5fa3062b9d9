"""Pods without a cluster: each a network namespace with a root of its own, run as its manifest says.

The root is this machine's, read-only and under the pod's volumes; the user, the variables, the names of other
pods and what a process may do are the pod's.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.support.cli import processes_with, wait_until
from tests.support.network import Network

TOP = Path(__file__).parent.parent.parent
DOCKERFILE = TOP / "infra" / "docker" / "Dockerfile"
_VENV = Path(sys.prefix)
_ENTER = r"""
set -e
scratch=$1 hosts=$2 name=$3 repository=$4 venv=$5 user=$6 group=$7 mounts=$8; shift 8
mount --make-rprivate /
mount -t tmpfs pod "$scratch"
mkdir "$scratch/upper" "$scratch/work" "$scratch/root"
root=$scratch/root
mount -t overlay overlay -o "lowerdir=/,upperdir=$scratch/upper,workdir=$scratch/work" "$root"
for folder in proc dev sys; do mount --rbind "/$folder" "$root/$folder"; done
# The interpreter may lie in a home that only its owner may enter.
for folder in $(dirname "$(readlink -f "$venv/bin/python")" | tr / ' '); do
  path=${path:-}/$folder; chmod a+x "$root$path"
done
printf '%s\n' "$mounts" | while read -r source target mode; do
  [ -n "$source" ] || continue
  # /var/run is a link; it is to be followed in the pod.
  target=$(chroot "$root" readlink -m "$target")
  mkdir -p "$root$target"
  mount --bind "$source" "$root$target"
  [ "$mode" = rw ] || mount -o remount,bind,ro "$root$target"
done
# What the image holds: our code, in this environment.
mkdir -p "$root$repository" "$root/opt/chorale"
mount --bind "$repository" "$root$repository"
mount -o remount,bind,ro "$root$repository"
mount --bind "$venv" "$root/opt/chorale"
mount --bind "$hosts" "$root/etc/hosts"
# An image has the user that it runs as.
grep -q "^[^:]*:[^:]*:$user:" "$root/etc/passwd" ||
  echo "pod:x:$user:$group::/tmp:/bin/sh" >> "$root/etc/passwd"
mount -o remount,ro "$root"
hostname "$name"
exec chroot "$root" setpriv --reuid "$user" --regid "$group" --clear-groups --no-new-privs \
  --bounding-set=-all --inh-caps=-all "$@"
"""


def image_environment() -> dict[str, str]:
    """The variables that the container image sets in its last stage."""
    last = DOCKERFILE.read_text(encoding="utf-8").replace("\\\n", " ").rpartition("\nFROM ")[2]
    line = next(line for line in last.splitlines() if line.startswith("ENV "))
    return dict(re.findall(r"(\w+)=(\S+)", line))


def entry_point() -> list[str]:
    """What the image runs, but for tini, which stands in for the init process that this machine has."""
    found = re.search(r'^ENTRYPOINT \["tini", "--", "(\w+)"\]$', DOCKERFILE.read_text(encoding="utf-8"), re.M)
    assert found
    return [found[1]]


@dataclass
class Cluster:
    """Hosts for pods, what volumes hold, and the names under which pods and Services are known."""

    network: Network
    folder: Path
    mark: str
    pods: list[RunningPod] = field(default_factory=list)
    _names: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.hosts = self.folder / "hosts"
        self.hosts.write_text("127.0.0.1 localhost\n")
        # Volumes belong to users that must be able to get there.
        for parent in (self.folder, *self.folder.parents):
            if parent != Path("/") and not parent.stat().st_mode & 0o001:
                parent.chmod(parent.stat().st_mode | 0o011)

    def volume(self, name: str, group: int) -> Path:
        """The folder of a volume, which the pod's fsGroup may write."""
        folder = self.folder / "volumes" / name
        if not folder.exists():
            folder.mkdir(parents=True)
            os.chown(folder, -1, group)
            folder.chmod(0o2775)
        return folder

    def name(self, *names: str, address: str) -> None:
        """Let names mean an address from now on, as the cluster's DNS does for a new pod."""
        self._names |= dict.fromkeys(names, address)
        lines = [f"{address} {name}\n" for name, address in self._names.items()]
        # In place: pods have this very file.
        self.hosts.write_text("127.0.0.1 localhost\n" + "".join(lines))

    def start(
        self,
        name: str,
        spec: dict[str, Any],
        environment: dict[str, str],
        files: dict[str, dict[str, str]],
        names: list[str],
    ) -> RunningPod:
        """Run the first container of a pod on a host of its own.

        `environment` is what Kubernetes adds to the image's; `files` what ConfigMaps and Secrets hold by
        their names; `names` those under which others find the pod.
        """
        number = len(self.pods)
        address = self.network.address(number)
        self.name(name, *names, address=address)
        container, context = spec["containers"][0], spec["securityContext"]
        given = image_environment() | environment | {"HOSTNAME": name, self.mark: "1"}
        given |= _of_the_pod(container, name, address)
        scratch = self.folder / f"{name}-{number}"
        scratch.mkdir()
        volumes = "\n".join(self._mounts(f"{name}-{number}", spec, files))
        program = [*(container.get("command") or entry_point()), *container.get("args", [])]
        log = self.folder / f"{name}-{number}.log"
        with log.open("w") as file:
            process = subprocess.Popen(
                [
                    *self.network.on(number),
                    *("unshare", "--mount", "--uts", "sh", "-c", _ENTER, "pod"),
                    *(str(scratch), str(self.hosts), name, str(TOP), str(_VENV)),
                    *(str(context["runAsUser"]), str(context["runAsGroup"]), volumes),
                    *(_expanded(word, given) for word in program),
                ],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env=given | {"PATH": f"{given['PATH']}:/usr/sbin:/sbin"},
                cwd="/",
                start_new_session=True,
            )
        self.pods.append(RunningPod(name=name, address=address, process=process, log=log))
        return self.pods[-1]

    def shut_down(self) -> None:
        """End all processes, and print the output of the pods, to show the reason of a failure."""
        for pod in self.pods:
            # By its group: some programs write over the variables by which we would know them.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pod.process.pid, signal.SIGKILL)
        for pid in processes_with(self.mark):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for pod in self.pods:
            pod.process.wait()
            print(f"--- {pod.name}\n{pod.output()[-2000:]}")
        wait_until(lambda: not processes_with(self.mark), 20)

    def _mounts(self, pod: str, spec: dict[str, Any], files: dict[str, dict[str, str]]) -> list[str]:
        lines, group = [], spec["securityContext"].get("fsGroup", spec["securityContext"]["runAsGroup"])
        for mount in spec["containers"][0].get("volumeMounts", []):
            volume = next((one for one in spec["volumes"] if one["name"] == mount["name"]), {})
            if "persistentVolumeClaim" in volume:
                source = self.volume(volume["persistentVolumeClaim"]["claimName"], group)
            else:
                source = self.volume(f"{pod}-{mount['name']}", group)
            held = volume.get("configMap", {}).get("name") or volume.get("secret", {}).get("secretName")
            for key, text in files.get(held, {}).items():
                (source / key).write_text(text)
            lines.append(f"{source} {mount['mountPath']} {'ro' if mount.get('readOnly') else 'rw'}")
        # The shorter path first: one volume may lie in another.
        return sorted(lines, key=lambda line: line.split()[1])


@dataclass
class RunningPod:
    """One pod's processes."""

    name: str
    address: str
    process: subprocess.Popen[bytes]
    log: Path

    def ended(self) -> int | None:
        """The exit code as the kubelet reports it, None while it runs."""
        code = self.process.poll()
        return 128 - code if code is not None and code < 0 else code

    def evict(self) -> None:
        """SIGTERM to its first process, as the kubelet sends it."""
        self.process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Its machine is gone."""
        self.process.kill()
        self.process.wait()

    def output(self) -> str:
        return self.log.read_text()


def can_make_pods() -> bool:
    return bool(shutil.which("unshare") and shutil.which("setpriv")) and os.geteuid() == 0


def _of_the_pod(container: dict[str, Any], name: str, address: str) -> dict[str, str]:
    """The variables that a manifest takes from the pod itself."""
    known = {"metadata.name": name, "status.podIP": address}
    asked = {one["name"]: one.get("valueFrom", {}) for one in container.get("env", [])}
    return {
        key: known[source["fieldRef"]["fieldPath"]] for key, source in asked.items() if "fieldRef" in source
    }


def _expanded(word: str, environment: dict[str, str]) -> str:
    """Kubernetes' own $(NAME); what it does not know stays."""
    return re.sub(r"\$\((\w+)\)", lambda found: environment.get(found[1], found[0]), word)
