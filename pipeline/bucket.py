"""Slides and results in a bucket of an object store that speaks S3.

Snakemake's own storage keeps the local copy of a file until the last job that reads it has ended. A slide is read again
for its picture, after training, so the whole cohort would come to lie on the disk. Here a job copies its slide to a
temporary folder and removes it as it ends. Credentials, region and endpoint are boto3's usual environment variables and
files; nothing of them is in the configuration.

boto3 is imported only where a bucket is named.
"""

import contextlib
import fcntl
import hashlib
import os
import shutil
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any

from pipeline.errors import ConfigError, PipelineError
from pipeline.fingerprint import fingerprint
from pipeline.formats import DICOM_SUFFIX, SLIDE_SUFFIXES

SCHEME = "s3://"
ATTEMPTS = 8
"""Of each request, with growing pauses: a store that is busy answers with an error, and a run makes many requests."""

SCRATCH, LOCK, SLIDE = "asmil-wsi-slide-", "lock", "slide"

INDEXES = frozenset({".vms", ".vmu"})
"""Slides whose files are named inside the file, which a listing cannot tell."""


@dataclass(frozen=True)
class BucketObject:
    """One object: its key, size in bytes, and the store's tag of its content."""

    key: str
    size: int
    tag: str


@dataclass(frozen=True)
class BucketSlide:
    """A slide in a bucket: the address of its file, or (DICOM) of its folder with a closing slash, and its objects."""

    url: str
    objects: tuple[BucketObject, ...]

    def __str__(self) -> str:
        return self.url

    @property
    def size(self) -> int:
        """Bytes of all its files."""
        return sum(entry.size for entry in self.objects)

    @property
    def fingerprint(self) -> str:
        """Hex digest that changes when an object does, known from the listing alone."""
        rows = [f"{Path(entry.key).name}\0{entry.size}\0{entry.tag}\n" for entry in self.objects]
        return hashlib.blake2b("".join(rows).encode(), digest_size=16).hexdigest()


Location = Path | BucketSlide
"""Where a slide is."""


def is_url(place: object) -> bool:
    """Tell an address in a bucket from a path."""
    return str(place).startswith(SCHEME)


def fingerprint_of(slide: Location) -> str:
    """Give what changes when a slide is replaced; of one in a bucket, without reading it."""
    return slide.fingerprint if isinstance(slide, BucketSlide) else fingerprint(slide)


def address(url: str) -> tuple[str, str]:
    """Split `s3://bucket/key` into bucket and key.

    Raises
    ------
    ConfigError
        If there is no bucket in it.
    """
    bucket, _, key = url.removeprefix(SCHEME).partition("/")
    if not bucket:
        raise ConfigError(f"'{url}' names no bucket; write s3://bucket/folder")
    return bucket, key


@cache
def _client(process: int) -> Any:  # noqa: ARG001 - a child process must not share its parent's connections
    try:
        import boto3
        from botocore.config import Config
    except ImportError as error:
        raise ConfigError("boto3 is not installed, which s3:// needs; pip install '.[s3]'") from error
    # checksums that only Amazon's own store knows are left out, as others refuse them
    only: Any = dict.fromkeys(("request_checksum_calculation", "response_checksum_validation"), "when_required")
    return boto3.client("s3", config=Config(retries={"mode": "standard", "max_attempts": ATTEMPTS}, **only))


@contextmanager
def _asking(url: str) -> Iterator[Any]:
    """Give the client; what goes wrong with it is said in a sentence."""
    client = _client(os.getpid())
    from boto3.exceptions import Boto3Error
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield client
    except (Boto3Error, BotoCoreError, ClientError) as error:
        raise PipelineError(
            f"{url}: the object store answered '{str(error)[:300]}'; look at the address, the credentials"
            " (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY or AWS_PROFILE) and the endpoint (AWS_ENDPOINT_URL)"
        ) from error


def objects(url: str) -> list[BucketObject]:
    """List the objects whose address begins with `url`, sorted by key.

    Raises
    ------
    PipelineError
        If the store refuses.
    """
    bucket, prefix = address(url)
    with _asking(url) as client:
        pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
        found = [
            BucketObject(entry["Key"], entry["Size"], entry["ETag"].strip('"'))
            for page in pages
            for entry in page.get("Contents", ())
            if not entry["Key"].endswith("/")
        ]
    return sorted(found, key=lambda entry: PurePosixPath(entry.key).parts)


def slides(url: str) -> tuple[list[tuple[str, BucketSlide]], list[str]]:
    """Find the slides below an address, by the rules of `pipeline.discovery.discover`.

    Returns
    -------
    Path below the address without the extension, and slide; and a warning for each object that was ignored.
    """
    folder = url.rstrip("/") + "/"
    bucket, prefix = address(folder)
    names = {entry.key.removeprefix(prefix): entry for entry in objects(folder)}
    found, taken = _of_many_files(bucket, prefix, names)
    warnings: list[str] = []
    for name, entry in names.items():
        path = PurePosixPath(name)
        if name in taken or any(part.startswith(".") for part in path.parts):
            continue
        if path.suffix.lower() in INDEXES:
            warnings.append(f"{SCHEME}{bucket}/{entry.key} is ignored: copy {path.suffix} slides to a disk.")
        elif path.suffix.lower() in SLIDE_SUFFIXES:
            found.append((path.with_suffix("").as_posix(), BucketSlide(f"{SCHEME}{bucket}/{entry.key}", (entry,))))
    return found, warnings


def _of_many_files(
    bucket: str, prefix: str, names: Mapping[str, BucketObject]
) -> tuple[list[tuple[str, BucketSlide]], set[str]]:
    """Find DICOM folders, and MRXS files with the folder beside them; also give the names that belong to them."""
    found: list[tuple[str, BucketSlide]] = []
    below: dict[str, list[str]] = defaultdict(list)
    for name in names:
        for parent in PurePosixPath(name).parents:
            below[parent.as_posix()].append(name)
    taken: set[str] = set()
    for name in names:
        path = PurePosixPath(name)
        if path.suffix.lower() == DICOM_SUFFIX and not path.name.startswith(".") and path.parent.as_posix() != ".":
            folder = path.parent.as_posix()
            if name in taken:
                continue
            parts = [other for other in below[folder] if PurePosixPath(other).parent == path.parent]
            url = f"{SCHEME}{bucket}/{prefix}{folder}/"
        elif path.suffix.lower() == ".mrxs":
            folder = path.with_suffix("").as_posix()
            parts = [name, *below.get(folder, ())]
            url = f"{SCHEME}{bucket}/{prefix}{name}"
        else:
            continue
        taken.update(parts)
        found.append((folder, BucketSlide(url, tuple(names[part] for part in parts))))
    return found, taken


@contextmanager
def local(slide: str | Location, *, planned: str | None = None) -> Iterator[Path]:
    """Give the path of a slide; one in a bucket is copied to a temporary folder (TMPDIR) and removed at the end.

    Parameters
    ----------
    slide
        A path, the address of a file (with `.mrxs`, of the folder beside it too) or of a folder of DICOM files with a
        closing slash.
    planned
        Fingerprint that the slide in the bucket had when the run was planned.

    Raises
    ------
    PipelineError
        If it is not there or not the planned one, or the store refuses.
    """
    if not is_url(slide):
        yield Path(str(slide))
        return
    url = str(slide)
    bucket, key = address(url)
    wanted = slide.objects if isinstance(slide, BucketSlide) else _belonging(url)
    if not wanted:
        raise PipelineError(f"{url} is not there (any more); put it back, or run again without it")
    if planned is not None and BucketSlide(url, wanted).fingerprint != planned:
        raise PipelineError(f"{url} changed after the run was planned; run the same command again, which reads it anew")
    with _scratch() as folder:
        above = PurePosixPath(key.rstrip("/")).parent
        for entry in wanted:
            target = folder / PurePosixPath(entry.key).relative_to(above)
            target.parent.mkdir(parents=True, exist_ok=True)
            with _asking(url) as client:
                client.download_file(bucket, entry.key, str(target))
        yield folder / PurePosixPath(key.rstrip("/")).name


@contextmanager
def _scratch() -> Iterator[Path]:
    """Give a temporary folder; those of jobs that were killed are removed first, told by their lock, the kernel's.

    A folder is not made whole before its lock is held: without `slide` in it, it is being made by another job, whose
    lock is still to come, and stays.
    """
    for old in Path(tempfile.gettempdir()).glob(f"{SCRATCH}*"):
        with contextlib.suppress(OSError), (old / LOCK).open() as lock:  # another user's, or gone meanwhile
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if (old / SLIDE).is_dir():
                shutil.rmtree(old)
    with tempfile.TemporaryDirectory(prefix=SCRATCH) as name, (Path(name) / LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        folder = Path(name) / SLIDE
        folder.mkdir()
        yield folder


def _belonging(url: str) -> tuple[BucketObject, ...]:
    """List the objects of the slide at an address."""
    _, key = address(url)
    if url.endswith("/"):
        return tuple(entry for entry in objects(url) if "/" not in entry.key.removeprefix(key))
    stem = PurePosixPath(key).with_suffix("").as_posix()
    beside = objects(f"{url.removesuffix(key)}{stem}/") if url.lower().endswith(".mrxs") else []
    return (*(entry for entry in objects(url) if entry.key == key), *beside)


def upload(path: Path, url: str) -> None:
    """Copy a file to an address.

    Raises
    ------
    PipelineError
        If the store refuses.
    """
    bucket, key = address(url)
    with _asking(url) as client:
        client.upload_file(str(path), bucket, key)
