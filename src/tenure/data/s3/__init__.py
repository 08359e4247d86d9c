"""S3's protocol over buckets: the same in an office's door and on the server's address outside."""
