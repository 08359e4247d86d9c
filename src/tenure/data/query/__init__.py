"""What brains and people ask a database beyond plain SQL: its schema, samples, profiles, results kept by name, search.

Everything here is SQL run as whoever owns the database, over any `Source`; nothing of it can do what plain SQL could not.
"""
