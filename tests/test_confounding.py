import numpy as np
import pytest
from scipy.stats import chi2_contingency

from pipeline import confounding
from pipeline.cohort import Label


def cohort(table: list[list[int]], *, slides_per_patient: int = 1) -> dict[str, Label]:
    return {
        f"{site}-{name}-{patient}-{slide}": Label(f"class {name}", f"{site}-{name}-{patient}", f"site {site}")
        for site, row in enumerate(table)
        for name, count in enumerate(row)
        for patient in range(count)
        for slide in range(slides_per_patient)
    }


@pytest.mark.parametrize("table", [[[20, 5], [4, 30]], [[9, 3, 1], [2, 8, 5]], [[7, 1], [1, 7], [4, 4]]])
def test_v_follows_chi_square_of_scipy_with_bergsmas_correction(table: list[list[int]]) -> None:
    found = confounding.measure(cohort(table))
    assert found is not None
    n, r, k = np.sum(table), len(table), len(table[0])
    phi2 = max(0, chi2_contingency(table, correction=False).statistic / n - (r - 1) * (k - 1) / (n - 1))
    smaller = min(r - (r - 1) ** 2 / (n - 1), k - (k - 1) ** 2 / (n - 1)) - 1
    assert found.cramers_v == pytest.approx(np.sqrt(phi2 / smaller))
    assert found.p == pytest.approx(chi2_contingency(table, correction=False).pvalue, abs=0.004)
    assert [list(row) for row in found.table] == table


def test_patients_are_counted_and_not_their_slides() -> None:
    one, many = (confounding.measure(cohort([[6, 2], [2, 6]], slides_per_patient=count)) for count in (1, 5))
    assert one == many


def test_sites_that_hold_one_class_each_are_warned_of_and_balanced_ones_are_not() -> None:
    split = confounding.measure(cohort([[10, 0], [0, 10]]))
    even = confounding.measure(cohort([[10, 10], [9, 10]]))
    assert split is not None
    assert even is not None
    assert split.cramers_v == pytest.approx(1)
    assert "may learn the site instead of the disease" in split.warning
    assert even.warning == ""
    assert "site 1" in "\n".join(split.lines())


def test_one_site_or_none_says_nothing() -> None:
    assert confounding.measure(cohort([[5, 5]])) is None
    assert confounding.measure({"a": Label("x", "p"), "b": Label("y", "q")}) is None


def test_chance_seldom_warns() -> None:
    """Of 200 cohorts of 60 patients at 4 sites without any association, at most one in fifty is warned of."""
    rng = np.random.default_rng(0)
    warned = 0
    for _ in range(200):
        table = rng.multinomial(60, np.full(8, 1 / 8)).reshape(4, 2)
        found = confounding.measure(cohort(table.tolist()))
        warned += bool(found and found.warning)
    assert warned <= 4
