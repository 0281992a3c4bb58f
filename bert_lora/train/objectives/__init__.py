"""A file for each kind of task."""
