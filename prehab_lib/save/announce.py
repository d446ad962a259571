"""Tell transformers about our configurations as soon as both are imported, in either order.

`import prehab_lib` must stay light, and transformers has no plug-in point.  So where transformers
is not there yet, a finder waits for its table of configurations and registers ours right after that
module has run, then goes away.
"""

import importlib.machinery
import sys
import warnings

TABLE = "transformers.models.auto.configuration_auto"


class _Waiting:
    """Finds TABLE where Python would, with `_register` after its last line; leaves every other
    module to the others.
    """

    def find_spec(self, name, path=None, target=None):
        if name != TABLE:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            run = spec.loader.exec_module

            def run_and_register(module):
                run(module)
                _register()
                if self in sys.meta_path:
                    sys.meta_path.remove(self)

            spec.loader.exec_module = run_and_register
        return spec


def _register() -> None:
    """A transformers that is too old or broken must stay importable: then a warning says what will
    not open.
    """
    try:
        from prehab_lib.save import pretrained

        pretrained.register()
    except Exception as problem:
        warnings.warn(
            f"prehab_lib's compressed models cannot be opened by transformers: {problem}",
            stacklevel=2,
        )


def to_transformers() -> None:
    """Register now where transformers is imported, else when it will be.  Imports neither torch nor
    transformers.
    """
    if TABLE in sys.modules:
        _register()
    elif not any(isinstance(finder, _Waiting) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Waiting())
