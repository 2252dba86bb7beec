import io
import json
import tarfile
from pathlib import Path

import pytest

from pipeline import checksums, encoders, weights, weights_bundle
from pipeline.errors import ConfigError
from pipeline.weights import MANIFEST


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Give a folder with two files of weights and a snapshot."""
    folder = tmp_path / "weights"
    snapshot = folder / "lab--vit"
    snapshot.mkdir(parents=True)
    (folder / "uni.bin").write_bytes(b"tensors of uni")
    (folder / "virchow2.bin").write_bytes(b"tensors of virchow2")
    (snapshot / "config.json").write_text(
        '{"model_type": "vit", "hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 1}'
    )
    (snapshot / "model.safetensors").write_bytes(b"tensors of a snapshot")
    return folder


def test_a_bundle_arrives_as_it_left(folder: Path, tmp_path: Path) -> None:
    archive, away = tmp_path / "b.tar", tmp_path / "away"
    weights_bundle.bundle(["uni", "hf-hub:lab/vit"], folder, archive)
    written = weights_bundle.unpack(archive, away)
    assert sorted(path.relative_to(away).as_posix() for path in written) == [
        "lab--vit/config.json",
        "lab--vit/model.safetensors",
        "uni.bin",
    ]
    for path in written:
        assert path.read_bytes() == (folder / path.relative_to(away)).read_bytes()
    assert [name for name, _, _ in weights_bundle.verify_all(away)] == ["hf-hub:lab/vit", "hf-hub:lab/vit", "uni"]
    assert encoders.check_weights("uni", folder=away) == checksums.sha256_of(folder / "uni.bin")


def test_what_is_not_there_cannot_be_packed(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"gigapath: has no weights at .* fetch them first"):
        weights_bundle.bundle(["uni", "gigapath"], folder, tmp_path / "b.tar")
    assert not (tmp_path / "b.tar").exists()


def forged(archive: Path, name: str, *, kind: bytes = tarfile.REGTYPE, listed: bool = True) -> Path:
    """Write an archive with one member that should not be there."""
    content = b"content"
    digest = "ed7002b439e9ac845f22357d822bac1444730fbdb6016d3ec9432297b9ec9f73"
    listing = json.dumps({name: {"sha256": digest}} if listed else {}).encode()
    with tarfile.open(archive, "w") as tar:
        for member_name, body, member_kind in ((MANIFEST, listing, tarfile.REGTYPE), (name, content, kind)):
            header = tarfile.TarInfo(member_name)
            header.type, header.linkname = member_kind, "/etc/passwd"
            header.size = len(body) if member_kind == tarfile.REGTYPE else 0
            tar.addfile(header, io.BytesIO(body))
    return archive


@pytest.mark.parametrize("name", ["../uni.bin", "/tmp/uni.bin", "a/../../uni.bin", "a/b/uni.bin", "a\\uni.bin"])
def test_a_name_that_leads_out_of_the_folder_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="do not trust this archive"):
        weights_bundle.unpack(forged(tmp_path / "b.tar", name), tmp_path / "weights")
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["b.tar"]


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE])
def test_anything_but_a_plain_file_is_refused(tmp_path: Path, kind: bytes) -> None:
    with pytest.raises(ConfigError, match="do not trust this archive"):
        weights_bundle.unpack(forged(tmp_path / "b.tar", "uni.bin", kind=kind), tmp_path / "weights")


def test_a_file_that_is_not_listed_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="do not trust this archive"):
        weights_bundle.unpack(forged(tmp_path / "b.tar", "uni.bin", listed=False), tmp_path / "weights")


def test_a_changed_byte_is_found_and_leaves_nothing(folder: Path, tmp_path: Path) -> None:
    archive = tmp_path / "b.tar"
    weights_bundle.bundle(["uni"], folder, archive)
    archive.write_bytes(archive.read_bytes().replace(b"tensors of uni", b"tensors of unn"))
    with pytest.raises(ConfigError, match=r"uni\.bin is damaged"):
        weights_bundle.unpack(archive, tmp_path / "away")
    assert not (tmp_path / "away" / "uni.bin").exists()


@pytest.mark.parametrize("content", [b"", b"<html>", b"\0" * 20000])
def test_what_is_no_bundle_is_a_config_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "b.tar").write_bytes(content)
    with pytest.raises(ConfigError, match="bundle of weights"):
        weights_bundle.unpack(tmp_path / "b.tar", tmp_path / "away")


def test_a_file_that_is_not_the_one_that_was_fetched_stops_the_run(folder: Path) -> None:
    weights.record(folder / "uni.bin", {"encoder": "uni", "sha256": "0" * 64})
    for attempt in (
        lambda: weights_bundle.verify_all(folder),
        lambda: encoders.check_weights("uni", folder=folder),
    ):
        with pytest.raises(ConfigError, match=r"uni: sha256 of .*uni\.bin is"):
            attempt()
    assert encoders.check_weights("uni", folder=folder, weights=folder / "uni.bin")


def test_a_digest_is_remembered_until_the_file_changes(folder: Path) -> None:
    path = folder / "uni.bin"
    first = weights.known_sha256(path)
    assert weights.known_sha256(path) == first == checksums.sha256_of(path)
    path.write_bytes(b"other tensors")
    assert weights.known_sha256(path) == checksums.sha256_of(path) != first


def test_the_table_says_of_each_encoder_whether_its_weights_are_here(folder: Path) -> None:
    lines = {line.split()[0]: line for line in weights_bundle.table(folder).splitlines()}
    assert set(encoders.built_in()) <= set(lines)
    assert "here" in lines["uni"]
    assert "gated" in lines["gigapath"]
    assert "by hand" in lines["ctranspath"]
    assert "needs none" in lines["texture"]
    assert "non-commercial" in lines["virchow2"]
