"""Fetch one file over HTTP: with a progress bar, verified, and never half-written."""

from __future__ import annotations

import base64
import binascii
import hashlib
import http.client
import os
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from email.message import Message
from pathlib import Path

from ttengine.errors import DataError, DatasetNotFoundError

BLOCK_BYTES = 1 << 20
TIMEOUT_S = 30.0


class _Refused(Exception):
    """The transfer failed; the text says why."""


def fetch(url: str, path: Path) -> None:
    """Download `url` to `path`; the file appears whole and verified, or not at all.

    The length is checked against Content-Length and the content against the MD5 that the server states (Content-MD5 or
    x-goog-hash). A SHA-256 is written beside the file, for `verify` on later loads.

    Raises:
        DatasetNotFoundError: the network refused, or what came is not what the server announced.
    """
    try:
        if not url.startswith(("http://", "https://")):
            raise _Refused("only http and https addresses are fetched")
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(path) as temporary:
            digest = _transfer(url, temporary)
        _sidecar(path).write_text(f"{digest}  {path.name}\n", encoding="ascii")
    except (_Refused, OSError, http.client.HTTPException) as error:  # URLError and time-outs are OSErrors
        reason = error.reason if type(error) is urllib.error.URLError else error
        raise DatasetNotFoundError(
            f"{path.name} is not here and could not be fetched from {url} ({reason or type(error).__name__}); fetch it "
            f"on a machine that can and put it at {path}, or set D4RL_DATASET_DIR to the folder it is in"
        ) from error


def verify(path: Path) -> None:
    """Compare a file with the SHA-256 that was recorded when it was fetched; a file without a record passes.

    Raises:
        DataError: the file has changed since.
    """
    sidecar = _sidecar(path)
    if not sidecar.is_file():
        return
    recorded = sidecar.read_text(encoding="ascii").split()[:1]
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if recorded != [digest]:
        raise DataError(
            f"{path} has SHA-256 {digest}, recorded when it was fetched was {' '.join(recorded) or 'nothing'}; delete "
            f"both files to fetch them again, or delete {sidecar.name} alone to keep the changed file"
        )


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; it replaces `path` when the block ends well, else it is removed."""
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.part{path.suffix}")
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _transfer(url: str, temporary: Path) -> str:
    """Stream `url` into a file and check it; return its SHA-256."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    text = TextColumn("{task.description}")
    columns = (text, BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    md5, sha256, received = hashlib.md5(usedforsecurity=False), hashlib.sha256(), 0
    request = urllib.request.Request(url, headers={"User-Agent": "ttengine"})
    with (
        urllib.request.urlopen(request, timeout=TIMEOUT_S) as response,
        temporary.open("wb") as file,
        Progress(*columns, console=Console(stderr=True)) as progress,
    ):
        length = response.headers.get("Content-Length")
        announced = int(length) if length is not None and length.isdigit() else None
        task = progress.add_task(f"fetching {url.rpartition('/')[2]}", total=announced)
        while block := response.read(BLOCK_BYTES):
            file.write(block)
            md5.update(block)
            sha256.update(block)
            received += len(block)
            progress.advance(task, len(block))
    if announced is not None and received != announced:
        raise _Refused(f"the transfer broke off after {received} of {announced} bytes")
    stated = _stated_md5(response.headers)
    if stated is not None and stated != md5.digest():
        raise _Refused(f"what came has MD5 {md5.hexdigest()}, the server announced {stated.hex()}")
    return sha256.hexdigest()


def _stated_md5(headers: Message) -> bytes | None:
    """Return the MD5 in Content-MD5 or x-goog-hash (`crc32c=...,md5=...`, perhaps on several lines)."""
    stated = [headers["Content-MD5"]] if headers["Content-MD5"] else []
    for line in headers.get_all("x-goog-hash", []):
        stated += [part.strip().removeprefix("md5=") for part in line.split(",") if part.strip().startswith("md5=")]
    try:
        return base64.b64decode(stated[0], validate=True) if stated else None
    except binascii.Error as error:
        raise _Refused(f"the server's checksum {stated[0]!r} cannot be read") from error


def _sidecar(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")
