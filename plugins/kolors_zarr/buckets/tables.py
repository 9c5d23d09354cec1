"""Tables of sizes that were published as such."""

from __future__ import annotations

_SDXL_WIDTHS = {
    512: (1856, 1920, 1984, 2048),
    576: (1664, 1728, 1792),
    640: (1536, 1600),
    704: (1344, 1408, 1472),
    768: (1280, 1344),
    832: (1152, 1216),
    896: (1088, 1152),
    960: (1024, 1088),
    1024: (960, 1024),
    1088: (896, 960),
    1152: (832, 896),
    1216: (832,),
    1280: (768,),
    1344: (768,),
    1408: (704,),
    1472: (704,),
    1536: (640,),
    1600: (640,),
    1664: (576,),
    1728: (576,),
    1792: (576,),
    1856: (512,),
    1920: (512,),
    1984: (512,),
    2048: (512,),
}

SDXL = tuple((height, width) for height, widths in _SDXL_WIDTHS.items() for width in widths)
"""The 40 sizes (height, width) of SDXL's last training stage (its appendix I), sorted.

No rule makes them, and the table is not symmetric: 704 x 1344 has no mirror.
"""
