"""An office's only way out: an HTTP proxy on a socket of its doorway that allows by name and denies by default."""
