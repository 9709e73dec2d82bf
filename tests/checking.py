"""Annotations of the code under test are checked whenever a function is called: shapes by jaxtyping, types by beartype.

jaxtyping binds the arguments of each call, and has beartype check them twice, for sizes that several of them share.
Three of four functions have no shape in their annotations. For these, beartype alone finds the same at a fraction of
the time, at import as well as at each call.
"""

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any, ForwardRef, Literal, get_args, get_origin

import jaxtyping
from beartype import beartype

_jaxtyped = jaxtyping.jaxtyped


def check_annotations(package: str) -> None:
    """Check those of all modules of a package that are imported from now on."""
    jaxtyping.jaxtyped = _checked  # what the hook calls
    jaxtyping.install_import_hook(package, "beartype.beartype")


def _checked(function: Any = None, *, typechecker: Callable) -> Any:
    if function is None:
        return partial(_checked, typechecker=typechecker)
    if inspect.isfunction(function) and not any(map(_may_have_shape, function.__annotations__.values())):
        return beartype(function)
    return _jaxtyped(function, typechecker=typechecker)


def _may_have_shape(hint: Any) -> bool:
    """Whether a type of jaxtyping is a part of it; of what is written as a text, that is not known."""
    if isinstance(hint, str | ForwardRef):
        return True
    if isinstance(hint, type) and get_origin(hint) is None:
        return issubclass(hint, jaxtyping.AbstractArray)
    return get_origin(hint) is not Literal and any(map(_may_have_shape, get_args(hint)))
