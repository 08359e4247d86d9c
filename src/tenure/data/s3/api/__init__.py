"""The operations of S3's API, one noun per module. Each is a function of a `Call`; `routes` says which is meant."""
