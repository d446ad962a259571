"""Figures: one look, and for every method one colour, dash and marker, as `plots.yaml` has them."""

import io
import logging
import re
import sys
from pathlib import Path

import yaml

from prehab_lib.inputs import check_choice
from prehab_lib.runs import certificate

_SHEET = yaml.safe_load(Path(__file__).with_name("plots.yaml").read_text(encoding="utf-8"))
COLORS, STYLES, LOOK = _SHEET["colors"], _SHEET["styles"], _SHEET["look"]
DASHES = {name: (0, tuple(lengths)) for name, lengths in _SHEET["dashes"].items()} | {"solid": "-"}
BLUE, GREEN, GREY = COLORS["blue"], COLORS["green"], COLORS["grey"]
ORANGE, PURPLE, VERMILLION = COLORS["orange"], COLORS["purple"], COLORS["vermillion"]

SIZES = {"column": (4.8, 3.4), "wide": (8.4, 3.4)}  # inches, per row of panels
SAVED_DPI, INLINE_DPI = 200, LOOK["figure.dpi"]


def figure(kind: str = "column", nrows: int = 1, ncols: int = 1, **subplots):
    """A figure in the book's look: (fig, ax), ax an array of axes where there is more than one.

    kind: a key of SIZES, else ValueError. subplots: goes to `matplotlib.pyplot.subplots` (sharex).
    """
    check_choice("kind", kind, SIZES)
    # On a fresh machine matplotlib announces its font cache on stderr, which a notebook would keep.
    logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)
    import matplotlib.pyplot as pyplot

    pyplot.rcParams.update(LOOK)
    width, height = SIZES[kind]
    subplots |= {"figsize": (width, height * nrows), "layout": "constrained"}
    drawn = pyplot.subplots(nrows, ncols, **subplots)
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    if shell is not None:
        shell.display_formatter.formatters["image/png"].for_type(type(drawn[0]), _compact_png)
    return drawn


def style(method: str) -> dict:
    """Keyword arguments for `ax.plot`; ValueError lists the known names."""
    check_choice("method", method, STYLES)
    color, dash, marker, label = STYLES[method]
    return dict(color=COLORS[color], linestyle=DASHES[dash], marker=marker, label=label)


def color(method: str) -> str:
    """The method's colour as #RRGGBB; ValueError as `style`."""
    return style(method)["color"]


def label(method: str) -> str:
    """The method's name in legends and tables; ValueError as `style`."""
    return style(method)["label"]


def shades(count: int) -> list[str]:
    """Colours, from dark to light, for an ordered quantity such as the fraction removed."""
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    return [to_hex(colormaps["viridis"](0.9 * i / max(1, count - 1))) for i in range(count)]


def band(ax, data, x: str, y: str, **look) -> None:
    """The mean of `y` at each `x` of a DataFrame as a line of this look, its range as a band."""
    import seaborn

    labels = {"xlabel": ax.get_xlabel(), "ylabel": ax.get_ylabel()}
    # Seaborn draws markers with a white edge, in which a cross would disappear.
    look = {"markeredgecolor": look.get("color"), "markeredgewidth": 1} | look
    spread = {"errorbar": ("pi", 100), "err_kws": {"alpha": 0.14, "linewidth": 0}}
    seaborn.lineplot(data, x=x, y=y, ax=ax, legend=False, **spread, **look)
    ax.set(**labels)  # not the names of the columns


PAPER = [("the paper's tables", "black", False)]  # label, colour, whether it stands in
PAPER += [("the paper over SVD-LLM: it has no control", "0.6", True)]


def forest(ax, names, rows, color: str, paper=None) -> None:
    """An effect a row with its interval around a line at 0; the paper's effects as open diamonds.

    names (k,): what stands beside a row, top to bottom. rows: a DataFrame with mean, low, high;
    NaN ends draw the point alone. paper (k,): the paper's effects in the same unit, NaN for none;
    grey where `rows.paper` says that it has no control, and another effect of it stands in.
    """
    places = range(len(rows))[::-1]
    sides = [rows["mean"] - rows.low, rows.high - rows["mean"]]
    ax.errorbar(rows["mean"], places, xerr=sides, fmt="o", color=color, capsize=2, label="here")
    if paper is not None:
        words = rows["paper"] if "paper" in rows else [""] * len(rows)
        known = [point for point in zip(paper, places, words, strict=True) if point[0] == point[0]]
        for label, shade, borrowed in PAPER:
            some = [at for *at, said in known if said.startswith("no control") == borrowed]
            if some:
                ax.plot(*zip(*some, strict=True), "D", color=shade, fillstyle="none", label=label)
    ax.axvline(0, color="black", lw=0.8)
    ax.set_yticks(places, names)
    ax.set_ylim(-0.7, len(rows) - 0.3)
    ax.grid(False, axis="y")


def legend(fig, ncols: int = 3):
    """One legend for all panels, below them, so that it covers no data; each label once."""
    entries = {}
    for ax in fig.axes:
        handles, labels = ax.get_legend_handles_labels()
        entries = dict(zip(labels, handles, strict=True)) | entries
    return fig.legend(entries.values(), entries.keys(), loc="outside lower center", ncols=ncols)


def save(fig, name: str, table, caption: str = "", alt: str = "", **about) -> None:
    """Writes name.png, name.csv and name.json into the run's figures; nothing outside a run.

    table: the numbers drawn. alt: the figure in words. The JSON record has the birth certificate,
    `caption`, `alt` and `about`. Raises ValueError for a name that is no plain file name.
    """
    if not re.fullmatch(r"[a-z0-9_]+", name):
        raise ValueError(f"figure name {name!r}: use lower-case letters, digits, underscores only")
    run = certificate.run_dir()
    if run is None:
        return
    folder = run / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    record = {"figure": name, "caption": caption, "alt": alt} | about
    record["about"] = certificate.birth_certificate()
    metadata = {"Title": caption, "Description": alt} if alt else {}
    fig.savefig(folder / f"{name}.png", dpi=SAVED_DPI, metadata=metadata)
    counted = table.index.name is None and list(table.index) == list(range(len(table)))
    table.to_csv(folder / f"{name}.csv", index=not counted, float_format="%.6g")
    certificate.write_json(folder / f"{name}.json", record)


def _compact_png(fig) -> bytes:
    """The figure as a PNG of 128 colours: a third of the size, which keeps notebooks small."""
    from PIL import Image

    whole, small = io.BytesIO(), io.BytesIO()
    fig.savefig(whole, format="png")
    picture = Image.open(whole).convert("RGB").quantize(128, dither=Image.Dither.NONE)
    picture.save(small, "PNG", optimize=True)
    return small.getvalue()
