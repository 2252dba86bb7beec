"""The report's part on training: which records it shows, and what it says where there are none."""

from pathlib import Path

import numpy as np
import pytest

from pipeline import stability_page

HEADER = (
    "epoch,jsd_lag1,jsd_lag5,spearman_lag1,top1_jaccard_lag1,entropy,effective_patches,top10_mass,"
    "validation_cross_entropy,slides\n"
)


def write(folder: Path, fold: int, epochs: int = 12) -> None:
    path = folder / f"fold-{fold}" / "stability.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [
        f"{epoch},{'' if epoch == 1 else 0.3 / epoch},,0.5,0.25,0.9,1234.5,0.01,{1 / epoch},3"
        for epoch in range(1, epochs + 1)
    ]
    path.write_text(HEADER + "\n".join(rows) + ("\n" if rows else ""))


def test_there_is_no_part_where_no_model_followed_a_slide(tmp_path: Path) -> None:
    assert stability_page.render(stability_page.read(tmp_path, range(30))) is None
    write(tmp_path, 0, epochs=0)
    assert stability_page.render(stability_page.read(tmp_path, range(30))) is None


def test_charts_have_a_line_a_model_in_the_order_of_folds(tmp_path: Path) -> None:
    for fold in (10, 2, 0):
        write(tmp_path, fold)
    part = stability_page.render(stability_page.read(tmp_path, range(30)))
    assert part is not None
    for chart in part["charts"]:
        legend = chart["figure"].below[-1]
        assert [item.label.value for item in legend.items] == ["fold 0", "fold 2", "fold 10"]
    assert [name for name, _ in part["rows"]] == ["fold 0", "fold 2", "fold 10"]
    assert part["slides"] == 3


def test_axes_span_the_epochs_and_the_largest_value(tmp_path: Path) -> None:
    write(tmp_path, 0)
    part = stability_page.render(stability_page.read(tmp_path, range(30)))
    assert part is not None
    movement, concentration, loss = (chart["figure"] for chart in part["charts"])
    assert movement.x_range.end == pytest.approx(12, rel=0.03)
    # 0.15 at the second epoch
    tops = [plot.y_range.end for plot in (movement, concentration, loss)]
    np.testing.assert_allclose(tops, [0.2, 1.0, 1.0], rtol=0.03)


def test_table_averages_the_last_epochs_and_shows_a_dash_where_nothing_is_known(tmp_path: Path) -> None:
    write(tmp_path, 0)
    part = stability_page.render(stability_page.read(tmp_path, range(30)))
    assert part is not None
    cells = dict(zip(part["columns"], part["rows"][0][1], strict=True))
    mean = sum(0.3 / epoch for epoch in range(8, 13)) / 5
    assert float(cells["JSD lag 1"]) == pytest.approx(mean, rel=0.01)
    assert cells["JSD lag 5"] == "\N{EN DASH}"
    assert cells["Effective patches"] in ("1234", "1235")


def write_history(folder: Path, fold: int, entropy: float, *, epochs: int = 12, uniform: bool = False) -> None:
    header = "epoch,anchor_kl,anchor_target_entropy" + ("" if uniform else ",anchor_positive_share")
    rows = [f"{epoch},0.25,{entropy}" + ("" if uniform else ",0.5") for epoch in range(1, epochs + 1)]
    (folder / f"fold-{fold}" / "history.csv").write_text("\n".join([header, *rows]) + "\n")


def test_a_target_that_only_flattens_is_named(tmp_path: Path) -> None:
    folders = {name: tmp_path / name for name in ("asmil", "abmil", "abmil+ema", "abmil+uniform")}
    for fold, entropy in ((0, 0.998), (1, 0.698)):
        for folder in folders.values():
            write(folder, fold)
        write_history(folders["asmil"], fold, entropy)
        write_history(folders["abmil+ema"], fold, 0.999)
        write_history(folders["abmil+uniform"], fold, 1.0, uniform=True)  # which is what it is for
    records = {name: stability_page.read(folder, range(30)) for name, folder in folders.items()}
    part = stability_page.render(records["asmil"], records)
    assert part is not None
    assert part["flattened"] == ["fold 0", "abmil+ema"]
    cells = {name: dict(zip(part["columns"], row, strict=True)) for name, row in part["rows"]}
    assert cells["fold 1"]["Anchor: KL"] == "0.25"
    assert cells["asmil, mean"]["Target entropy / log N"] == "0.848"
    assert cells["abmil, mean"]["Anchor: KL"] == "\N{EN DASH}"


def test_a_short_training_is_not_blamed_for_a_uniform_start(tmp_path: Path) -> None:
    write(tmp_path, 0, epochs=5)
    write_history(tmp_path, 0, 0.999, epochs=5)
    part = stability_page.render(stability_page.read(tmp_path, range(30)))
    assert part is not None
    assert part["flattened"] == []


def test_more_models_than_can_be_told_apart_are_said_and_all_are_in_the_table(tmp_path: Path) -> None:
    for fold in range(20):
        write(tmp_path, fold)
    part = stability_page.render(stability_page.read(tmp_path, range(30)))
    assert part is not None
    assert "The first 18 of 20 models." in part["charts"][0]["note"]
    lines = [item.renderers[0].glyph for item in part["charts"][0]["figure"].below[-1].items]
    assert len({(line.line_color, str(line.line_dash)) for line in lines}) == len(lines) == 18
    assert len(part["rows"]) == 20


@pytest.mark.parametrize(("largest", "top"), [(0.15, 0.2), (0.4, 0.4), (0.00061, 0.0008), (9.0, 10.0), (0.0, 1.0)])
def test_scale_ends_at_a_round_number_that_no_value_exceeds(largest: float, top: float) -> None:
    assert stability_page._ceiling([np.array([np.nan, largest])]) == pytest.approx(top)


def test_compared_models_have_a_line_and_a_row_each(tmp_path: Path) -> None:
    records = {}
    for name, folds in (("asmil", (0, 1)), ("abmil", (0, 1))):
        for fold in folds:
            write(tmp_path / name, fold, epochs=8 + 24 * fold)  # one stopped early
        records[name] = stability_page.read(tmp_path / name, range(30))
    part = stability_page.render(records["asmil"], records)
    assert part is not None
    legends = [[item.label.value for item in chart["figure"].below[-1].items] for chart in part["charts"]]
    assert legends == [["fold 0", "fold 1"]] * 3 + [["asmil", "abmil"]] * 3
    assert len({chart["title"] for chart in part["charts"]}) == 6
    assert [name for name, _ in part["rows"]] == ["fold 0", "fold 1", "asmil, mean", "abmil, mean"]
    settled = [float(cells[0]) for _, cells in part["rows"]]  # JSD lag 1, of each fold's own last epochs
    assert settled[2] == pytest.approx((settled[0] + settled[1]) / 2, rel=0.01)
    assert settled[1] < 0.5 * settled[0]
    alone = stability_page.render(records["asmil"], {"asmil": records["asmil"]})
    assert alone is not None
    assert len(alone["charts"]) == 3
