"""PostgreSQL as a program: where its binaries lie, how a cluster is made, started, adopted and stopped.

Used for the embedded control database (`control.py`) and for every office's own (`tenure.data.database`).
"""
