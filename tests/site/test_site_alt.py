"""The words for a figure, read from the code that draws it."""

from prehab_lib import site_alt
from tests.books import code

DRAWN = """# FIGURE 2 of the paper - the gain (higher is better)
fig, (left, right) = plots.figure("wide", ncols=2)
left.set(xlabel="removed (%)", ylabel=f"gain of λ = {P.lam:g}, seed {P.seeds[0]}", title=f"{column}, ours")
right.set_xlabel("removed (%)")
right.set_title("the paper")
fig.colorbar(shown, label="loss")
table, caption = gain.reset_index(), "Gain over SVD-LLM"
plots.save(fig, "fig2", table=table, caption=caption)
"""


def words(source, **given):
    return site_alt.alternative(source, parameters={"lam": 0.1, "seeds": [3, 4]}, **given)


def test_comment_caption_axes_panels_and_colours_are_told():
    assert words(DRAWN) == (
        "FIGURE 2 of the paper - the gain (higher is better): Gain over SVD-LLM. Across: removed (%). "
        "Upwards: gain of λ = 0.1, seed 3. Colours: loss. Panels: ours; the paper."
    )


def test_the_caption_that_the_run_saved_wins_over_the_code():
    told = words('plots.save(fig, "a", table=t, caption=f"Spectra, {task.name}")', captions={"a": "Spectra, rhyme"})
    assert told == "Spectra, rhyme."
    assert words('plots.save(fig, "a", table=t, caption=f"Spectra, {task.name}")') == "Spectra."


def test_a_caption_made_beforehand_is_found():
    assert words('about = dict(caption="Paired differences", seeds=1)\nplots.save(fig, "a", t, **about)') == (
        "Paired differences."
    )


def test_the_columns_of_the_table_below_are_told_once_each():
    table = "<table><thead><tr><th></th><th>&sigma;1</th><th>a, b</th></tr><tr><th>rank</th><th></th><th>a, b</th></tr>"
    told = words("plots.save(fig, 'a', t, caption='Walks')", table=table + "</thead><tbody><tr><th>1</th></tr></table>")
    assert told == f"Walks. {site_alt.BELOW}σ1; a, b; rank."


def test_code_that_says_nothing_of_itself_is_told_by_the_text_above_it():
    told = words("ax.imshow(picture)", before="## 1. The task\n\nWe show *two* digits, `8 × 16`, see [02](02.ipynb).")
    assert told == "Picture to: We show two digits, 8 × 16, see 02."


def test_what_only_a_run_knows_is_left_out_and_never_shown_as_a_hole():
    told = words(
        'ax.set(xlabel=f"{UNIT}", ylabel=f"gain ({unit})", title=f"{a}, {b}")\nplots.save(f, "a", t, caption="C")'
    )
    assert told == "C. Upwards: gain."


def test_a_figure_that_can_be_moved_is_told_as_it_stands():
    told = words(
        'def at_lam(steps, lam=0.05):\n    ax.set(title=f"at λ = {lam:g}")\n    plots.save(f, "a", t, caption="C")'
    )
    assert told == "C. Panels: at λ = 0.05."


def test_lines_of_ipython_and_code_that_is_none_do_no_harm():
    assert words('%matplotlib inline\nplots.save(fig, "a", t, caption="C")') == "C."
    assert words("this is no code", before="A picture of two digits.") == "Picture to: A picture of two digits."


def test_the_runners_parameters_replace_the_defaults():
    import nbformat

    cells = [
        code("lam: float = 0.1  # weight\nseeds: list = [0]", tags=["parameters"]),
        code("# Parameters\nlam = 0.3", tags=["injected-parameters"]),
        code("lam = 9"),
    ]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.from_dict(cell) for cell in cells])
    assert site_alt.parameters_of(notebook) == {"lam": 0.3, "seeds": [0]}


def test_the_name_a_figure_is_saved_under():
    assert site_alt.saved_as(DRAWN) == "fig2"
    assert site_alt.saved_as("torch.save(x)\nprint(1)") == ""
