"""Checkpoints: found in a folder, read with care, fitted to a module strictly, written all or nothing.

A library that plugins share, not a plugin: it provides no component and knows no model.
"""
