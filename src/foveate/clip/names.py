"""Names that the command line offers and the towers understand; here, so that they are read without importing torch."""

from typing import Literal

Head = Literal["value", "value_only", "value_cls", "attention", "sclip", "clearclip", "naclip", "values3"]
"""What becomes of the last block, so that each patch says what lies there; see `foveate.clip.heads`."""

StudentHead = Head | Literal["gated"]
"""The head that a student is trained with: one of the above, or values3 with a learned factor per attention head."""

RegionHead = Head | Literal["masked"]
"""How regions are embedded: by pooling the map of a dense head, or by masked attention (Tab. A3)."""

TemplateName = Literal["vild", "clip", "none"]
"""Sentences that class names are written into; see `foveate.clip.templates.template_set`."""

Pad = Literal["black", "zero"]
"""What fills a padded square: black before colour normalisation (published code), or zeros after it (paper's text)."""
