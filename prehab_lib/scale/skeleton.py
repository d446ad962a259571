"""A checkpoint before its weights are read: its configuration."""

import copy
import os
from pathlib import Path

import transformers
from accelerate import init_empty_weights

from prehab_lib.save.checkpoint import refuse_adapter
from prehab_lib.save.hub import explained
from prehab_lib.save.models import refuse_foreign
from prehab_lib.save.packaged import local
from prehab_lib.save.pretrained import LowRankConfig
from prehab_lib.save.storage import DESCRIPTION

COMPRESSED = "is compressed already: give the dense model it was made of"


def config_of(source: str | os.PathLike):
    """The transformers configuration of a dense model, wherever `packaged.local` finds it.

    Raises ValueError for a compressed one, or as `local` and `hub.explained` do.
    """
    place = local(source)
    folder = Path(place)
    what, remedy = f"the model {str(source)!r}", "give the folder of a local copy instead"
    refuse_adapter(folder)
    if folder.is_dir():
        what, remedy = f"the configuration in {folder}", "copy the folder again"
        bare = not (folder / "config.json").is_file()
        if bare and (folder / DESCRIPTION).is_file():
            raise ValueError(f"{str(source)!r} {COMPRESSED}")
        if bare:
            raise FileNotFoundError(f"{source} is no model folder: it has no config.json")
    with explained(what, remedy):
        refuse_foreign(transformers.PreTrainedConfig.get_config_dict(place)[0])
        config = transformers.AutoConfig.from_pretrained(place, trust_remote_code=False)
    refuse_compressed(config, source)
    return config


def causal_config(source: str | os.PathLike):
    """As `config_of`; ValueError too for no causal language model, or one that cannot be built."""
    config = config_of(source)
    kinds = [str(kind) for kind in config.architectures or ()]
    if kinds and not any("CausalLM" in kind or "LMHead" in kind for kind in kinds):
        raise ValueError(f"{str(source)!r} is a {kinds[0]}: a causal language model is needed")
    told = explained(f"the configuration of {str(source)!r}", "correct its config.json")
    with told, init_empty_weights():
        # The model notes its precision in the configuration that it is given: hence a copy.
        transformers.AutoModelForCausalLM.from_config(copy.deepcopy(config))
    return config


def refuse_compressed(config, source: str | os.PathLike) -> None:
    """Raises ValueError for the configuration of a compressed model (one saved merged is dense)."""
    if isinstance(config, LowRankConfig) and config.ranks:
        raise ValueError(f"{str(source)!r} {COMPRESSED}")
