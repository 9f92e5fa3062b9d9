#!/bin/sh
# Makes a base for the Dockerfile out of Debian's packages alone, where Docker Hub is out of reach:
#   base.sh FILE.tar    for `FROM` by way of buildah or docker import
set -eu
exec mmdebstrap --variant=essential --mode=auto \
    --include=python3-venv,python-is-python3,ca-certificates,libstdc++6,tini,passwd,tzdata \
    --dpkgopt='path-exclude=/usr/share/doc/*' \
    --dpkgopt='path-exclude=/usr/share/info/*' \
    --dpkgopt='path-exclude=/usr/share/locale/*' \
    --dpkgopt='path-exclude=/usr/share/man/*' \
    bookworm "$1"
