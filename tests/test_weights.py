import hashlib
import logging
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub.constants
import pytest

from pipeline import checksums, weights
from pipeline.errors import ConfigError

MODEL, REPOSITORY = "timm:test_vit", "timm/test_vit.r160_in1k"
CONTENT = b"tensors of a model" * 1000
COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(BaseHTTPRequestHandler):
    """Serve one file the way the hub does: over HTTP, with the headers that its client reads."""

    error = ""
    damaged = False

    def do_HEAD(self) -> None:
        self.answer(with_body=False)

    def do_GET(self) -> None:
        self.answer(with_body=True)

    def answer(self, *, with_body: bool) -> None:
        found = self.path in {f"/{REPOSITORY}/resolve/{revision}/model.safetensors" for revision in ("main", COMMIT)}
        if self.error or not found:
            self.send_response(403 if self.error == "GatedRepo" else 404)
            self.send_header("X-Error-Code", self.error or "EntryNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(200)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{hashlib.sha256(CONTENT).hexdigest()}"')
        self.send_header("Content-Length", str(len(CONTENT)))
        self.end_headers()
        if with_body:
            self.wfile.write(CONTENT if not self.damaged else CONTENT[::-1])

    def log_message(self, format: str, *arguments: object) -> None:
        """Keep the test's output to itself."""


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Hub]]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    address = f"http://127.0.0.1:{server.server_address[1]}"
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", address)
    monkeypatch.setattr(
        huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(Hub, "error", "")
    yield Hub
    server.shutdown()
    thread.join()
    server.server_close()


def test_sha256_is_that_of_the_content(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"abc")
    # FIPS 180-4, the example of one block
    assert checksums.sha256_of(path) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_verify_accepts_the_published_file_and_names_another(tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    path.write_bytes(b"abc")
    digest = checksums.sha256_of(path)
    assert weights.verify(path, digest) == digest
    assert weights.verify(path, None) == digest
    with pytest.raises(ConfigError, match=rf"a\.pth: sha256 is {digest}, of the published file 0000"):
        weights.verify(path, "0" * 64)


def test_texture_has_nothing_to_fetch(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nothing to fetch"):
        weights.fetch("texture", tmp_path)


def test_ctranspath_says_where_its_authors_publish_it_and_where_to_put_the_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        weights.fetch("ctranspath", tmp_path)
    message = str(caught.value)
    assert "https://github.com/Xiyue-Wang/TransPath" in message
    assert "non-commercial" in message
    assert message.endswith(f"put the file at {tmp_path / 'ctranspath.pth'}")


def test_another_file_in_the_place_of_ctranspath_is_not_taken_for_it(tmp_path: Path) -> None:
    (tmp_path / "ctranspath.pth").write_bytes(b"<html>quota exceeded</html>")
    with pytest.raises(ConfigError, match=r"ctranspath\.pth: sha256 is .* delete the file"):
        weights.fetch("ctranspath", tmp_path)


def test_a_file_of_the_hub_arrives_whole_and_alone(
    hub: type[Hub], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "weights"
    with caplog.at_level(logging.INFO, logger="pipeline.weights"):
        path = weights.fetch(MODEL, folder)
    assert path == folder / "timm-test_vit.safetensors"
    assert path.read_bytes() == CONTENT
    assert sorted(entry.name for entry in folder.iterdir()) == ["manifest.json", path.name]
    recorded = weights.read_manifest(folder)[path.name]
    assert (recorded["sha256"], recorded["revision"]) == (hashlib.sha256(CONTENT).hexdigest(), COMMIT)
    assert hashlib.sha256(CONTENT).hexdigest() in caplog.text


def test_a_file_that_is_not_of_the_hubs_digest_is_not_kept(
    hub: type[Hub], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "damaged", True)
    with pytest.raises(ConfigError, match="arrived damaged, its sha256 is not the hub's"):
        weights.fetch(MODEL, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_file_that_is_there_is_not_fetched_again(hub: type[Hub], tmp_path: Path) -> None:
    path = weights.fetch(MODEL, tmp_path)
    path.write_bytes(b"mine")
    assert weights.fetch(MODEL, tmp_path).read_bytes() == b"mine"


def test_a_gated_model_without_access_names_the_page_to_visit(
    hub: type[Hub], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "error", "GatedRepo")
    with pytest.raises(ConfigError, match=rf"ask at https://huggingface\.co/{REPOSITORY}, then set HF_TOKEN"):
        weights.fetch(MODEL, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("error", ["RepoNotFound", "EntryNotFound", "RevisionNotFound"])
def test_a_file_that_the_hub_does_not_show_is_a_config_error(
    hub: type[Hub], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: str
) -> None:
    monkeypatch.setattr(hub, "error", error)
    with pytest.raises(ConfigError, match=r"the hub has no model\.safetensors"):
        weights.fetch(MODEL, tmp_path)
    assert not list(tmp_path.iterdir())


def test_offline_fetch_says_where_to_put_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ConfigError, match=r"hub cannot be reached .* put it at .*timm-test_vit\.safetensors"):
        weights.fetch(MODEL, tmp_path)
    assert not list(tmp_path.iterdir())
