"""Real image sets, pixel spaces, and distilled sets.

The names, which stand in `__init__.pyi`, are imported when they are first used: whoever only reads a distilled set
does not wait for Lightning.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
