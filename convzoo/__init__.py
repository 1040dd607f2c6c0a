"""convzoo trains, checks and ships the classic convolutional networks."""

from typing import TYPE_CHECKING, Any

from convzoo.version import __version__ as __version__

__all__ = ["Model", "load", "train"]

if TYPE_CHECKING:
    from convzoo.api import Model, load, train


def __getattr__(name: str) -> Any:  # Any: each name is of its own type
    """Import the Python API when it is first used: `import convzoo` stays quick."""
    if name in __all__:
        import convzoo.api

        return getattr(convzoo.api, name)
    raise AttributeError(f"module 'convzoo' has no attribute '{name}'")
