"""Values that have no class of their own: what JSON, YAML and checkpoints hold, and named arguments."""

from typing import Any

JsonValue = (
    Any  # Any: nested lists and mappings of texts and numbers; a type of all that would want a check at each key
)
JsonObject = dict[str, JsonValue]
Keyword = Any  # Any: a named argument on its way to a function, of the type of its parameter
Keywords = dict[str, Keyword]
