"""One module per noun; each registers its commands with `register(app)`."""
