"""Modules and data that do next to nothing: for tests, bug reports and first steps."""
