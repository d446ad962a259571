"""Figures: one size, one look, and for every method one fixed colour, dash and marker throughout
the book.

Colours are Okabe and Ito's, which stay apart for colour-blind readers; dash and marker carry the
same information again, so a figure survives a grey printer.  Members of a family share a colour:
blue measures the layer's output (Gram), orange the gradients (Fisher), green hands out ranks
unevenly, vermillion is prehab.
"""

import io
import json
import logging
import re
import sys

from prehab_lib.runs import certificate

BLACK, GREY = "#000000", "#7F7F7F"
ORANGE, SKY, GREEN = "#E69F00", "#56B4E9", "#009E73"
BLUE, VERMILLION, PURPLE = "#0072B2", "#D55E00", "#CC79A7"
DARK, LIGHT = "#7A1F00", "#F2A77B"  # shades of vermillion: prehab with other surrogates
DASHED, DOTTED, DASHDOT, LONG = (0, (5, 2)), (0, (1, 1.5)), (0, (6, 2, 1, 2)), (0, (9, 3))

# name: (colour, dash, marker, label)
STYLES = {
    # compressors
    "dense": (BLACK, DOTTED, "None", "original (dense)"),
    "svd": (GREY, "-", "x", "SVD"),
    "fwsvd": (ORANGE, "-", "v", "FWSVD"),
    "gfwsvd": (ORANGE, DASHED, "^", "GFWSVD"),
    "asvd": (PURPLE, "-", "P", "ASVD"),
    "svd_llm": (BLUE, "-", "s", "SVD-LLM"),
    "svd_llm_v2": (BLUE, DASHED, "D", "SVD-LLM V2"),
    "swift_svd": (BLUE, DOTTED, "p", "Swift-SVD"),
    "zs_svd": (GREEN, "-", "h", "Zero Sum SVD"),
    "io_svd": (GREEN, DASHED, "<", "IO-SVD"),
    "dobi_svd": (GREEN, DOTTED, ">", "Dobi-SVD"),
    # what is done to the weights before
    "control": (SKY, DASHED, "d", "fine-tuned, λ = 0"),
    "prehab": (VERMILLION, "-", "o", "prehab"),
    "prehab_nuclear": (VERMILLION, LONG, "o", "prehab, nuclear norm"),
    "prehab_nuclear_ratio": (DARK, DASHED, "*", "prehab, Eq. (5)"),
    "prehab_stable_rank": (LIGHT, DOTTED, "X", "prehab, stable rank"),
    # surrogates as functions
    "rank": (GREY, "-", "None", "rank"),
    "nuclear": (VERMILLION, "-", "o", "nuclear norm"),
    "nuclear_ratio": (BLUE, DASHED, "s", "Eq. (5) as printed"),
    "stable_rank": (GREEN, DASHDOT, "^", "stable rank"),
    "entropy_rank": (PURPLE, DOTTED, "D", "entropy rank"),
}
ALIASES = {"original": "dense"}

SIZES = {"column": (4.8, 3.4), "wide": (8.4, 3.4)}  # inches, per row of panels
SAVED_DPI, INLINE_DPI = 200, 100

LOOK = {
    "figure.dpi": INLINE_DPI,
    "figure.max_open_warning": 0,
    "font.size": 10,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#DDDDDD",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "lines.linewidth": 1.8,
    "lines.markersize": 5.5,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "legend.handlelength": 2.8,
}


def figure(kind: str = "column", nrows: int = 1, ncols: int = 1, **subplots):
    """A figure in the book's look: (fig, ax), ax an array of axes where there is more than one.

    `kind` "column" fills half a screen, "wide" a whole one.  `subplots` goes to
    `matplotlib.pyplot.subplots` (sharex, ...). Raises ValueError for another kind.
    """
    if kind not in SIZES:
        raise ValueError(f"figure kind {kind!r} is not known: choose one of {', '.join(SIZES)}")
    # On a fresh machine matplotlib announces its font cache on stderr, which a notebook would keep.
    logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)
    import matplotlib.pyplot as pyplot

    pyplot.rcParams.update(LOOK)
    width, height = SIZES[kind]
    subplots |= {"figsize": (width, height * nrows), "layout": "constrained"}
    drawn = pyplot.subplots(nrows, ncols, **subplots)
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    if shell is not None:
        formatter = shell.display_formatter.formatters["image/png"]
        formatter.for_type(type(drawn[0]), _compact_png)
    return drawn


def style(method: str) -> dict:
    """Keyword arguments for `ax.plot`: color, linestyle, marker, label.

    "<method>+rehab" has hollow markers.  Raises ValueError that lists the known names.
    """
    key, _, suffix = method.lower().replace(" ", "_").replace("-", "_").partition("+")
    key = ALIASES.get(key, key)
    if key not in STYLES or suffix not in ("", "rehab"):
        names = ", ".join([*STYLES, *ALIASES])
        choice = f"known are {names}, each also with '+rehab'"
        raise ValueError(f"method {method!r} has no style: {choice}")
    drawn = dict(zip(("color", "linestyle", "marker", "label"), STYLES[key], strict=True))
    if suffix:
        drawn |= {"markerfacecolor": "white", "label": f"{drawn['label']} + rehab"}
    return drawn


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
    """The mean of `y` at each `x` of a DataFrame as a line, and the whole range as a band.

    look: of the line, as `style` gives it.
    """
    import seaborn

    labels = {"xlabel": ax.get_xlabel(), "ylabel": ax.get_ylabel()}
    # Seaborn draws markers with a white edge, in which a cross would disappear.
    look = {"markeredgecolor": look.get("color"), "markeredgewidth": 1} | look
    spread = {"errorbar": ("pi", 100), "err_kws": {"alpha": 0.14, "linewidth": 0}}
    seaborn.lineplot(data, x=x, y=y, ax=ax, legend=False, **spread, **look)
    ax.set(**labels)  # not the names of the columns


def legend(fig, ncols: int = 3):
    """One legend for all panels, below them, so that it covers no data; each label once."""
    entries = {}
    for ax in fig.axes:
        handles, labels = ax.get_legend_handles_labels()
        entries = dict(zip(labels, handles, strict=True)) | entries
    return fig.legend(entries.values(), entries.keys(), loc="outside lower center", ncols=ncols)


def save(fig, name: str, table, caption: str = "", alt: str = "", **about) -> None:
    """Writes name.png, name.csv and name.json into the run's figures; nothing outside a run.

    `table` (pandas.DataFrame) holds the numbers that are drawn.  alt: what the figure shows, for
    who cannot see it; it also goes into the picture.  The JSON record is the run's birth
    certificate with `caption`, `alt` and `about` (parameters, seeds: anything that JSON can hold).
    Raises ValueError for a name that is no plain file name.
    """
    if not re.fullmatch(r"[a-z0-9_]+", name):
        raise ValueError(f"figure name {name!r}: use lower-case letters, digits, underscores only")
    folder = certificate.run_dir()
    if folder is None:
        return
    folder = folder / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    record = {"figure": name, "caption": caption, "alt": alt, **about}
    record["about"] = certificate.birth_certificate()
    metadata = {"Title": caption, "Description": alt} if alt else {}
    fig.savefig(folder / f"{name}.png", dpi=SAVED_DPI, metadata=metadata)
    counted = table.index.name is None and list(table.index) == list(range(len(table)))
    table.to_csv(folder / f"{name}.csv", index=not counted, float_format="%.6g")
    text = json.dumps(record, indent=2, ensure_ascii=False) + "\n"
    (folder / f"{name}.json").write_text(text, encoding="utf-8")


def _compact_png(fig) -> bytes:
    """The figure as a PNG of 128 colours: a third of the size, which keeps notebooks small."""
    from PIL import Image

    whole, small = io.BytesIO(), io.BytesIO()
    fig.savefig(whole, format="png")
    picture = Image.open(whole).convert("RGB").quantize(128, dither=Image.Dither.NONE)
    picture.save(small, "PNG", optimize=True)
    return small.getvalue()
