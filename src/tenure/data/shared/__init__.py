"""Shared databases: a volume and a PostgreSQL of their own each, which offices reach by what was granted to them."""
