"""Programs that tools run inside the office, by its own Python: each of these files is sent there as text, after `told.py`.

Only the standard library is there, and no version of it newer than the oldest image's (3.11). They speak by exit code and
output: 0 and the result, 65 and why nothing was done, 67 and what is not known.
"""
