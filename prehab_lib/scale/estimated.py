"""Memory of a run that nobody has measured, where the pre-flight estimate can tell it from a folder
on disk.

That is a language model in a folder, with the parameters of notebook 05, which asks `preflight` the
same before it loads any weight. Minutes stay unknown: the estimate counts one model's statistics,
prehab and surgery, a notebook does more.
"""

from pathlib import Path

from prehab_lib.runs.plan import Price, Run

ASKED = {"checkpoint", "batch", "window", "calibration", "removed", "steps", "surrogate", "large"}


def price(run: Run) -> Price:
    """Memory on the GPU and beside it, or in all; nothing known where the pre-flight estimate does
    not apply.
    """
    params = run.params
    if (
        not params.keys() >= ASKED
        or not (Path(str(params["checkpoint"])) / "config.json").is_file()
    ):
        return Price()
    from prehab_lib.scale import preflight  # imports torch: seconds, only for such a run

    plan = dict(
        batch=params["batch"],
        window=params["window"],
        samples=params["calibration"] * params["batch"],
    )
    plan |= dict(
        steps=params["steps"], removed=params["removed"][-1], surrogate=params["surrogate"]
    )
    plan |= (
        dict(arithmetic="fast", refresh=8) | params["large"] | dict(streamed=bool(params["large"]))
    )
    device = "cuda" if run.gpu else "cpu"
    try:
        told = preflight.estimate(
            params["checkpoint"], device=device, rates=lambda kind, dtype: 1.0, **plan
        )
    except (ValueError, OSError):  # the notebook will say what is wrong with it
        return Price()
    if run.gpu:
        return Price(
            memory_mb=round(told.host * 1024), gpu_memory_gb=round(told.peak, 1), source="estimated"
        )
    return Price(memory_mb=round(told.peak * 1024), source="estimated")
