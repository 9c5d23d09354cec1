"""The embedded demo: emoji pictures with zh and en captions, a tiny Kolors trained on them, their recipes."""
