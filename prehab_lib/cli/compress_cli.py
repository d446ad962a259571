"""The arguments of `python -m prehab_lib compress`; what they do is in `cli.compress`."""

import argparse

# Option -> default, help.
OPTIONS = {
    "--method": ("svd_llm", "a name in prehab_lib.methods"),
    "--window": (2048, "tokens of a window"),
    "--samples": (256, "calibration windows"),
    "--batch": (1, "windows at a time"),
    "--scored": (64, "held-out windows to score, at most"),
    "--seed": (0, "of the calibration windows"),
    "--device": ("auto", "cpu, cuda, cuda:1, mps; auto: the first GPU there is"),
    "--dtype": ("auto", "of the weights: float32, bfloat16, float16; auto: the checkpoint's"),
}
PREHAB_OPTIONS = {
    "--steps": (0, "steps of prehab before surgery"),
    "--surrogate": ("stable_rank", "a name in prehab_lib.surrogates"),
    "--lr": (1e-5, "learning rate"),
    "--reduction": ("sum", 'over the layers: "sum" is Eq. (2), "mean" the authors\' release'),
}
MODEL = "a causal language model: hub name, folder, .gguf file, or smollm2-135m (make models)"
CHOICES = {"--dtype": ("auto", "float32", "bfloat16", "float16"), "--reduction": ("sum", "mean")}


def assignment(text: str) -> tuple[str, object]:
    """`name=value` of -p, --grid and --method-option, the value read as YAML."""
    from prehab_lib.tasks.parameters import load_value

    name, equals, value = text.partition("=")
    if not equals or not name.strip():
        raise argparse.ArgumentTypeError(f"write name=value, not {text!r}")
    try:
        return name.strip(), load_value(value)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{name.strip()}: {error}") from None


def add_to(commands) -> None:
    """The subcommand's arguments.  Imports nothing heavy."""
    command = commands.add_parser("compress", help="compress a causal language model with a text")
    command.set_defaults(act=_run)
    add = command.add_argument
    add("model", metavar="MODEL", help=MODEL)
    add("--data", required=True, metavar="FILE", help="text, .jsonl, or .parquet with 'text'")
    add("--chat", action="store_true", help="each text of .jsonl or .parquet is one turn of a user")
    add("--out", required=True, metavar="DIR", help="new folder, or a saved model's to replace")
    much = command.add_mutually_exclusive_group()
    much.add_argument("--removed", type=float, default=0.4, help="share of weights to remove (0.4)")
    much.add_argument("--ranks", metavar="FILE", help='JSON, {"layer": rank}; others stay dense')
    prehab = command.add_argument_group("prehab, left out where --steps is 0")
    for group, options in ((command, OPTIONS), (prehab, PREHAB_OPTIONS)):
        for flag, (default, text) in options.items():
            more = {"type": type(default), "default": default, "choices": CHOICES.get(flag)}
            group.add_argument(flag, help=f"{text} ({default})", **more)
    weight = prehab.add_mutually_exclusive_group()
    about = "weight of the surrogate; 0 is the control (0.001)"
    weight.add_argument("--lam", type=float, default=1e-3, help=about)
    about = "instead of --lam: how hard the surrogate pulls at the start beside the loss, as 1"
    weight.add_argument("--dose", type=float, help=about)
    prehab.add_argument("--less-memory", action="store_true", help="slower, for large models")
    pair = {"type": assignment, "action": "append", "default": [], "metavar": "name=value"}
    add("--method-option", help="an option of the method, as floor=0.3 (repeatable)", **pair)
    add("--blockwise", action="store_true", help="cut one block at a time, for large models")
    add("--merged", action="store_true", help="save dense weights, for tools without low rank")
    add("--license", help="the base model's licence as the hub names it, for the model card")


def _run(arguments) -> int:
    from prehab_lib.cli import compress  # seconds, only for whoever compresses

    return compress.run(arguments)
