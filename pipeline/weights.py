"""Fetch an encoder's weights once, before any run, and say whether a file is the published one.

Nothing else in the package uses the network, so a compute node needs none.
"""

import contextlib
import json
import logging
import re
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

from pipeline import json_text
from pipeline.checksums import sha256_of
from pipeline.errors import ConfigError

if TYPE_CHECKING:
    from pipeline.encoders.registry import EncoderSpec

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"
"""What `fetch` records beside the weights: digest, source, revision and licence of each file."""


SHA256 = re.compile("[0-9a-f]{64}")


def verify(path: Path, expected: str | None) -> str:
    """Check a file against its published digest, where there is one.

    Parameters
    ----------
    path
        The file.
    expected
        Its published sha256; None where none is known.

    Returns
    -------
    The file's sha256.

    Raises
    ------
    ConfigError
        If the digest is another.
    """
    digest = sha256_of(path)
    if expected is not None and digest != expected:
        raise ConfigError(
            f"{path}: sha256 is {digest}, of the published file {expected}; delete the file and fetch it again, "
            "or name it in `encoder.weights` if it is the one you mean"
        )
    return digest


def checked(path: Path, name: str, published: str | None) -> str:
    """Verify a file of the folder of weights against what is published, or what `fetch` recorded when it came.

    Parameters
    ----------
    path
        The file.
    name
        The encoder, for the message.
    published
        Its published sha256; None where none is known.

    Raises
    ------
    ConfigError
        If the digest is another.
    """
    recorded = read_manifest(path.parent).get(path.name, {}).get("sha256")
    digest = known_sha256(path)
    for expected, source in ((published, "published"), (recorded, "fetched")):
        if expected is not None and digest != expected:
            raise ConfigError(
                f"{name}: sha256 of {path} is {digest}, of the {source} file {expected}; delete the file and fetch it "
                "again, or name it in `encoder.weights` if it is the one you mean"
            )
    return digest


def known_sha256(path: Path) -> str:
    """Give `sha256_of`, remembered as long as the file's size and time stay: a slide's job need not read gigabytes."""
    from pipeline import remembered

    state = path.stat()
    key = ("sha256", str(path.resolve()), state.st_size, state.st_mtime_ns, state.st_ino)
    found = remembered.recall(*key)
    if not isinstance(found, str):
        found = sha256_of(path)
        remembered.remember(found, *key)
    return found


def read_manifest(folder: Path) -> dict[str, dict[str, str]]:
    """Read what is recorded of the files in a folder of weights, by name; nothing where nothing is.

    Raises
    ------
    ConfigError
        If the record cannot be read.
    """
    path = folder / MANIFEST
    if not path.is_file():
        return {}
    try:
        return parse_manifest(path.read_bytes())
    except json_text.JsonError as error:
        raise ConfigError(f"{path}: {error}; delete it and fetch the weights again") from error


def parse_manifest(content: bytes) -> dict[str, dict[str, str]]:
    """Parse a record of weights: texts by key, by name of the file.

    Raises
    ------
    JsonError
        If it is something else.
    """
    found = json_text.parse_object(content)
    for entry in found.values():
        if not isinstance(entry, dict) or not all(isinstance(value, str) for value in entry.values()):
            raise json_text.JsonError("is no record of weights")
    return found


def record(path: Path, entry: Mapping[str, str], *, name: str | None = None) -> None:
    """Record a file of a folder of weights: its digest, source, revision and licence.

    Parameters
    ----------
    path
        The file, in the folder or in a snapshot below it.
    entry
        What is known of it.
    name
        Its name in the record, where that is not the file's own.
    """
    from pipeline.store import write_text

    known = read_manifest(path.parent) | {name or path.name: dict(entry)}
    write_text(path.parent / MANIFEST, json.dumps(known, indent=2, sort_keys=True) + "\n")


def fetch(name: str, folder: Path) -> Path:
    """Put an encoder's weights in `folder`, from the Hugging Face hub, unless they are there.

    The hub's client takes a token from the environment (`HF_TOKEN`) or from its own login. Of `hf-hub:<id>` the
    configuration comes first, which says what else is needed.

    Parameters
    ----------
    name
        The value of `encoder.name`.
    folder
        Where weights are kept; made if need be.

    Returns
    -------
    The file, complete and of the published digest, where one is known.

    Raises
    ------
    ConfigError
        If the encoder needs no weights, is on no hub, or is gated without access; if the hub cannot be reached; or if
        the file's digest is not the published one.
    """
    from pipeline.encoders.registry import HUB_PREFIX, spec  # not above: the encoders import this module

    if name.startswith(HUB_PREFIX):
        return _fetch_snapshot(name, folder)
    found = spec(name, folder)
    if not found.needs_weights:
        raise ConfigError(f"{name}: needs no weights; there is nothing to fetch")
    path = folder / found.weights_file
    if not path.exists():
        if not found.hub_id:
            raise ConfigError(
                f"{name}: its weights ({found.licence}) are published for download by hand only, at {found.source}; "
                f"put the file at {path}"
            )
        _record_of(found, path, revision=_download(found, path))
    digest = verify(path, found.sha256)
    logger.info("%s: %s, sha256 %s, licence %s", name, path, digest, found.licence)
    return path


def _record_of(found: "EncoderSpec", path: Path, *, revision: str) -> None:
    entry = {
        "encoder": found.name,
        "sha256": known_sha256(path),
        "source": found.source,
        "revision": revision or "newest when fetched",
        "licence": found.licence,
    }
    record(path, entry)


def _fetch_snapshot(name: str, folder: Path) -> Path:
    """Fetch a snapshot's configuration, and the first weights that it has."""
    from pipeline.encoders.registry import HUB_PREFIX, spec
    from pipeline.encoders.snapshot import PREPROCESSING, WEIGHTS_NAMES, snapshot_folder

    place, hub_id = snapshot_folder(name, folder), name.removeprefix(HUB_PREFIX)
    wanted = _SnapshotFile(name, hub_id, "config.json")
    if not (place / "config.json").exists():
        # the commit of the first file is that of all others
        wanted = replace(wanted, revision=_download(wanted, place / "config.json"))
    if not (place / PREPROCESSING).exists():
        with contextlib.suppress(_NotOnHubError):  # timm's models have none
            _download(replace(wanted, hub_file=PREPROCESSING), place / PREPROCESSING)
    spec(name, folder)  # a model that cannot be built is not worth its gigabytes
    for file in WEIGHTS_NAMES:
        path = place / file
        try:
            if not path.exists():
                revision = _download(replace(wanted, hub_file=file), path)
                _record_of(spec(name, folder), path, revision=revision)
        except _NotOnHubError:
            continue
        logger.info("%s: %s, sha256 %s", name, path, known_sha256(path))
        return path
    raise ConfigError(f"{name}: the hub has none of {', '.join(WEIGHTS_NAMES)} in {hub_id}; give another model")


@dataclass(frozen=True)
class _SnapshotFile:
    """One file of a snapshot, as `_download` takes it."""

    name: str
    hub_id: str
    hub_file: str
    revision: str = ""
    sha256: str | None = None


class _NotOnHubError(ConfigError):
    """The hub has no such file, or hides it."""


def _download(found: "EncoderSpec | _SnapshotFile", path: Path) -> str:
    """Download a file to `path`, which appears only when it is complete and of the published digest; give its commit.

    The hub says which commit it serves, and of a large file the sha256: both are taken at their word only once the
    bytes that arrived agree.
    """
    from huggingface_hub import errors, get_hf_file_metadata, hf_hub_download, hf_hub_url

    from pipeline.store import replacing  # imports zarr, which those who only want a digest need not wait for

    # the base of the errors of whichever HTTP client this version of the hub's library uses
    transport_error = cast(type[Exception], errors.HfHubHTTPError.__mro__[1])

    page = f"https://huggingface.co/{found.hub_id}"
    logger.info("%s: downloading %s of %s", found.name, found.hub_file, page)
    client = transport_error.__module__.partition(".")[0]
    logging.getLogger(client).setLevel(logging.WARNING)  # its line a request tells the user nothing
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".fetch-") as scratch:
        try:
            url = hf_hub_url(found.hub_id, found.hub_file, revision=found.revision or None)
            served = get_hf_file_metadata(url)
            commit = served.commit_hash or found.revision
            fetched = hf_hub_download(found.hub_id, found.hub_file, revision=commit or None, local_dir=scratch)
        except errors.GatedRepoError as error:
            raise ConfigError(
                f"{found.name}: its owners give access on request; ask at {page}, then set HF_TOKEN and fetch again"
            ) from error
        except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
            raise _unreachable(found, path, page) from error
        except (errors.RepositoryNotFoundError, errors.EntryNotFoundError, errors.RevisionNotFoundError) as error:
            raise _NotOnHubError(
                f"{found.name}: the hub has no {found.hub_file} at {page}, or hides it; "
                "log in there, set HF_TOKEN and fetch again"
            ) from error
        except transport_error as error:
            raise _unreachable(found, path, page) from error
        verify(Path(fetched), found.sha256)
        if served.etag and SHA256.fullmatch(served.etag) and known_sha256(Path(fetched)) != served.etag:
            raise ConfigError(
                f"{found.name}: {found.hub_file} arrived damaged, its sha256 is not the hub's; fetch again"
            )
        with replacing(path) as part:
            shutil.move(fetched, part)
    return commit


def _unreachable(found: "EncoderSpec | _SnapshotFile", path: Path, page: str) -> ConfigError:
    return ConfigError(
        f"{found.name}: the hub cannot be reached from here; fetch on a machine with internet, "
        f"or download {found.hub_file} from {page} and put it at {path}"
    )
