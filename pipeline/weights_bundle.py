"""Carry weights to a machine without internet: one archive with the files and a record of them."""

import io
import json
import logging
import shutil
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from pipeline.checksums import sha256_of
from pipeline.encoders.registry import EncoderSpec, built_in, spec
from pipeline.endings import DISK
from pipeline.errors import ConfigError
from pipeline.store import replacing
from pipeline.weights import MANIFEST, checked, known_sha256, parse_manifest, read_manifest, record

log = logging.getLogger(__name__)

LARGEST_MANIFEST = 1 << 24
"""Bytes; an entry takes about 300."""


def fetch_all(names: Sequence[str], folder: Path) -> list[Path]:
    """Fetch several encoders' weights, with a bar on a terminal; raises as `pipeline.weights.fetch` does."""
    from tqdm import tqdm

    from pipeline.weights import fetch

    bar = tqdm(names, unit="file", disable=not sys.stderr.isatty())
    return [fetch(name, folder) for name in bar]


def table(folder: Path) -> str:
    """List the known encoders: size, scale, licence, and whether their weights are in the folder."""
    rows = [("name", "features", "patch", "weights", "licence")]
    for name, found in built_in().items():
        scale = f"{found.mpp:g} um/px" if found.mpp else "scale of your own"
        rows.append((name, str(found.dim), f"{found.patch_px} px, {scale}", _presence(found, folder), found.licence))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    return "\n".join(
        "  ".join([*(text.ljust(width) for text, width in zip(row, widths, strict=False)), row[4]]) for row in rows
    )


def _presence(found: EncoderSpec, folder: Path) -> str:
    if not found.needs_weights:
        return "needs none"
    if (folder / found.weights_file).is_file():
        return "here"
    if not found.hub_id:
        return "by hand"
    return "gated" if found.gated else "fetch"


def present(folder: Path) -> list[tuple[str, Path]]:
    """Give the weights in a folder: every file of a known encoder, and every one that is recorded."""
    known = {found.weights_file: name for name, found in reversed(built_in().items()) if found.weights_file}
    files = {file: name for file, name in known.items() if (folder / file).is_file()}
    for place in [folder, *(child for child in sorted(folder.glob("*")) if child.is_dir())]:
        for file, entry in read_manifest(place).items():
            relative = (place / file).relative_to(folder).as_posix()
            if (folder / relative).is_file():
                files[relative] = entry.get("encoder", relative)
    return [(name, folder / file) for file, name in sorted(files.items())]


def verify_all(folder: Path) -> list[tuple[str, Path, str]]:
    """Read every file of weights in a folder and compare it with its published and its recorded digest.

    Returns
    -------
    Encoder, file and sha256 of each.

    Raises
    ------
    ConfigError
        If one is not what it should be.
    """
    found = []
    for name, path in present(folder):
        known = built_in().get(name)
        digest = sha256_of(path)
        published = known.sha256 if known else None
        recorded = read_manifest(path.parent).get(path.name, {}).get("sha256")
        for expected in (published, recorded):
            if expected is not None and digest != expected:
                raise ConfigError(
                    f"{name}: sha256 of {path} is {digest}, it should be {expected}; delete it and fetch again"
                )
        found.append((name, path, digest))
    return found


def bundle(names: Sequence[str], folder: Path, archive: Path) -> None:
    """Pack the weights of some encoders, and what a snapshot consists of, into one archive.

    Parameters
    ----------
    names
        Encoders whose weights are in `folder`.
    folder
        The folder of weights.
    archive
        The `.tar` to write.

    Raises
    ------
    ConfigError
        If an encoder needs no weights or they are not there.
    """
    manifest: dict[str, dict[str, str]] = {}
    for name in names:
        found = spec(name, folder)
        path = folder / found.weights_file
        if not found.needs_weights or not path.is_file():
            raise ConfigError(f"{name}: has no weights at {path} to pack; fetch them first")
        checked(path, name, found.sha256)
        entry = {"encoder": name, "source": found.source, "licence": found.licence}
        beside = sorted(path.parent.glob("*.json")) if path.parent != folder else []
        for file in [path, *(other for other in beside if other.name != MANIFEST)]:
            manifest[file.relative_to(folder).as_posix()] = entry | {"sha256": known_sha256(file)}
    with replacing(archive) as part, tarfile.open(part, "w") as tar:
        listing = json.dumps(manifest, indent=2, sort_keys=True).encode()
        header = tarfile.TarInfo(MANIFEST)
        header.size = len(listing)
        tar.addfile(header, io.BytesIO(listing))
        for file_name in manifest:
            tar.add(folder / file_name, arcname=file_name, recursive=False)
    log.info("%s: %d files of %s", archive, len(manifest), ", ".join(names))


def unpack(archive: Path, folder: Path) -> list[Path]:
    """Put the weights of a bundle into a folder, each only when it is complete and of the digest that was packed.

    Raises
    ------
    ConfigError
        If the archive is no bundle, names a place outside the folder, or a file in it is damaged.
    """
    written: list[Path] = []
    try:
        with tarfile.open(archive, "r:") as tar:
            manifest = _manifest_of(tar, archive)
            written += [
                _unpack_one(tar, member, manifest, folder=folder, archive=archive)
                for member in tar
                if member.name != MANIFEST
            ]
    except (OSError, tarfile.TarError, EOFError, ValueError) as error:
        if isinstance(error, OSError) and error.errno in DISK:  # of the folder, which the bundle cannot help
            raise
        raise ConfigError(f"{archive}: cannot be read as a bundle of weights ({error}); copy it again") from error
    missing = set(manifest) - {path.relative_to(folder).as_posix() for path in written}
    if missing:
        raise ConfigError(f"{archive}: {sorted(missing)[0]} is missing from the bundle; copy it again")
    return written


def _is_plain(member: tarfile.TarInfo) -> bool:
    """Tell a file whose bytes are all in the archive; one with holes can be of any size."""
    return member.isfile() and not member.issparse()


def _manifest_of(tar: tarfile.TarFile, archive: Path) -> dict[str, dict[str, str]]:
    first = tar.next()
    listed = first is not None and first.name == MANIFEST and _is_plain(first) and first.size <= LARGEST_MANIFEST
    handle = tar.extractfile(first) if first is not None and listed else None
    if handle is None:
        raise ConfigError(f"{archive}: is no bundle of weights; make one with `python -m pipeline weights bundle`")
    return parse_manifest(handle.read())


def _unpack_one(
    tar: tarfile.TarFile, member: tarfile.TarInfo, manifest: dict[str, dict[str, str]], *, folder: Path, archive: Path
) -> Path:
    relative = PurePosixPath(member.name)
    plain = _is_plain(member) and not relative.is_absolute() and ".." not in relative.parts
    if not plain or member.name not in manifest or len(relative.parts) > 2 or "\\" in member.name:
        raise ConfigError(f"{archive}: {member.name!r} is no file of weights; do not trust this archive")
    path = folder / relative
    entry = manifest[member.name]
    handle = tar.extractfile(member)
    assert handle is not None
    with replacing(path) as part:
        with part.open("wb") as target:
            shutil.copyfileobj(handle, target)
        if sha256_of(part) != entry.get("sha256"):
            raise ConfigError(f"{archive}: {member.name} is damaged; copy the archive again")
    record(path, entry)
    log.info("%s: %s, licence %s", entry.get("encoder"), path, entry.get("licence"))
    return path
