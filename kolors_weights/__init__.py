"""Checkpoints: found in a folder or on a hub, mapped, fitted to a module strictly, written all or nothing.

A library that plugins share, not a plugin: it provides no component and computes no model. It knows models only by the
names of their weights, to say which was brought in place of another.
"""
