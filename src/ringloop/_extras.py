"""How to come by what is optional."""

from __future__ import annotations


def how_to_install(extra: str) -> str:
    """In words. ringloop itself is not on PyPI, so its name there is no way to an extra."""
    return f"pip install '.[{extra}]' in a clone of ringloop, or 'NAME.whl[{extra}]' of its wheel"
