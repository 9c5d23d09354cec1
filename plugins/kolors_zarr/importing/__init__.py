"""Bringing a collection into a store: a scan of the headers, then whole shards, each by one worker."""
