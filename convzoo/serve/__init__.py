"""Models over HTTP: the Open Inference Protocol, and pictures as they are."""
