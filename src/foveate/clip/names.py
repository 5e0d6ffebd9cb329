"""Names of choices, for the command line; imports no torch."""

from typing import Literal

Head = Literal["value", "value_only", "value_cls", "attention", "sclip", "clearclip", "naclip", "values3"]
"""Replacement of the last block in the dense path; see `foveate.clip.heads`."""

StudentHead = Head | Literal["gated"]
"""The head that a student is trained with: one of the above, or values3 with a learned factor per attention head."""

RegionHead = Head | Literal["masked"]
"""How regions are embedded: by pooling the dense feature map of a head, or by masked attention (Tab. A3)."""

TemplateName = Literal["vild", "clip", "none"]
"""Prompt templates; see `foveate.clip.templates.template_set`."""

Pad = Literal["black", "zero"]
"""Padding of the square input: black before normalisation (published code), or zeros after it (the paper's text)."""
