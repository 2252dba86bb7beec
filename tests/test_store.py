import zipfile
from pathlib import Path

import numpy as np
import pytest
import zarr
import zarr.storage

from pipeline import store
from pipeline.errors import ArtefactError, SlideError


def attributes(error: SlideError | None = None) -> dict[str, object]:
    return store.stage_attributes("tile", slide_id="a", fingerprint="f", error=error, mpp=0.5)


@pytest.mark.parametrize("rows", [0, 1, store.CHUNK_ROWS, store.CHUNK_ROWS + 1])
def test_arrays_and_attributes_come_back_as_written(tmp_path: Path, rows: int) -> None:
    features = np.random.default_rng(0).normal(size=(rows, 3)).astype(np.float16)
    path = tmp_path / "deep" / "a.zarr.zip"
    store.write(path, {"features": features, "tissue": np.zeros(rows, np.float32)}, attributes())
    artefact = store.read(path)
    assert artefact.ok
    assert artefact.attributes["mpp"] == 0.5
    np.testing.assert_array_equal(artefact.arrays["features"], features)
    assert artefact.arrays["features"].dtype == np.float16
    assert artefact.arrays["tissue"].shape == (rows,)


def test_a_quarantined_artefact_carries_its_reason(tmp_path: Path) -> None:
    error = SlideError("no mpp", remedy="add it to overrides.csv")
    store.write(tmp_path / "a.zarr.zip", {}, attributes(error))
    artefact = store.read(tmp_path / "a.zarr.zip")
    assert not artefact.ok
    inherited = store.inherited_error(artefact.attributes)
    assert inherited is not None
    assert (inherited.reason, inherited.remedy) == ("no mpp", "add it to overrides.csv")


def test_zarr_reads_the_file_without_us(tmp_path: Path) -> None:
    store.write(tmp_path / "a.zarr.zip", {"coords": np.ones((5, 2), np.int32)}, attributes())
    zip_store = zarr.storage.ZipStore(tmp_path / "a.zarr.zip", mode="r")
    group = zarr.open_group(zip_store, mode="r")
    assert group["coords"].shape == (5, 2)  # type: ignore[union-attr]
    zip_store.close()


def test_a_chunk_of_zeros_is_stored(tmp_path: Path) -> None:
    store.write(tmp_path / "a.zarr.zip", {"score": np.zeros(9, np.float32)}, attributes())
    with zipfile.ZipFile(tmp_path / "a.zarr.zip") as archive:
        assert "score/c/0" in archive.namelist()


def test_a_failed_write_leaves_the_old_file_and_no_part(tmp_path: Path) -> None:
    path = tmp_path / "a.zarr.zip"
    store.write(path, {"coords": np.ones((5, 2), np.int32)}, attributes())
    with pytest.raises(TypeError):
        store.write(path, {}, {"status": object()})
    assert store.read(path).arrays["coords"].sum() == 10
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.zarr.zip"]


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_a_torn_file_is_an_error_that_names_it(tmp_path: Path, share: float) -> None:
    path = tmp_path / "a.zarr.zip"
    store.write(path, {"coords": np.arange(20000, dtype=np.int32).reshape(-1, 2)}, attributes())
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ArtefactError, match=r"a\.zarr\.zip: damaged"):
        store.read(path)


def test_a_changed_byte_in_a_chunk_is_found(tmp_path: Path) -> None:
    path = tmp_path / "a.zarr.zip"
    noise = np.random.default_rng(0).integers(0, 2**31 - 1, size=(5000, 2), dtype=np.int32)
    store.write(path, {"coords": noise}, attributes())
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(bytes(content))
    with pytest.raises(ArtefactError, match="damaged"):
        store.read(path)


def test_another_schema_is_refused(tmp_path: Path) -> None:
    store.write(tmp_path / "a.zarr.zip", {}, {**attributes(), "schema_version": 99})
    with pytest.raises(ArtefactError, match="schema version 99"):
        store.read(tmp_path / "a.zarr.zip")


def test_a_missing_file_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match="no such file"):
        store.read(tmp_path / "a.zarr.zip")


@pytest.mark.parametrize("lengths", [[], [1], [store.CHUNK_ROWS], [4000, 200, 5000, 0, 3], [10000]])
def test_rows_that_come_in_blocks_are_those_of_a_whole_array(tmp_path: Path, lengths: list[int]) -> None:
    whole = np.random.default_rng(0).normal(size=(sum(lengths), 3)).astype(np.float16)
    blocks = np.split(whole, np.cumsum(lengths)[:-1]) if lengths else []
    path = tmp_path / "a.zarr.zip"
    store.write(path, {"features": store.Rows(whole.shape, np.float16, blocks)}, attributes())
    np.testing.assert_array_equal(store.read(path).arrays["features"], whole)
    with zipfile.ZipFile(path) as archive:
        assert len(set(archive.namelist())) == len(archive.namelist())


def test_rows_that_do_not_add_up_leave_no_file(tmp_path: Path) -> None:
    rows = store.Rows((5, 2), np.float16, [np.ones((4, 2), np.float16)])
    with pytest.raises(ValueError, match="4 rows came, 5 were announced"):
        store.write(tmp_path / "a.zarr.zip", {"features": rows}, attributes())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", [b"", b"a\tb\n1\n", b"a\tb\n1\t2\n3\t", b"\xff\n"])
def test_a_torn_table_is_set_aside(tmp_path: Path, content: bytes) -> None:
    whole, torn = tmp_path / "whole.tsv", tmp_path / "torn.tsv"
    store.write_text(whole, "a\tb\n1\t2\n")
    assert store.read_rows(whole, delimiter="\t") == [{"a": "1", "b": "2"}]
    torn.write_bytes(content[:-1] if content.endswith(b"\t") else content)
    with pytest.raises(ArtefactError, match=r"torn\.tsv: damaged .* run the same command again, which makes it anew"):
        store.read_rows(torn, delimiter="\t")
    assert not torn.exists()


def test_torn_json_is_set_aside(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    store.write_text(path, '{"a": 1}')
    assert store.read_json(path) == {"a": 1}
    path.write_text('{"a":')
    with pytest.raises(ArtefactError, match=r"a\.json: damaged .* which makes it anew"):
        store.read_json(path)
    assert not path.exists()
