"""Pictures, curves and the run's own README, from plain values."""
