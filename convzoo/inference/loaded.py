"""What a model file opened in PyTorch, an exported file and outputs computed elsewhere have in common."""

from pathlib import Path
from typing import Protocol

from convzoo.config.recipe import Recipe
from convzoo.data.transforms.pipeline import Pipeline
from convzoo.plain import JsonObject
from convzoo.types import Runner, Task


class LoadedInfo(Protocol):
    """What the file says of itself, whatever its format."""

    @property
    def class_names(self) -> list[str]: ...

    @property
    def preprocessing(self) -> JsonObject: ...

    @property
    def metrics(self) -> JsonObject: ...

    @property
    def provenance(self) -> JsonObject: ...

    @property
    def licence(self) -> str | None: ...


class LoadedModel(Protocol):
    """A model that is open: measured, asked, timed and compared without a look at what kind of file it came from.

    Attributes:
        path: the file, or the name of weights that are none.
        sha256: of the file, as it says itself.
    """

    @property
    def path(self) -> Path: ...

    @property
    def sha256(self) -> str: ...

    @property
    def recipe(self) -> Recipe: ...

    @property
    def info(self) -> LoadedInfo: ...

    @property
    def class_names(self) -> list[str]: ...

    def task(self) -> Task: ...

    def pipeline(self) -> Pipeline:
        """Return the evaluation transform, stretched to the size that the model was trained on where it keeps sizes."""
        ...

    def runner(self, precision: str = "fp32") -> Runner:
        """Start the model. Raises UsageError, ConvzooError, MissingPackageError."""
        ...

    def changed(self, overrides: tuple[str, ...]) -> "LoadedModel":
        """Return these weights under a recipe with overrides `section.key=value`. Raises UsageError, ConvzooError."""
        ...
