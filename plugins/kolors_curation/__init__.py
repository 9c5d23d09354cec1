"""Curation: which samples a stage may see (2.2.1)."""
