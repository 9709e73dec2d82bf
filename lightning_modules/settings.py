"""Checks the values of `conf/` against the signature that takes them, before anything is called.

Otherwise a value of the wrong type would cause an error somewhere inside torch. Types and bounds are given where a
reader looks for them: in the signature of the class or function that a `_target_` names (`copies: Count`). The only
conversion is from an integer to a float; a quoted number is refused.
"""

import difflib
import importlib
import inspect
import re
import reprlib
import traceback
from collections.abc import Callable, Collection, Iterable, Mapping
from functools import partial
from typing import Annotated, Any, NotRequired, get_args, get_origin, get_type_hints

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from typing_extensions import is_typeddict

Count = Annotated[int, Field(ge=1, le=1_000_000)]
Natural = Annotated[int, Field(ge=0, le=1_000_000)]
Positive = Annotated[float, Field(gt=0, le=1e6)]
NonNegative = Annotated[float, Field(ge=0, le=1e6)]
Share = Annotated[float, Field(ge=0, le=1)]

NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,99}", re.ASCII)  # names become files, folders, stages of DVC and runs
CODE = ("lightning_modules.", "ideas.")  # where a `_target_` may lie: the papers' code, and a user's own
STRICT = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


def bind(block: Mapping[str, Any], where: str, **given: Any) -> Callable[..., Any]:
    """What `_target_` names, with the block's other values and `given` filled in; call it.

    Args:
        block: a block of a composed configuration.
        where: its file and name, such as `conf/system/committees/tiny.yaml: model`.
        given: arguments that come from the stage and not from `conf/`.

    Raises:
        ValueError: there is no such target, or a value is unknown, missing or not of the kind that it asks for.
    """
    target = located(block["_target_"], where)
    values = {name: value for name, value in block.items() if name != "_target_"}
    parameters = {
        name: parameter
        for name, parameter in inspect.signature(target).parameters.items()
        if name not in given and parameter.kind is parameter.KEYWORD_ONLY
    }
    required = [name for name, parameter in parameters.items() if parameter.default is parameter.empty]
    hints = get_type_hints(target.__init__ if inspect.isclass(target) else target, include_extras=True)
    checked = _checked(values, {name: hints[name] for name in parameters}, required, where)
    return partial(target, **checked, **given)


def check(values: Mapping[str, Any], form: type, where: str, required: Collection[str] | None = None) -> dict[str, Any]:
    """The values, held against a TypedDict.

    Args:
        values: what `conf/` says.
        form: the TypedDict.
        where: file and name of the block.
        required: the keys that must be there, if not those that the form says.

    Raises:
        ValueError: a key is unknown or missing, or a value is not of its kind.
    """
    hints = get_type_hints(form, include_extras=True)
    hints = {name: get_args(hint)[0] if get_origin(hint) is NotRequired else hint for name, hint in hints.items()}
    return _checked(values, hints, form.__required_keys__ if required is None else required, where)


def check_keys(given: Iterable[str], required: Iterable[str], known: Iterable[str], where: str) -> None:
    """Refuse a key that is not known, and the lack of one that is required.

    Raises:
        ValueError: there is one; the message gives the known key that is close to it.
    """
    for name in given:
        if name not in known:
            raise ValueError(f"{where}: unknown key {name!r}{meant(name, known)}")
    for name in required:
        if name not in given:
            raise ValueError(f"{where}: the key {name!r} is missing; expected {', '.join(required)}")


def meant(given: object, known: Iterable[object]) -> str:
    """The end of a message about an unknown name: the known one that is close to it, or all that are known."""
    names = [str(name) for name in known]
    close = difflib.get_close_matches(str(given), names, 1)
    return f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(names) or 'none'}"


def located(name: str, where: str) -> Callable[..., Any]:
    """The class or function of this project that a dotted name names.

    Raises:
        ValueError: there is none, or its module cannot be imported.
    """
    module, _, attribute = name.rpartition(".")
    if not module.startswith(CODE):
        raise ValueError(f"{where}._target_ is {name!r}, expected a class or function of lightning_modules or ideas")
    try:
        found = getattr(importlib.import_module(module), attribute, None)
    except ModuleNotFoundError as error:
        if not f"{module}.".startswith(f"{error.name}."):
            raise ValueError(f"{where}._target_ is {name!r}, which cannot be imported: {error}") from error
        found = None
    except Exception as error:  # the module's own mistake: say where it is
        place = traceback.extract_tb(error.__traceback__)[-1]
        told = f"{type(error).__name__}: {error} ({place.filename}, line {place.lineno})"
        raise ValueError(f"{where}._target_ is {name!r}, which cannot be imported: {told}") from error
    if not callable(found):
        raise ValueError(f"{where}._target_ is {name!r}, but there is no such class or function")
    return found


def complaint(where: str, given: Any, problem: Mapping[str, Any], known: Iterable[str] = ()) -> str:
    """One problem that pydantic found: its place, the value, and what was expected.

    Args:
        where: file and place of what was checked.
        given: what was checked.
        problem: one of `ValidationError.errors()`. Its place also names members of unions, which no user has written.
        known: keys that `given` may have, for what was meant by an unknown one.
    """
    value, *path = given, where
    for part in problem["loc"]:
        try:
            value = value[part]
        except (KeyError, IndexError, TypeError):
            if problem["type"] != "missing":
                continue
        path.append(str(part))
    place = ".".join(path) if ": " in where else f"{where}: {'.'.join(path[1:])}" if path[1:] else where
    if problem["type"] == "missing":
        return f"{place}: missing, expected a value"
    if problem["type"] == "extra_forbidden":
        return f"{place}: unknown key{meant(path[-1], known) if len(path) == 2 else ''}"
    told = problem["msg"].removeprefix("Value error, ").replace("Input should be", "expected")
    if problem["loc"][-1:] == ("[key]",):
        return f"{place} is no possible key, {told}"
    return f"{place} is {reprlib.repr(value)}, {told}"


def _checked(
    values: Mapping[str, Any], hints: Mapping[str, Any], required: Collection[str], where: str
) -> dict[str, Any]:
    check_keys(values, required, hints, where)
    checked = {}
    for name, value in values.items():
        try:
            own = None if is_typeddict(hints[name]) else STRICT  # a TypedDict says it itself
            checked[name] = TypeAdapter(hints[name], config=own).validate_python(value)
        except ValidationError as error:
            place = f"{where}: {name}" if where.endswith(".yaml") else f"{where}.{name}"
            raise ValueError(complaint(place, value, error.errors()[0])) from None
    return checked
