"""The one pipeline through which tensors are written and read."""
