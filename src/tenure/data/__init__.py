"""What an office keeps apart from files: its database and its objects."""
