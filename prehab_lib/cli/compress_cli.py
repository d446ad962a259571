"""The arguments of `python -m prehab_lib compress`; what they do is in `cli.compress`."""

DTYPES = ("auto", "float32", "bfloat16", "float16")

# Option -> default, help.
OPTIONS = {
    "--removed": (0.4, "fraction of the layers' weights to remove"),
    "--method": ("svd_llm", "a name in prehab_lib.methods"),
    "--window": (2048, "tokens of a window"),
    "--samples": (256, "calibration windows"),
    "--batch": (1, "windows at a time"),
    "--scored": (64, "held-out windows to score, at most"),
    "--seed": (0, "of the calibration windows"),
    "--device": ("auto", "cpu, cuda, cuda:1, mps; auto: the first GPU there is"),
}
PREHAB_OPTIONS = {
    "--steps": (0, "steps of prehab before surgery"),
    "--lam": (1e-3, "weight of the surrogate; 0 is the control"),
    "--surrogate": ("stable_rank", "a name in prehab_lib.surrogates"),
    "--lr": (1e-5, "learning rate"),
}


def add_to(commands) -> None:
    """The subcommand's arguments.  Imports nothing heavy."""
    command = commands.add_parser(
        "compress", help="compress a causal language model with a text of yours"
    )
    command.set_defaults(act=_run)
    what = "hub name or folder of a transformers causal language model"
    command.add_argument("model", metavar="MODEL", help=what)
    what = "text (UTF-8), or Parquet with a column 'text'"
    command.add_argument("--data", required=True, metavar="FILE", help=what)
    what = "new folder, or one with a saved model to replace"
    command.add_argument("--out", required=True, metavar="DIR", help=what)
    prehab = command.add_argument_group("prehab, left out where --steps is 0")
    for group, options in ((command, OPTIONS), (prehab, PREHAB_OPTIONS)):
        for flag, (default, text) in options.items():
            text = f"{text} ({default})"
            group.add_argument(flag, type=type(default), default=default, help=text)
    what = 'over the layers: "sum" is Eq. (2), "mean" the authors\' release (sum)'
    prehab.add_argument("--reduction", default="sum", choices=("sum", "mean"), help=what)
    prehab.add_argument("--less-memory", action="store_true", help="slower, for large models")
    what = "of the weights; auto: the checkpoint's (auto)"
    command.add_argument("--dtype", default="auto", choices=DTYPES, help=what)
    what = "save dense weights, for tools without low-rank layers"
    command.add_argument("--merged", action="store_true", help=what)
    what = "the hub's identifier of the base model's licence, for the model card"
    command.add_argument("--license", help=what)


def _run(arguments) -> int:
    from prehab_lib.cli import compress  # seconds, only for whoever compresses

    return compress.run(arguments)
