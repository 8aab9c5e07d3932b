"""The built-in runners, one a module."""
