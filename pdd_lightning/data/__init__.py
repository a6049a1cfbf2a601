"""Real image sets, pixel spaces, and distilled sets.

The names in `__init__.pyi` are imported at their first use, so that reading a distilled set does not import Lightning.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
