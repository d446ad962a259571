"""A compressed model on disk and in transformers.

Importing this room tells transformers, where it is installed, the model types that `storage.save`
writes: `AutoModelForCausalLM.from_pretrained(folder)` then opens them without remote code.
"""

from importlib.util import find_spec

if find_spec("transformers") is not None:
    from prehab_lib.save import pretrained

    pretrained.register()
