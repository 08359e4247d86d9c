"""Where objects lie: the contract of a bucket's backend, and the backends."""
