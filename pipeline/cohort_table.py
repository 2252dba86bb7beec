"""The cohort table: a row a slide, as `check` finds it and tiling completes it."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

from pipeline import store, tables
from pipeline.errors import ArtefactError


@dataclass(frozen=True)
class CohortRow:
    """One slide of `cohort.tsv`; lengths in level-0 pixels, `mpp` in um per pixel. Empty where it could not be read.

    `area_mm2` is what was scanned; `note` is the overrides file's; `drawn` names what the user drew: tissue, roi.

    The rest is known once the slide was tiled: `tissue_mm2`; the `tiles` that are used; of all tiles placed on tissue,
    the mean shares that are `pen`, `bubble`, `blur` and `fold`, in [0, 1]; the tiles left out for each; and, of a slide
    that could be opened but not tiled, the reason.
    """

    slide_id: str
    path: str
    label: str
    patient_id: str
    site: str
    status: str
    reason: str
    remedy: str
    warnings: str
    width: str = ""
    height: str = ""
    mpp: str = ""
    mpp_source: str = ""
    objective: str = ""
    vendor: str = ""
    levels: str = ""
    downsamples: str = ""
    bytes: str = ""
    fingerprint: str = ""
    compression: str = ""
    area_mm2: str = ""
    note: str = ""
    drawn: str = ""
    tissue_mm2: str = ""
    tiles: str = ""
    pen: str = ""
    bubble: str = ""
    blur: str = ""
    fold: str = ""
    left_out_pen: str = ""
    left_out_bubble: str = ""
    left_out_blur: str = ""
    left_out_fold: str = ""
    not_tiled: str = ""


COLUMNS = tuple(field.name for field in fields(CohortRow))


def duplicates(rows: Sequence[CohortRow]) -> list[tuple[str, str]]:
    """Give pairs of slides that are the same file, by fingerprint."""
    first: dict[str, str] = {}
    pairs = [(first.setdefault(row.fingerprint, row.slide_id), row.slide_id) for row in rows]
    return [(one, other) for one, other in pairs if one != other]


def complete(rows: Sequence[CohortRow], tiles: Path) -> list[CohortRow]:
    """Add to each slide's row what tiling found on it.

    Parameters
    ----------
    tiles
        Folder of the tiles artefacts. A slide that has none there, or one of another file, keeps its row as it is.
    """
    return [_completed(row, tiles / f"{row.slide_id}.zarr.zip") for row in rows]


def _completed(row: CohortRow, path: Path) -> CohortRow:
    if not path.exists():
        return row
    try:
        found = store.read_attributes(path)
    except ArtefactError:
        return row  # damaged, or of an older version: the stage that needs it says so
    if found["fingerprint"] != row.fingerprint:
        return row
    if found["status"] != store.OK:
        return replace(row, tiles="0", not_tiled="" if row.reason else found["reason"])
    flagged, excluded = found.get("flagged", {}), found.get("excluded", {})
    return replace(
        row,
        tissue_mm2=f"{found['tissue_area_mm2']:.4g}",
        tiles=str(found["tiles"]),
        **{name: f"{share:.4g}" for name, share in flagged.items()},
        **{f"left_out_{name}": str(count) for name, count in excluded.items()},
    )


def write_cohort(path: Path, rows: Sequence[CohortRow]) -> None:
    """Write the cohort table as tab-separated text."""
    cells = [tuple(getattr(row, column) for column in COLUMNS) for row in rows]
    store.write_text(path, tables.text([COLUMNS, *cells], delimiter="\t"))


def read_cohort(path: Path) -> list[CohortRow]:
    """Read what `write_cohort` wrote."""
    return [CohortRow(**row) for row in store.read_rows(path, delimiter="\t")]
