"""What `check` says of a cohort: what to mend, what to look at, whether it can be trained on."""

from collections import Counter
from collections.abc import Iterable, Sequence

from pipeline import store
from pipeline.cohort import Cohort
from pipeline.cohort_table import CohortRow, duplicates
from pipeline.confounding import measure
from pipeline.forecast import Work
from pipeline.slide import MAX_UPSAMPLING

NAMED = 10
"""Slides that a line names; the table has all."""

LARGE_PX = 100_000_000
"""Level-0 pixels above which a slide without a pyramid takes minutes to look over."""


def summarise(cohort: Cohort, rows: Sequence[CohortRow], *, seconds: float, work: Work) -> list[str]:
    """Give the lines of the summary.

    Parameters
    ----------
    cohort, rows
        The cohort, and its table.
    seconds
        How long looking took.
    work
        What will be asked of each slide.
    """
    usable = [row for row in rows if row.status == store.OK]
    lines = [f"{len(rows)} slides looked at in {seconds:.1f} s: {len(usable)} usable, {len(rows) - len(usable)} not"]
    scales = Counter(f"{float(row.mpp):.2f}" for row in usable)
    lines += (
        [f"um per pixel: {', '.join(f'{mpp} ({count})' for mpp, count in sorted(scales.items()))}"] if scales else []
    )
    lines += _labels(cohort, rows)
    found = measure(cohort.labels)
    lines += _section("Patients by site and label", found.lines() if found else ())
    lines += _section(
        "To mend (these slides will be left out)",
        (f"{row.slide_id}: {row.reason}; {row.remedy}" for row in rows if row.status != store.OK),
    )
    lines += _section("The same file twice", (f"{one} and {other}" for one, other in duplicates(rows)))
    lines += _section(
        "Warnings",
        [
            *cohort.warnings,
            *([found.warning] if found and found.warning else []),
            *(f"{row.slide_id}: {row.warnings}" for row in usable if row.warnings),
        ],
    )
    lines += _section(
        "Left out at your word (overrides)",
        (f"{slide_id}{': ' if known.note else ''}{known.note}" for slide_id, known in cohort.skipped.items()),
    )
    lines += _section("Worth knowing", _worth_knowing(usable, work))
    return lines


def _labels(cohort: Cohort, rows: Sequence[CohortRow]) -> list[str]:
    counts = Counter(row.label for row in rows if row.label)
    patients = {name: len({row.patient_id for row in rows if row.label == name}) for name in counts}
    named = ", ".join(f"{name} {counts[name]} (patients: {patients[name]})" for name in sorted(counts))
    unlabelled = len(rows) - sum(counts.values())
    if not cohort.classes and counts:  # numbers or follow-ups, nearly every one another
        of = len({row.patient_id for row in rows if row.label})
        span = f"from {min(counts, key=_number)} to {max(counts, key=_number)}"
        named = f"{sum(counts.values())} slides (patients: {of}), {span}"
    folds = f"not possible: {cohort.problem}" if cohort.problem else "possible"
    return [f"labels: {named or 'none'}; without a label: {unlabelled}", f"folds: {folds}"]


def _number(label: str) -> float:
    return float(label.removesuffix("+"))


def _worth_knowing(usable: Sequence[CohortRow], work: Work) -> list[str]:
    kinds = {
        f"coarser than the {work.mpp:g} um per pixel that patches are read at, so they will be left out": [
            row for row in usable if float(row.mpp) > work.mpp * (1 + MAX_UPSAMPLING)
        ],
        "without a pyramid and large, so their overview is slow to read": [
            row for row in usable if row.levels == "1" and int(row.width) * int(row.height) > LARGE_PX
        ],
        "compressed with JPEG 2000, which is read several times slower than JPEG": [
            row for row in usable if row.compression == "JPEG 2000"
        ],
        "with tissue or regions that you drew": [row for row in usable if row.drawn],
    }
    return [f"{len(found)} {what}: {_names(found)}" for what, found in kinds.items() if found]


def _names(rows: Sequence[CohortRow]) -> str:
    more = f" and {len(rows) - NAMED} more" if len(rows) > NAMED else ""
    return ", ".join(row.slide_id for row in rows[:NAMED]) + more


def _section(title: str, sentences: Iterable[str]) -> list[str]:
    found = list(sentences)
    return ["", title, *(f"  {sentence}" for sentence in found)] if found else []
