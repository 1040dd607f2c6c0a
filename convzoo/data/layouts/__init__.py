"""Labels as they come from the tools they were drawn with: one layout a file, each read into the same `Labels`."""
