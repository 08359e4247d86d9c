"""Named connections: an existing database or API elsewhere, reached by granted offices under a name, without its credential."""
