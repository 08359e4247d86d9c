"""Ingestion: files of other people's making become tables, all of a file or nothing."""
