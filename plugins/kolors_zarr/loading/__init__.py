"""Batches from a store: which samples, which bytes of memory they are read into, and who reads them."""
