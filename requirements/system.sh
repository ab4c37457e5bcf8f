#!/bin/sh
# Sees to the system packages of the set-up: installs the missing ones as root with apt-get, else names them and fails.
# Usage: requirements/system.sh PYTHON
set -eu
python=$1
missing=""
need() { missing="$missing $*"; }

if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
  echo "ttengine needs Python 3.11 or newer; '$python' is not. Name another: make PYTHON=/path/to/python3.11 ..." >&2
  exit 1
fi
"$python" -c 'import ensurepip, venv' 2>/dev/null || need python3-venv
"$python" -c 'import os, sys, sysconfig; sys.exit(not os.path.exists(sysconfig.get_path("include") + "/Python.h"))' ||
  need python3-dev
command -v "${CXX:-g++}" >/dev/null || need g++
# MuJoCo draws without a display through EGL, in software where there is no GPU
"$python" -c 'import ctypes; ctypes.CDLL("libEGL.so.1"), ctypes.CDLL("libGL.so.1")' 2>/dev/null ||
  need libegl1 libgl1 libgl1-mesa-dri

[ -n "$missing" ] || exit 0
if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null; then
  echo "system packages are missing; install these (Debian's names), then run make again:$missing" >&2
  exit 1
fi
echo "installing system packages:$missing"
apt-get update -q
# shellcheck disable=SC2086  # one word per package
DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends $missing
