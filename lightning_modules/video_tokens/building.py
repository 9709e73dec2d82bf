"""Builds a part of a model from the settings of its own in `conf/`, such as `model.tokenizer`."""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from lightning_modules.settings import bind

Made = TypeVar("Made")


def build(kind: Callable[..., Made], block: Mapping[str, Any], where: str, **given: Any) -> Made:
    """A part of a model, of settings that are held against its signature first.

    Args:
        kind: class of the part; it takes what `conf/` may say as keyword-only arguments with types and bounds.
        block: these settings.
        where: their name, such as `model.tokenizer`.
        given: arguments that the model decides.

    Raises:
        ValueError: a setting is unknown, missing or not of the kind that it asks for, or the part refuses it.
    """
    return bind({**block, "_target_": f"{kind.__module__}.{kind.__qualname__}"}, where, **given)()
