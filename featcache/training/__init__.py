"""Training: heads on the tables of a cache, and the ledger of all runs."""
