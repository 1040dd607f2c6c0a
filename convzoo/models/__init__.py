"""One architecture, one file. Builders are marked `@register("model")` and return a module that gives raw outputs."""
