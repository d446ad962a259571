"""Figures: fixed styles, no file outside a run, and PNG + CSV + record inside one."""

import io
import json
import subprocess
import sys
from itertools import combinations

import numpy
import pandas
import pytest
from PIL import Image

from prehab_lib.report import plots

METHODS = "dense svd fwsvd gfwsvd asvd svd_llm svd_llm_v2 swift_svd zs_svd io_svd dobi_svd"
PREPARED = "control prehab prehab_nuclear prehab_nuclear_ratio prehab_stable_rank"


@pytest.fixture
def drawn():
    import matplotlib.pyplot as pyplot

    fig, ax = plots.figure("column")
    table = pandas.DataFrame({"removed": [0.2, 0.4], "score": [80.5, 60.25]})
    ax.plot("removed", "score", data=table, **plots.style("prehab") | {"label": "prehab"})
    yield fig, table
    pyplot.close(fig)


def test_any_two_lines_of_one_figure_differ_in_dash_or_colour_and_in_marker_or_dash():
    for group in (f"{METHODS} {PREPARED}", "nuclear nuclear_ratio stable_rank entropy_rank"):
        for one, other in combinations(map(plots.style, group.split()), 2):
            assert (one["color"], one["linestyle"]) != (other["color"], other["linestyle"])
            assert (one["marker"], one["linestyle"]) != (other["marker"], other["linestyle"])
            assert one["label"] != other["label"]


def test_style_is_accepted_by_matplotlib_for_every_name():
    fig, ax = plots.figure("wide", ncols=2)
    for name in plots.STYLES:
        (line,) = ax[0].plot([0, 1], [0, 1], **plots.style(name))
        assert line.get_color() == plots.color(name)
    fig.canvas.draw()
    assert plots.label("control") == "fine-tuned, λ = 0"
    assert plots.style("original") == plots.style("dense")
    assert len(set(plots.shades(5))) == 5 and plots.shades(1) == plots.shades(5)[:1]
    with pytest.raises(ValueError, match="svd_llm_v2"):
        plots.style("svdllm")
    with pytest.raises(ValueError, match="column, wide"):
        plots.figure("huge")


def test_a_band_is_the_mean_within_all_seeds_in_the_look_of_its_method():
    _, ax = plots.figure()
    scores = pandas.DataFrame({"removed": [0.2, 0.4] * 3, "score": [1.0, 5.0, 2.0, 7.0, 6.0, 9.0]})
    plots.band(ax, scores, "removed", "score", **plots.style("svd"))
    (line,) = ax.get_lines()
    assert line.get_xydata().tolist() == [[0.2, 3.0], [0.4, 7.0]]
    look = plots.style("svd")
    drawn = {"color": line.get_color(), "marker": line.get_marker(), "label": line.get_label()}
    assert look == look | drawn
    assert line.get_markeredgecolor() == look["color"]  # a cross is nothing but its edge
    (shade,) = ax.collections
    edges = {tuple(corner) for corner in shade.get_paths()[0].vertices.round(6)}
    assert {(0.2, 1.0), (0.2, 6.0), (0.4, 5.0), (0.4, 9.0)} <= edges


def test_legend_names_each_label_once_outside_the_axes(drawn):
    fig, _ = drawn
    fig.axes[0].plot([0.2, 0.4], [1, 2], label="prehab")
    box = plots.legend(fig)
    assert [text.get_text() for text in box.get_texts()] == ["prehab"]
    fig.canvas.draw()
    assert box.get_window_extent().y1 <= fig.axes[0].get_window_extent().y0


def test_image_numbers_and_record_are_written_inside_a_run_only(drawn, tmp_path, monkeypatch):
    monkeypatch.delenv("PREHAB_RUN_DIR", raising=False)
    monkeypatch.chdir(tmp_path)
    plots.save(drawn[0], "fig", table=drawn[1])
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setenv("PREHAB_RUN_DIR", str(tmp_path))
    monkeypatch.setenv("PREHAB_PROFILE", "laptop")
    fig, table = drawn
    alt = "Two scores, λ = 0.1: 80 at 20 %, 60 at 40 %"
    plots.save(fig, "fig2_gain", table=table, caption="gain over SVD-LLM", alt=alt, seeds=[0, 1])
    plots.save(fig, "indexed", table=table.set_index("removed"))
    folder = tmp_path / "figures"
    assert Image.open(folder / "fig2_gain.png").text["Description"] == alt
    pandas.testing.assert_frame_equal(pandas.read_csv(folder / "fig2_gain.csv"), table)
    assert list(pandas.read_csv(folder / "indexed.csv").columns) == ["removed", "score"]
    record = json.loads((folder / "fig2_gain.json").read_text(encoding="utf-8"))
    assert (record["caption"], record["alt"], record["seeds"]) == ("gain over SVD-LLM", alt, [0, 1])
    assert record["about"]["profile"] == "laptop"
    for name in ("../escape", "Figure 1", ""):
        with pytest.raises(ValueError, match="figure name"):
            plots.save(fig, name, table=table)


def test_importing_costs_no_heavy_package():
    code = "import sys, prehab_lib.report.plots; print({'matplotlib', 'pandas', 'torch'} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "set()\n"


def test_a_picture_in_a_notebook_is_small_and_looks_the_same():
    fig, ax = plots.figure("wide")
    ax.plot([0, 1], [0, 1], **plots.style("prehab"))
    whole = io.BytesIO()
    fig.savefig(whole, format="png")
    small = plots._compact_png(fig)
    assert len(small) < 0.6 * len(whole.getvalue())
    one, other = (numpy.asarray(Image.open(file).convert("RGB"), dtype=float) for file in (whole, io.BytesIO(small)))
    assert one.shape == other.shape and numpy.abs(one - other).mean() < 1


def test_a_forest_has_a_row_an_effect_and_the_papers_beside_it():
    _, ax = plots.figure()
    rows = pandas.DataFrame({"mean": [1.0, numpy.nan], "low": [0.5, numpy.nan], "high": [2.0, numpy.nan]})
    plots.forest(ax, ["first", "not run"], rows, plots.BLUE, paper=[numpy.nan, 6.6])
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["first", "not run"]
    dots, *_ = ax.containers[0].lines
    assert dots.get_xydata()[0].tolist() == [1.0, 1.0] and ax.containers[0].lines[1][0].get_xdata()[0] == 0.5
    diamonds = next(line for line in ax.get_lines() if line.get_marker() == "D")
    assert diamonds.get_xydata().tolist() == [[6.6, 0.0]] and diamonds.get_label() == "the paper's tables"
    _, ax = plots.figure()
    rows["paper"] = ["", "no control; +6.6 ratio points over SVD-LLM"]
    plots.forest(ax, ["first", "not run"], rows, plots.BLUE, paper=[numpy.nan, 6.6])
    (borrowed,) = [line for line in ax.get_lines() if line.get_marker() == "D"]
    assert "no control" in borrowed.get_label() and borrowed.get_color() == "0.6"
