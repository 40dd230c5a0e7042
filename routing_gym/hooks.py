"""What is to be done when another library is imported."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


def when_imported(name: str, call: Callable[[str], None]) -> None:
    """Call a function with the name of a top-level module: now if that is imported, else right after it has been."""
    if name in sys.modules:
        call(name)
    else:
        sys.meta_path.insert(0, _Watcher(name, call))


class _Watcher(MetaPathFinder):
    """Finds one module as the others do, once, and has a function called when it has been executed."""

    def __init__(self, name: str, call: Callable[[str], None]) -> None:
        self.name, self.call, self.finding = name, call, False

    def find_spec(self, fullname: str, path: Any, target: ModuleType | None = None) -> ModuleSpec | None:
        """Spec of the module, whose loader calls the function in the end; None for other modules."""
        if fullname != self.name or self.finding:
            return None
        self.finding = True
        try:
            spec = importlib.util.find_spec(fullname)
        finally:
            self.finding = False
        if spec is None or spec.loader is None:
            return None  # not installed; it may be later
        execute = spec.loader.exec_module

        def execute_and_call(module: ModuleType) -> None:
            execute(module)
            if self in sys.meta_path:
                sys.meta_path.remove(self)
            self.call(self.name)

        spec.loader.exec_module = execute_and_call  # type: ignore[method-assign]
        return spec
