"""Offices as single files: what leaves a machine and comes back on another. See docs/decisions/0006."""
