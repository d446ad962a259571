"""Where the paper disagrees with its reference, its release or itself, and what this companion does
about it.

"As printed": arXiv 2512.01980v1.  "As cited": the paper's own reference, or plain arithmetic.  "As
released": the authors' public scripts, which import files that are not in the release, so they were
read and not run.  `paper` re-exports the rows.
"""

import html
import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Erratum:
    """One disagreement.  `topic` groups the rows; "–" stands where a source is silent."""

    topic: str
    item: str
    printed: str
    cited: str
    released: str
    ours: str


_METHOD = (
    Erratum(
        "method",
        "Stable rank, Eq. (5)",
        "‖M‖_*² / ‖M‖_F²",
        "Rudelson and Vershynin: ‖M‖_F² / ‖M‖₂²",
        "the cited form, with ‖M‖₂ from 50 power iterations",
        "stable_rank is the cited form, nuclear_ratio the printed one; both are tried",
    ),
    Erratum(
        "method",
        "Gradient, Eq. (6)",
        "2 M (Σ_X / ‖M‖_F² − S·I) Xᵀ",
        "calculus: (2 / ‖M‖_F²) (‖M‖_* U Vᵀ − S·M) Xᵀ",
        "written by hand for the cited form of Eq. (5), and right for it",
        "autograd; notebook 01 shows that the printed form is the gradient of neither",
    ),
    Erratum(
        "method",
        "Cost of Eq. (5)",
        "depends on norms only, near-linear time",
        "true of the cited form; the printed one needs ‖M‖_*, as costly as Eq. (4)",
        "power iterations of the cited form",
        "each surrogate states its cost",
    ),
    Erratum(
        "method",
        "Nuclear norm (ViT)",
        "Σ σᵢ",
        "–",
        "Σ √(λᵢ + ε) over eigenvalues of MᵀM or M Mᵀ, ε = 10⁻⁶ of their mean",
        "Σ σᵢ from singular values, exact",
    ),
    Erratum(
        "method",
        "Layers in the penalty",
        "sum",
        "–",
        "mean (72 matrices in BERT; 49 in ViT, 73 with split qkv), so λ differs by that factor",
        'reduction="mean" or "sum", Eq. (2)',
    ),
    Erratum(
        "method",
        "Scale of the Gram",
        "not said; it matters for Eq. (4), not for Eq. (5)",
        "SVD-LLM: a sum over tokens",
        "a mean over tokens (ViT): λ differs by the root of the token count",
        "a mean over tokens, padding excluded",
    ),
    Erratum(
        "method",
        "What is updated",
        "W, Algorithm 1",
        "–",
        "Δ in W L + Δ, folded back by a triangular solve: other steps in W",
        'coordinates="weight" or "whitened"',
    ),
    Erratum(
        "method",
        "What is trained",
        "not said",
        "–",
        "the Δ only; the classifier of ViT too, that of BERT not",
        "the compressed matrices, or all; the λ = 0 control trains the same",
    ),
    Erratum(
        "method",
        "Optimiser",
        "AdamW in the text, a plain gradient step in Algorithm 1",
        "–",
        "Adam, learning rate 2·10⁻⁵, no weight decay; a cosine schedule for BERT",
        "AdamW; learning rate and weight decay are parameters",
    ),
    Erratum(
        "method",
        "λ",
        "ViT 0.1 (5 and 10 in Table V); BERT 0.1; LLaMA 10⁻³",
        "–",
        "ViT 5.0; BERT from 10⁻⁴ to 10 over 10 steps, then 10",
        "a parameter, constant or warmed up; the paper's values in the paper profile",
    ),
    Erratum(
        "method",
        "Steps",
        "ViT 500; BERT 1 epoch; LLaMA 3 epochs, or one by the runtime paragraph",
        "runtime: 7.5 minutes = 500 steps of 0.9 s",
        "ViT 2500; BERT one pass or 600",
        "500 for ViT in the paper profile",
    ),
    Erratum(
        "method",
        "Singular Gram",
        "Cholesky, no repair mentioned",
        "SVD-LLM: adds to the diagonal and tries again",
        "eigenvalues raised to 10⁻⁵ absolute, then 10⁻⁶ added: small ones steer the steps",
        'a root from eigenvalues and a projection: no inverse; only coordinates="whitened" raises them, '
        "to 10⁻⁶ of their mean",
    ),
    Erratum(
        "method",
        "When the Gram is measured",
        "after prehab, by implication",
        "–",
        "the first example commands pair the new model with the old Gram",
        "collected again after prehab",
    ),
    Erratum(
        "method",
        "Meaning of ratio",
        "fraction of parameters removed",
        "SVD-LLM: rank ⌊kept · m n / (m + n)⌋",
        "share of singular values kept, rank ⌈t p⌉; above one half a square layer grows",
        "removed, with SVD-LLM's rank; what was achieved is counted from the modules",
    ),
    Erratum(
        "method",
        "Table I",
        "rows mix out × in and in × out; FWSVD element by element, which has no closed form",
        "FWSVD: one weight a row, closed form",
        "no baselines",
        "W is (out, in) everywhere; one kernel for every row",
    ),
    Erratum(
        "method",
        "Whitened activation",
        "–",
        "algebra: X L⁻ᵀ, tokens as rows",
        "the README says X L",
        "the whitened weight W L; activations are never whitened",
    ),
    Erratum(
        "method",
        "Model that is compressed (ViT)",
        "the model after prehab",
        "–",
        "both scripts load the stock model and take no other",
        "the model after prehab, in one process",
    ),
    Erratum(
        "method",
        "Fused query, key, value",
        "not said",
        "–",
        "split in three on request, as the README's example does",
        "one matrix where the model has one",
    ),
    Erratum(
        "method",
        "Dropout",
        "not said",
        "–",
        "on during prehab, off while the Gram is measured",
        "the same",
    ),
    Erratum(
        "method",
        "Rehab (†)",
        "LoRA, rank 10, alternating, 100 steps a factor (ViT)",
        "SVD-LLM: U first in its text, V first behind its main numbers",
        "to come",
        'order="UV", "VU" or "joint"',
    ),
)

_NUMBERS = (
    Erratum(
        "numbers",
        "The control",
        "none: LLaMA is tuned on WikiText-2 and then scored on it",
        "fair: SVD-LLM after the same fine-tuning",
        "–",
        "λ = 0 with the same steps and data stands in every table",
    ),
    Erratum(
        "numbers",
        "Table II, 60 %, with LoRA",
        "gain of 8.61 in the text",
        "58.97 − 50.06 = 8.91",
        "–",
        "8.91",
    ),
    Erratum(
        "numbers",
        "Table V and its text",
        "λ = 10 gains most at the highest compression",
        "60 %: λ = 5 gives 49.25, λ = 0.1 gives 48.12, λ = 10 gives 43.59",
        "–",
        "the table counts",
    ),
    Erratum(
        "numbers",
        "Table IV, C4 at 40 %",
        "change of 56.7 %",
        "118.24 / 75.42 − 1 = 56.8 %",
        "–",
        "56.8",
    ),
    Erratum(
        "numbers",
        "Table IV, baselines",
        "listed beside the new rows",
        "all 30 equal Table 1 of SVD-LLM: not measured again",
        "no LLaMA script",
        "marked in the data; no gain is claimed from them",
    ),
    Erratum(
        "numbers",
        "Table III, CoLA",
        "accuracy, by the caption",
        "0.567 and 0.000 are Matthews correlations, as GLUE scores CoLA",
        "–",
        "Matthews correlation",
    ),
    Erratum(
        "numbers",
        "Table III, averages",
        "0.816 at 0 %; 0.584 for FWSVD at 60 %",
        "8 tasks, the two MNLI merged: 0.814 and 0.579",
        "–",
        "recomputed; the other fourteen agree within the rounding of their row",
    ),
    Erratum(
        "numbers",
        "Table III, GFWSVD",
        "QNLI equals QQP at 20 % and at 40 %",
        "–",
        "no baseline",
        "kept as printed, not relied on",
    ),
    Erratum(
        "numbers",
        "Labels of Tables II to V",
        "scattered in the text source, with extra ones (80 %, 100 %, 120 %)",
        "row order, printed changes and running text agree on one layout",
        "–",
        'marked "inferred" in the data',
    ),
)

ERRATA: tuple[Erratum, ...] = _METHOD + _NUMBERS


def to_html(topic: str | None = None) -> str:
    """The rows as an HTML table that wraps its text, the same bytes every time: of one topic, or
    all of them.

    Raises ValueError for a topic that no row has.
    """
    topics = list(dict.fromkeys(row.topic for row in ERRATA))
    if topic is not None and topic not in topics:
        raise ValueError(f"topic = {topic!r}: the errata are sorted by {', '.join(topics)}")
    lines = [_line("th", _HEADINGS)]
    for row in ERRATA:
        if topic in (None, row.topic):
            lines.append(_line("td", (row.item, row.printed, row.cited, row.released, row.ours)))
    return "\n".join(["<table>", *lines, "</table>"])


_HEADINGS = ("item", "as printed", "as cited", "as released", "what we do")


def _line(tag: str, texts: tuple[str, ...]) -> str:
    style = "text-align: left; vertical-align: top; white-space: normal"
    cells = "".join(f'<{tag} style="{style}">{_marked_up(text)}</{tag}>' for text in texts)
    return f"<tr>{cells}</tr>"


def _marked_up(text: str) -> str:
    # ‖M‖_F and ‖M‖_* get a real subscript; nuclear_ratio stays as it is
    return re.sub(r"_([*F2X])", r"<sub>\1</sub>", html.escape(text))
