"""Whether the label and the site say the same: then a model can learn the scanner or the stain instead of the disease.

Only the standard library is imported here, because the workflow says so while it plans.
"""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import NormalDist

from pipeline.cohort import Label

STRONG = 0.3
"""Cramer's V from which label and site are called confounded; Cohen's bound of a medium effect for two classes."""
UNLIKELY = 0.01
"""Probability by chance above which they are not: with 60 patients at four sites, V would warn of 6 % of cohorts."""


@dataclass(frozen=True)
class Confounding:
    """How labels spread over sites.

    Parameters
    ----------
    sites, classes
        Names, sorted.
    table
        Patients of each site (row) and class (column); one with two labels or sites counts in each.
    cramers_v
        Association of both, 0 to 1, corrected for its bias in small samples (Bergsma 2013, J. Korean Stat. Soc. 42).
    p
        Probability of so much association by chance: of chi-square, by Wilson and Hilferty's approximation (1931).
    """

    sites: tuple[str, ...]
    classes: tuple[str, ...]
    table: tuple[tuple[int, ...], ...]
    cramers_v: float
    p: float

    @property
    def warning(self) -> str:
        """A sentence where label and site are confounded, else empty."""
        if self.cramers_v < STRONG or self.p > UNLIKELY:
            return ""
        return (
            f"Label and site are confounded (Cramer's V {self.cramers_v:.2f} over {len(self.sites)} sites), so a model"
            " may learn the site instead of the disease; see the table, and compare with evaluation.scheme"
            " leave_one_site_out."
        )

    def lines(self) -> list[str]:
        """Give the table as text, a line a site."""
        width = max(len(site) for site in ("site", *self.sites))
        columns = [max(len(name), 5) for name in self.classes]
        heads = "  ".join(f"{name:>{size}}" for name, size in zip(self.classes, columns, strict=True))
        rows = [f"{'site':<{width}}  {heads}"]
        for site, counts in zip(self.sites, self.table, strict=True):
            cells = "  ".join(f"{count:>{size}}" for count, size in zip(counts, columns, strict=True))
            rows.append(f"{site:<{width}}  {cells}")
        return [*rows, f"Cramer's V {self.cramers_v:.2f}"]


def measure(labels: Mapping[str, Label]) -> Confounding | None:
    """Measure how labels and sites hang together; None where fewer than two sites are named.

    Parameters
    ----------
    labels
        Labels by slide id; slides without a site are left out.
    """
    patients = {(label.patient_id, label.site, label.label) for label in labels.values() if label.site and label.label}
    counts = Counter((site, label) for _, site, label in patients)
    sites, classes = (tuple(sorted({key[axis] for key in counts})) for axis in (0, 1))
    if len(sites) < 2 or len(classes) < 2:
        return None
    table = tuple(tuple(counts[site, name] for name in classes) for site in sites)
    return Confounding(sites, classes, table, *_association(table))


def _association(table: tuple[tuple[int, ...], ...]) -> tuple[float, float]:
    """Give Cramer's V and the p-value of a table of counts with at least two rows and columns, none empty."""
    total = sum(map(sum, table))
    by_row = [sum(row) for row in table]
    by_column = [sum(column) for column in zip(*table, strict=True)]
    chi2 = sum(
        (count - by_row[i] * by_column[j] / total) ** 2 / (by_row[i] * by_column[j] / total)
        for i, row in enumerate(table)
        for j, count in enumerate(row)
    )
    rows, columns = len(by_row), len(by_column)
    freedom = (rows - 1) * (columns - 1)
    spread = 2 / (9 * freedom)
    p = 1 - NormalDist().cdf(((chi2 / freedom) ** (1 / 3) - (1 - spread)) / math.sqrt(spread))
    phi2 = max(0.0, chi2 / total - freedom / (total - 1))
    fewer = min(rows - (rows - 1) ** 2 / (total - 1), columns - (columns - 1) ** 2 / (total - 1)) - 1
    return (min(1.0, math.sqrt(phi2 / fewer)) if fewer > 0 else 0.0), p
