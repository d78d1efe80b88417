"""The cache on disk: plan, shards, commit records, seal, and the tables read from them."""
