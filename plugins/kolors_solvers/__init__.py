"""Solvers and classifier-free guidance."""
