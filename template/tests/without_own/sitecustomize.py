"""In the processes that tests start (`WITHOUT_OWN` in tests/serving.py): an empty module in place of app/own.py.

Python imports a module of this name before anything else, in workers too.
"""

import contextlib
import importlib
import sys
from pathlib import Path
from types import ModuleType

sys.modules["app.own"] = ModuleType("app.own")

# Then this machine's, if it has one.
this = sys.modules.pop("sitecustomize")
sys.path[:] = [folder for folder in sys.path if Path(folder or ".").resolve() != Path(__file__).parent]
with contextlib.suppress(ImportError):
    importlib.import_module("sitecustomize")
sys.modules.setdefault("sitecustomize", this)
