"""A compressed model on disk and in transformers, which learns our model types by this import."""

from importlib.util import find_spec

if find_spec("transformers") is not None:
    from prehab_lib import layers
    from prehab_lib.save import pretrained

    pretrained.register()
    layers.REPLACED.append(pretrained.adopt)
