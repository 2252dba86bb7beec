"""Names that stand in for slides and patients in the reports (`privacy.hash_ids`).

A pseudonym is a keyed hash (HMAC-SHA256): with the key the same name gives the same pseudonym in every run, without it
nobody can find out by hashing the names that they know. Key and table of names stay in a folder that only its owner can
read, beside the results and not in the reports.
"""

import hashlib
import hmac
import os
import re
import secrets
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pipeline import tables
from pipeline.errors import ConfigError

if TYPE_CHECKING:
    from pipeline.evaluation import SlideResult

KEY, TABLE = "key", "ids.tsv"
"""Names of the files in the private folder."""
KEY_BYTES: Final = 32
DIGITS: Final = 16
"""Hexadecimal digits of a pseudonym: 64 bits, so that two of 20,000 names meet with a chance of 1 in 10^11."""
PSEUDONYM = re.compile(rf"[sp]-[0-9a-f]{{{DIGITS}}}")
FEWEST_DIGITS: Final = 5
"""A name of fewer digits and nothing else is a number in most sentences; it is replaced in names of files alone."""
SOME_PATH = re.compile(r"(?<![\w.\]])(?:[A-Za-z]:\\|/)[^\s/\\]+[/\\][^\s,;:()'\"]*")


@dataclass(frozen=True)
class Pseudonyms:
    """Give pseudonyms; `key` is secret."""

    key: bytes

    def slide(self, slide_id: str) -> str:
        """Give the name that reports show for a slide."""
        return self._of("slide", slide_id)

    def patient(self, patient_id: str) -> str:
        """Give the name that reports show for a patient; empty for none."""
        return self._of("patient", patient_id) if patient_id else ""

    def _of(self, kind: str, name: str) -> str:
        # the kind is part of what is hashed: a patient's name tells nothing on a slide of the same name
        digest = hmac.new(self.key, f"{kind}\0{name}".encode(), hashlib.sha256).hexdigest()
        return f"{kind[0]}-{digest[:DIGITS]}"


class Mask:
    """Replaces the names of slides, of patients and of files in sentences.

    Parameters
    ----------
    pseudonyms
        What replaces them.
    slides
        File of each slide, by slide id; None where it is not known.
    patients
        Patient ids.
    """

    def __init__(self, pseudonyms: Pseudonyms, slides: Mapping[str, str | None], patients: Iterable[str] = ()) -> None:
        known: dict[str, str] = {}
        for patient_id in patients:
            known |= _spoken(patient_id, pseudonyms.patient(patient_id))
        for slide_id, path in slides.items():
            shown = pseudonyms.slide(slide_id)
            known |= _spoken(slide_id, shown)
            known |= {f"{slide_id}{ending}": f"{shown}{ending}" for ending in (".log", ".geojson")}
            if path:
                file = Path(path)
                known |= dict.fromkeys((path, str(file.absolute()), file.name), f"{shown}{file.suffix}")
                known |= _spoken(file.stem, shown)
        self._known = known
        # the longest first: one name may begin with another
        names = "|".join(re.escape(name) for name in sorted(known, key=len, reverse=True))
        self._names = re.compile(rf"(?<!\w)(?:{names})(?!\w)") if names else None

    def text(self, sentence: str) -> str:
        """Give a sentence without names and without paths from the root."""
        masked = self._names.sub(lambda found: self._known[found[0]], sentence) if self._names else sentence
        return SOME_PATH.sub("[path]", masked)


def _spoken(name: str, shown: str) -> dict[str, str]:
    return {} if not name or (name.isdecimal() and len(name) < FEWEST_DIGITS) else {name: shown}


def make(folder: Path, *, keep: bool) -> Pseudonyms:
    """Give the pseudonyms of a private folder, and make its key if there is none.

    Parameters
    ----------
    keep
        Whether a key that was made is written; a run that only looks writes nothing.

    Raises
    ------
    ConfigError
        As `load` does for a damaged key.
    """
    if (folder / KEY).exists():
        return load(folder)
    key = secrets.token_bytes(KEY_BYTES)
    if keep:
        _write(folder / KEY, f"{key.hex()}\n")
    return Pseudonyms(key)


def load(folder: Path) -> Pseudonyms:
    """Read the key of a private folder.

    Raises
    ------
    ConfigError
        If the key is missing or damaged. A new one would rename everything, so none is made.
    """
    file = folder / KEY
    try:
        key = bytes.fromhex(file.read_text(encoding="ascii"))
    except FileNotFoundError as error:
        raise ConfigError(f"{file}: no such file; the workflow makes it when privacy.hash_ids is true") from error
    except ValueError:
        key = b""
    if len(key) != KEY_BYTES:
        raise ConfigError(
            f"{file}: it holds no key of {2 * KEY_BYTES} hexadecimal digits; put your copy back, or delete it to give"
            " every slide and patient a new name in the reports"
        )
    return Pseudonyms(key)


def _write(path: Path, text: str) -> None:
    """Write a file that its owner alone can read, in a folder that its owner alone can enter."""
    from pipeline import store  # zarr is slow to import, and planning a run only reads the key

    path.parent.mkdir(parents=True, exist_ok=True)
    path.parent.chmod(0o700)
    with store.replacing(path) as part:
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8", newline="") as handle:
            handle.write(text)


def write_table(folder: Path, pseudonyms: Pseudonyms, *, slides: Iterable[str], patients: Iterable[str]) -> None:
    """Write `ids.tsv`: which slide or patient is behind each pseudonym."""
    rows = [("slide", name, pseudonyms.slide(name)) for name in slides]
    rows += [("patient", name, pseudonyms.patient(name)) for name in sorted(set(patients)) if name]
    _write(folder / TABLE, tables.text([("kind", "name", "shown"), *rows], delimiter="\t"))


def masked_page(
    attributes: Mapping[str, Any], pseudonyms: Pseudonyms, slide_path: Path
) -> tuple[dict[str, Any], Callable[[str], str]]:
    """Give the attributes of a slide's artefact as its page may show them, and what masks other sentences about it."""
    slide_id, patient_id = attributes["slide_id"], attributes.get("patient_id") or ""
    mask = Mask(pseudonyms, {slide_id: str(slide_path)}, [patient_id])
    shown = {"slide_id": pseudonyms.slide(slide_id)}
    if patient_id:
        shown["patient_id"] = pseudonyms.patient(patient_id)
    warnings = [mask.text(sentence) for sentence in attributes.get("warnings", ())]
    return {**attributes, **shown, "warnings": warnings}, mask.text


def mask_results(
    slides: "Iterable[SlideResult]", pseudonyms: Pseudonyms, paths: Mapping[str, str | None]
) -> "list[SlideResult]":
    """Give the results under their pseudonyms, in the pseudonyms' order, as the order of the names could tell them.

    Parameters
    ----------
    paths
        File of each slide, by slide id.
    """
    found = list(slides)
    mask = Mask(pseudonyms, paths, {slide.patient_id for slide in found})
    masked = [
        replace(
            slide,
            slide_id=pseudonyms.slide(slide.slide_id),
            patient_id=pseudonyms.patient(slide.patient_id),
            reason=mask.text(slide.reason),
            remedy=mask.text(slide.remedy),
            warnings=tuple(mask.text(sentence) for sentence in slide.warnings),
        )
        for slide in found
    ]
    return sorted(masked, key=lambda slide: slide.slide_id)


def remove_named(heatmaps: Path) -> None:
    """Remove pictures of earlier runs that bear the names of slides; the folder holds nothing but such pictures."""
    for path in heatmaps.glob("*"):
        if path.is_file() and not PSEUDONYM.fullmatch(path.name.partition(".")[0]):
            path.unlink()
