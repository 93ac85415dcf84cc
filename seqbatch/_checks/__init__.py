"""Checks of arguments, one subject a file, and the grammar of their messages."""
