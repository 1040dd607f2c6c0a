"""What is learned: losses, predictions and metrics. A task knows nothing of devices, ranks, precision or files."""
