"""Which build of this server runs."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version


def own_version() -> str:
    """As its package says it; "source" where it runs without having been installed."""
    try:
        return version("bert-lora-server")
    except PackageNotFoundError:
        return "source"
