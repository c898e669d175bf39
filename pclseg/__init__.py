"""pclseg: positional contrastive learning for volumetric segmentation."""

__version__ = "0.1.0"
