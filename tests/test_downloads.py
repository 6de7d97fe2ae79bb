"""Files by name: whatever happens on the way, nobody gets a broken file."""

import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import tqdm

from memcourse import corpora, downloads
from memcourse.downloads import File, Source

CONTENT = bytes(range(256)) * 1024  # 256 KiB: four chunks


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


class Server:
    """Serves `content` with byte ranges; each test breaks it in its own way.  Keeps the ranges asked for."""

    def __init__(self) -> None:
        self.content = CONTENT
        self.stop_after: int | None = None  # bytes of an answer, before the connection closes
        self.knows_ranges = True
        self.announces_length = True
        self.asked: list[str | None] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                asked = self.headers["Range"]
                server.asked.append(asked)
                start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked and server.knows_ranges else 0
                if start >= len(server.content):
                    self.send_error(416)
                    return
                self.send_response(206 if start else 200)
                if start:
                    last, size = len(server.content) - 1, len(server.content)
                    self.send_header("Content-Range", f"bytes {start}-{last}/{size}")
                if server.announces_length:
                    self.send_header("Content-Length", str(len(server.content) - start))
                self.end_headers()
                self.wfile.write(server.content[start:][: server.stop_after])

            def log_message(self, *args: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/planted.bin"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Server]:
    """A server of one data set, "planted", and an empty data folder."""
    server = Server()
    thread = threading.Thread(target=server.http.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    file = File("folder/planted.bin", len(CONTENT), hashlib.sha256(CONTENT).hexdigest(), server.url)
    monkeypatch.setattr(downloads, "SOURCES", {"planted": Source("CC0", server.url, ((file,),))})
    monkeypatch.setenv("MEMCOURSE_DATA", str(tmp_path))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    yield server
    server.http.shutdown()
    server.http.server_close()
    thread.join()


def test_download(server: Server, tmp_path: Path) -> None:
    assert corpora.catalog()[0].state == "not here"
    assert corpora.download("planted") == tmp_path
    assert downloads.read("planted") == [CONTENT] and names(tmp_path) == ["planted.bin"]
    assert corpora.catalog() == [("planted", len(CONTENT) / 1e6, "CC0", server.url, "ready")]
    corpora.download("planted")
    assert server.asked == [None], "a whole file is not fetched again"


def test_download_into_another_folder(server: Server, tmp_path: Path) -> None:
    corpora.download("planted", tmp_path / "elsewhere")
    assert downloads.read("planted", tmp_path / "elsewhere") == [CONTENT]
    assert corpora.catalog()[0].state == "not here"


def test_a_connection_that_breaks_is_resumed(server: Server, tmp_path: Path) -> None:
    server.stop_after = 100_000
    with pytest.raises(corpora.DataError, match="100000 of 262144 bytes.* memcourse data planted"):
        corpora.download("planted")
    assert names(tmp_path) == ["planted.bin.part"]
    with pytest.raises(corpora.DataError, match="200000 of 262144 bytes"):
        corpora.download("planted")
    corpora.download("planted")
    assert server.asked == [None, "bytes=100000-", "bytes=200000-"]
    assert downloads.read("planted") == [CONTENT] and names(tmp_path) == ["planted.bin"]


def test_a_server_that_knows_no_ranges_starts_again(server: Server, tmp_path: Path) -> None:
    server.stop_after = 100_000
    with pytest.raises(corpora.DataError):
        corpora.download("planted")
    server.stop_after, server.knows_ranges = None, False
    corpora.download("planted")
    assert downloads.read("planted") == [CONTENT] and names(tmp_path) == ["planted.bin"]


def test_control_c_loses_nothing(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Interrupted(tqdm.tqdm):
        def update(self, n: float | None = 1) -> None:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(tqdm, "tqdm", Interrupted)
        corpora.download("planted")
    assert names(tmp_path) == ["planted.bin.part"]
    corpora.download("planted")
    assert server.asked == [None, f"bytes={downloads.CHUNK}-"]
    assert downloads.read("planted") == [CONTENT] and names(tmp_path) == ["planted.bin"]


@pytest.mark.parametrize("announced", [True, False])
@pytest.mark.parametrize("served", [CONTENT[:-1] + b"!", CONTENT + b"more" * 1000])
def test_another_file_from_the_server_is_not_kept(
    server: Server, tmp_path: Path, served: bytes, announced: bool
) -> None:
    server.content, server.announces_length = served, announced
    with pytest.raises(corpora.DataError, match="gave another file: expected 262144 bytes.* found"):
        corpora.download("planted")
    assert names(tmp_path) == []


def test_a_file_that_became_shorter_on_the_server_does_not_block_the_next_call(server: Server, tmp_path: Path) -> None:
    part = tmp_path / "folder" / "planted.bin.part"
    part.parent.mkdir()
    part.write_bytes(CONTENT[:2000])
    server.content = CONTENT[:1000]
    with pytest.raises(corpora.DataError, match="HTTP Error 416"):
        corpora.download("planted")
    with pytest.raises(corpora.DataError, match="another file: expected 262144 bytes, found 1000"):
        corpora.download("planted")
    assert names(tmp_path) == []


def test_an_altered_part_is_thrown_away_once(server: Server, tmp_path: Path) -> None:
    part = tmp_path / "folder" / "planted.bin.part"
    part.parent.mkdir()
    part.write_bytes(b"x" * 1000)
    with pytest.raises(corpora.DataError, match="another file"):
        corpora.download("planted")
    corpora.download("planted")
    assert downloads.read("planted") == [CONTENT]


@pytest.mark.parametrize("content", [CONTENT[:1000], CONTENT[:-1] + b"!", b""])
def test_a_broken_file_is_named_and_replaced(server: Server, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "folder" / "planted.bin"
    path.parent.mkdir()
    path.write_bytes(content)
    with pytest.raises(corpora.DataError) as error:
        downloads.read("planted")
    for part in (
        str(path),
        *(hashlib.sha256(c).hexdigest() for c in (CONTENT, content)),
        "memcourse data planted",
    ):
        assert part in str(error.value)
    assert corpora.catalog()[0].state == "altered"
    server.stop_after = 10
    with pytest.raises(corpora.DataError):
        corpora.download("planted")
    assert path.read_bytes() == content, "a download that fails leaves what was there"
    server.stop_after = None
    corpora.download("planted")
    assert downloads.read("planted") == [CONTENT]


def test_a_server_that_is_not_there(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    [[file]] = downloads.SOURCES["planted"].parts
    gone = file._replace(url="http://127.0.0.1:1/planted.bin")
    monkeypatch.setattr(downloads, "SOURCES", {"planted": Source("CC0", "nowhere", ((gone,),))})
    with pytest.raises(corpora.DataError, match="did not arrive from http://127.0.0.1:1/"):
        corpora.download("planted")


def test_either_form_of_a_part_will_do(server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    [[plain]] = downloads.SOURCES["planted"].parts
    packed = File("folder/planted.gz", 4, hashlib.sha256(b"gzip").hexdigest())
    monkeypatch.setattr(downloads, "SOURCES", {"planted": Source("CC0", "origin", ((packed, plain),))})
    corpora.download("planted")
    assert names(tmp_path) == ["planted.bin"] and downloads.read("planted") == [CONTENT]
    (tmp_path / "folder" / "planted.gz").write_bytes(b"torn")
    assert downloads.read("planted") == [CONTENT]
    (tmp_path / "folder" / "planted.gz").write_bytes(b"gzip")
    assert downloads.read("planted") == [b"gzip"]


def test_every_recorded_source_can_be_fetched_or_says_how_to_place_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MEMCOURSE_DATA", str(tmp_path))
    states = {entry.name: entry.state for entry in corpora.catalog()}
    by_hand = {name for name, state in states.items() if state.startswith("place it by hand: ")}
    assert by_hand == {"frankenstein", "pride_and_prejudice", "babi", "python_docs_en_fr"}
    assert {states[name] for name in states.keys() - by_hand} == {"not here"}
    for name in by_hand:
        with pytest.raises(corpora.DataError, match="place it by hand: .* made from https://github.com/"):
            corpora.download(name)
    for name in states:
        with pytest.raises(corpora.DataError, match=f"is not there: expected .* memcourse data {name}"):
            corpora.load(name)
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    ("platform", "variable", "folder"),
    [
        ("linux", "XDG_CACHE_HOME", "memcourse"),
        ("win32", "LOCALAPPDATA", "memcourse"),
        ("darwin", None, None),
    ],
)
def test_data_folder(
    platform: str, variable: str | None, folder: str | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("MEMCOURSE_DATA", raising=False)
    monkeypatch.setattr(downloads.sys, "platform", platform)
    if variable:
        monkeypatch.setenv(variable, str(tmp_path))
        assert corpora.data_folder() == tmp_path / "memcourse"
        monkeypatch.delenv(variable)
    assert corpora.data_folder().is_relative_to(Path.home()) and corpora.data_folder().name == "memcourse"
    monkeypatch.setenv("MEMCOURSE_DATA", str(tmp_path / "mine"))
    assert corpora.data_folder() == tmp_path / "mine"
