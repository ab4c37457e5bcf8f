#!/bin/sh
# Sees to the compilers that only `make cpp-portability` needs: Clang, GCC for arm64, and qemu to run what that makes.
# Installs the missing ones as root with apt-get; where that cannot be done it says what is missing, and is no failure.
set -u
missing=""
have() { command -v "$1" >/dev/null; }

have clang++ || missing="$missing clang"
have aarch64-linux-gnu-g++ || missing="$missing g++-aarch64-linux-gnu libc6-dev-arm64-cross"
have qemu-aarch64 || have qemu-aarch64-static || missing="$missing qemu-user"

[ -n "$missing" ] || exit 0
if ! have apt-get; then
  why="there is no apt-get"
elif [ "$(id -u)" -ne 0 ]; then
  why="only root can install them"
else
  why="apt-get failed"
  echo "installing compilers:$missing"
  apt() { DEBIAN_FRONTEND=noninteractive apt-get -q -o Acquire::Retries=1 -o Acquire::http::Timeout=30 "$@"; }
  # shellcheck disable=SC2086  # one word per package
  apt update && apt install -y --no-install-recommends $missing && exit 0
fi
echo "compilers are missing and were not installed, $why (Debian's names):$missing"
