"""Fetching: good, truncated, corrupted, refused, from a server on this machine."""

from __future__ import annotations

import base64
import hashlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from ttengine.data import Trajectories, catalogue, download, load_dataset, save_dataset
from ttengine.errors import DatasetNotFoundError

BODY = bytes(range(256)) * 9000  # more than two blocks
MD5 = base64.b64encode(hashlib.md5(BODY).digest()).decode()


@dataclass
class Server:
    """What the server answers with."""

    url: str
    body: bytes = BODY
    headers: list[tuple[str, str]] = field(default_factory=list)
    status: int = 200
    length: int | None = None
    requests: int = 0


@pytest.fixture
def server() -> Iterator[Server]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer.requests += 1
            self.send_response(answer.status)
            for name, value in answer.headers:
                self.send_header(name, value)
            if answer.length != -1:
                self.send_header("Content-Length", str(len(answer.body) if answer.length is None else answer.length))
            self.end_headers()
            self.wfile.write(answer.body)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        answer = Server(f"http://127.0.0.1:{http.server_address[1]}/folder/file.hdf5")
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield answer
        http.shutdown()
        thread.join()


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [("Content-MD5", MD5)],
        [("x-goog-hash", f"crc32c=AAAAAA==,md5={MD5}")],
        [("x-goog-hash", "crc32c=AAAAAA=="), ("x-goog-hash", f"md5={MD5}")],
    ],
)
def test_a_good_file_arrives_with_its_checksum_beside_it(
    server: Server, tmp_path: Path, headers: list[tuple[str, str]]
) -> None:
    server.headers = headers
    path = tmp_path / "new" / "file.hdf5"
    download.fetch(server.url, path)
    assert path.read_bytes() == BODY
    assert sorted(each.name for each in path.parent.iterdir()) == ["file.hdf5", "file.hdf5.sha256"]
    assert path.with_name("file.hdf5.sha256").read_text().split()[0] == hashlib.sha256(BODY).hexdigest()
    download.verify(path)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"length": len(BODY) + 5}, "broke off after 2304000 of 2304005 bytes"),
        ({"headers": [("Content-MD5", base64.b64encode(b"0" * 16).decode())]}, "the server announced 3030"),
        ({"headers": [("x-goog-hash", f"md5={base64.b64encode(b'0' * 16).decode()}")]}, "the server announced 3030"),
        ({"headers": [("Content-MD5", "not base64!")]}, "cannot be read"),
        ({"status": 404}, "404"),
        ({"status": 403}, "403"),
    ],
)
def test_a_bad_answer_leaves_no_file_and_says_where_to_put_one(
    server: Server, tmp_path: Path, change: dict[str, object], says: str
) -> None:
    for name, value in change.items():
        setattr(server, name, value)
    with pytest.raises(DatasetNotFoundError, match=says) as error:
        download.fetch(server.url, tmp_path / "file.hdf5")
    assert server.url in str(error.value)
    assert str(tmp_path / "file.hdf5") in str(error.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:9/file.hdf5", "http://nowhere.invalid/file.hdf5", "file:///etc/passwd"]
)
def test_a_refusing_network_says_where_to_put_the_file(tmp_path: Path, url: str) -> None:
    with pytest.raises(DatasetNotFoundError, match="put it at") as error:
        download.fetch(url, tmp_path / "file.hdf5")
    assert url in str(error.value)
    assert not list(tmp_path.iterdir())


def test_a_silent_server_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "TIMEOUT_S", 0.2)
    gate = threading.Event()

    class Silent(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            gate.wait(10)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Silent) as http:
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            with pytest.raises(DatasetNotFoundError, match="timed out"):
                download.fetch(f"http://127.0.0.1:{http.server_address[1]}/a", tmp_path / "a")
        finally:
            gate.set()
            http.shutdown()
            thread.join()


def test_an_id_is_fetched_once_and_then_read_from_the_cache(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("h5py")
    rows = 300
    served = Trajectories(
        np.sin(np.arange(rows * 11).reshape(rows, 11) / 99), np.zeros((rows, 3)), np.ones(rows), np.zeros(rows),
        np.zeros(rows), "served",
    )  # fmt: skip
    save_dataset(served, tmp_path / "served.hdf5")
    server.body = (tmp_path / "served.hdf5").read_bytes()
    monkeypatch.setenv("D4RL_DATASET_DIR", str(tmp_path / "cache"))
    entry = catalogue.D4RLDataset("hopper-medium-v2", server.url, "Hopper-v4", 1000, (11, 3), (0.0, 1.0))
    monkeypatch.setitem(catalogue.BUILT_IN, entry.name, entry)
    for _ in range(2):
        assert load_dataset("hopper-medium-v2").rewards.sum() == rows
    assert server.requests == 1
