import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from blake3 import blake3

from dynamo.frontend.artifacts import ArtifactError, ArtifactStore
from dynamo.shared.protocol import FileRef

CONTENT = b'{"model_type": "demo"}' * 100_000


def ref(path: object, content: bytes = CONTENT, size: int | None = None) -> FileRef:
    return FileRef(str(path), "blake3:" + blake3(content).hexdigest(), size)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "worker" / "config.json"
    path.parent.mkdir()
    path.write_bytes(CONTENT)
    return path


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(cache_dir=tmp_path / "cache")


class MetadataServer(http.server.ThreadingHTTPServer):
    """Serves CONTENT as a worker's status server does, at any path but /missing, and counts how often."""

    num_served = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1/metadata/config.json"


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        assert isinstance(self.server, MetadataServer)
        self.server.num_served += 1
        self.send_response(404 if self.path == "/missing" else 200)
        self.end_headers()
        self.wfile.write(CONTENT)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[MetadataServer]:
    with MetadataServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_a_local_path_and_a_file_url_are_used_in_place(config: Path, store: ArtifactStore) -> None:
    assert store.fetch(ref(config)) == config
    assert store.fetch(ref(f"file://{config}")) == config


def test_a_path_of_another_machine_is_found_by_name_below_the_model_path(config: Path) -> None:
    assert ArtifactStore(model_path=config.parent).fetch(ref("/nowhere/on/this/machine/config.json")) == config


def test_a_local_file_that_changed_gives_way_to_the_model_path(config: Path, tmp_path: Path) -> None:
    changed = tmp_path / "config.json"
    changed.write_bytes(b"changed")
    assert ArtifactStore(model_path=config.parent).fetch(ref(changed)) == config


def test_a_wrong_checksum_names_the_file_and_both_sums(config: Path, store: ArtifactStore) -> None:
    wrong = ref(config, b"something else")
    with pytest.raises(ArtifactError) as caught:
        store.fetch(wrong)
    for part in (str(config), wrong.checksum, ref(config).checksum):
        assert part in str(caught.value)


@pytest.mark.parametrize("checksum", ["", "blake3:", "sha256:" + "0" * 64, "blake3:../../etc/passwd"])
def test_a_checksum_of_another_kind_is_refused(checksum: str, config: Path, store: ArtifactStore) -> None:
    with pytest.raises(ArtifactError, match="blake3:<64 hex digits>"):
        store.fetch(FileRef(str(config), checksum))


def test_a_download_is_verified_and_kept(server: MetadataServer, store: ArtifactStore, tmp_path: Path) -> None:
    paths = {store.fetch(ref(server.url, size=len(CONTENT))) for _ in range(3)}
    assert [path.read_bytes() for path in paths] == [CONTENT]
    assert server.num_served == 1
    assert [path.parent for path in paths] == [tmp_path / "cache" / "mdc" / "blobs"]


def test_a_spoilt_cache_entry_is_fetched_again(server: MetadataServer, store: ArtifactStore) -> None:
    store.fetch(ref(server.url)).write_bytes(b"spoilt")
    assert store.fetch(ref(server.url)).read_bytes() == CONTENT


def test_a_download_with_a_wrong_checksum_leaves_nothing(
    server: MetadataServer, store: ArtifactStore, tmp_path: Path
) -> None:
    with pytest.raises(ArtifactError, match=f"found {ref('x').checksum}"):
        store.fetch(ref(server.url, b"something else"))
    assert list((tmp_path / "cache" / "mdc" / "blobs").iterdir()) == []


def test_a_download_stops_at_its_size(server: MetadataServer, store: ArtifactStore) -> None:
    with pytest.raises(ArtifactError, match="larger than the 1000 bytes"):
        store.fetch(ref(server.url, size=1000))


def test_what_the_server_answers_is_told(server: MetadataServer, store: ArtifactStore) -> None:
    with pytest.raises(ArtifactError, match="the server answered 404"):
        store.fetch(ref(server.url.replace("/v1/metadata/config.json", "/missing")))


def test_a_server_that_is_gone_is_told(store: ArtifactStore) -> None:
    with pytest.raises(ArtifactError, match="download failed"):
        store.fetch(ref("http://127.0.0.1:1/config.json"))


def test_without_a_writable_cache_downloads_last_as_long_as_the_store(server: MetadataServer, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"in the way of a folder")
    store = ArtifactStore(cache_dir=tmp_path / "file")
    path = store.fetch(ref(server.url))
    assert path.read_bytes() == CONTENT
    assert store.fetch(ref(server.url)) == path
    assert server.num_served == 1
    del store
    assert not path.exists()


def test_a_file_nowhere_is_told(store: ArtifactStore) -> None:
    with pytest.raises(ArtifactError, match=r"/nowhere/config\.json: no such file here"):
        store.fetch(ref("/nowhere/config.json"), source_path="/nowhere")


def test_the_hub_is_not_asked_when_offline(store: ArtifactStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for path, source in (("hf://owner/name@main/config.json", None), ("/nowhere/config.json", "owner/name")):
        with pytest.raises(ArtifactError, match="HF_HUB_OFFLINE"):
            store.fetch(ref(path), source)
