"""Weight file formats, one a file, registered through the public hook."""
