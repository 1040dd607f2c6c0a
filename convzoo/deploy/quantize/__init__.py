"""INT8: how it is calibrated, written, measured, and kept only where it is worth it."""
