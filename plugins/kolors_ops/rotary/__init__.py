"""Rotary positions: neighbouring pairs of each head of x [R, A, E] are turned by unit complex numbers [R, E / 2].

A model that turns a part of each head only, as ChatGLM3 does its first half, leaves the rest by turns of 1.
"""
