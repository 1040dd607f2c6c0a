"""The version, by itself: what needs it imports no more than that."""

__version__ = "0.1.0"
