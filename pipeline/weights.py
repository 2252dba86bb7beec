"""Fetch an encoder's weights once, before any run, and say whether a file is the published one.

Nothing else in the package uses the network, so a compute node needs none.
"""

import hashlib
import logging
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, cast

from pipeline.errors import ConfigError

if TYPE_CHECKING:
    from pipeline.encoders.registry import EncoderSpec

logger = logging.getLogger(__name__)


def sha256_of(path: Path) -> str:
    """Give the sha256 of a file's content, in hexadecimal."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


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


def fetch(name: str, folder: Path) -> Path:
    """Put an encoder's weights in `folder`, from the Hugging Face hub, unless they are there.

    The hub's client takes a token from the environment (`HF_TOKEN`) or from its own login.

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
    from pipeline.encoders.registry import spec  # not above: the encoders import this module

    found = spec(name)
    if not found.needs_weights:
        raise ConfigError(f"{name}: needs no weights; there is nothing to fetch")
    path = folder / found.weights_file
    if not path.exists():
        if not found.hub_id:
            raise ConfigError(
                f"{name}: its weights ({found.licence}) are published for download by hand only, at {found.source}; "
                f"put the file at {path}"
            )
        _download(found, path)
    logger.info("%s: %s, sha256 %s, licence %s", name, path, verify(path, found.sha256), found.licence)
    return path


def _download(found: "EncoderSpec", path: Path) -> None:
    """Download a file to `path`, which appears only when the file is complete and of the published digest."""
    from huggingface_hub import errors, hf_hub_download

    from pipeline.store import replacing  # imports zarr, which those who only want a digest need not wait for

    # the base of the errors of whichever HTTP client this version of the hub's library uses
    transport_error = cast(type[Exception], errors.HfHubHTTPError.__mro__[1])

    page = f"https://huggingface.co/{found.hub_id}"
    logger.info("%s: downloading %s of %s", found.name, found.hub_file, page)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".fetch-") as scratch:
        try:
            fetched = hf_hub_download(found.hub_id, found.hub_file, revision=found.revision or None, local_dir=scratch)
        except errors.GatedRepoError as error:
            raise ConfigError(
                f"{found.name}: its owners give access on request; ask at {page}, then set HF_TOKEN and fetch again"
            ) from error
        except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
            raise _unreachable(found, path, page) from error
        except (errors.RepositoryNotFoundError, errors.EntryNotFoundError, errors.RevisionNotFoundError) as error:
            raise ConfigError(
                f"{found.name}: the hub has no {found.hub_file} at {page}, or hides it; "
                "log in there, set HF_TOKEN and fetch again"
            ) from error
        except transport_error as error:
            raise _unreachable(found, path, page) from error
        verify(Path(fetched), found.sha256)
        with replacing(path) as part:
            shutil.move(fetched, part)


def _unreachable(found: "EncoderSpec", path: Path, page: str) -> ConfigError:
    return ConfigError(
        f"{found.name}: the hub cannot be reached from here; fetch on a machine with internet, "
        f"or download {found.hub_file} from {page} and put it at {path}"
    )
