"""Imports heavy modules only when something in them is used.

diffusers imports peft and scipy as soon as these are installed, which takes as long as torch itself, though a
render uses peft for LoRA alone and scipy for one kind of schedule. Until then a stand-in has their place in
`sys.modules`. The names that are taken from it while diffusers is imported are placeholders; any other
attribute imports the module itself. So a release that takes another name is slower again, and works.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping, Sequence
from importlib.abc import Loader
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any

LATE: Mapping[str, tuple[str, ...]] = {
    "peft": ("PeftModel",),
    "peft.helpers": ("disable_input_dtype_casting",),
    "peft.tuners.tuners_utils": ("BaseTunerLayer",),
    "scipy.integrate": (),
    "scipy.stats": (),
}
"""The modules, each with the names that diffusers takes from it before it needs them: a class, of which it
only asks `isinstance`, has a capital; another name is a function."""


def import_late() -> None:
    """Put a stand-in in the place of each module of `LATE` that is installed.

    A package of which something is imported already keeps what it has.
    """
    specs = {name: find_spec(name) for name in {_package(name) for name in LATE} - sys.modules.keys()}
    for name, taken in LATE.items():
        if (package := specs.get(_package(name))) is not None:
            sys.modules[name] = _StandIn(name, taken, package if name == package.name else None)
    sys.meta_path.insert(0, _Finder())


class _StandIn(ModuleType):
    def __init__(self, name: str, taken: Sequence[str], package: ModuleSpec | None) -> None:
        super().__init__(name, "Stands for a module that is imported when it is used.")
        self.__spec__ = package or ModuleSpec(name, None)
        if package is not None and package.submodule_search_locations is not None:
            self.__path__ = package.submodule_search_locations
        for each in taken:
            setattr(self, each, _class(name, each) if each[0].isupper() else _function(name, each))

    def __getattr__(self, name: str) -> Any:
        # `inspect` asks every module for its `__file__`, and `from x import y` for its `__path__`.
        if name.startswith("__") and name != "__version__":
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        return getattr(_real(self.__name__), name)


class _Finder:
    """Finds other modules of a package that a stand-in stands for: by importing the package itself."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name == _package(name) or not isinstance(sys.modules.get(_package(name)), _StandIn):
            return None
        _real(_package(name))
        try:
            return ModuleSpec(name, _Imported(importlib.import_module(name)))
        except ModuleNotFoundError:
            return None


class _Imported(Loader):
    def __init__(self, module: ModuleType) -> None:
        self._module, self._spec = module, module.__spec__

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return self._module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self._spec


def _package(name: str) -> str:
    return name.partition(".")[0]


def _remove(package: str) -> None:
    for name, module in list(sys.modules.items()):
        if _package(name) == package and isinstance(module, _StandIn):
            del sys.modules[name]


def _real(name: str) -> ModuleType:
    """The module itself, which is imported now unless it is already."""
    if isinstance(sys.modules.get(name), _StandIn):
        # All of the package's: they import each other.
        _remove(_package(name))
    return importlib.import_module(name)


def _class(module: str, name: str) -> type:
    class Kind(type):
        def __instancecheck__(cls, instance: object) -> bool:
            found = sys.modules.get(module)
            # As long as the module is not imported, nothing can be of its class.
            is_real = found is not None and not isinstance(found, _StandIn)
            return is_real and isinstance(instance, getattr(found, name))

    return Kind(name, (), {"__module__": module})


def _function(module: str, name: str) -> Any:
    def call(*arguments: Any, **options: Any) -> Any:
        return getattr(_real(module), name)(*arguments, **options)

    call.__name__ = name
    return call
