"""Search over text columns: by meaning (pgvector) and by words together, in the database that holds the text."""
