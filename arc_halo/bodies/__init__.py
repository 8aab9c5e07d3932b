"""Places for the bodies of chunks, one a file, registered through the public hook."""
