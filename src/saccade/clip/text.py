"""Class names to classifier rows: ViLD's 63 templates, each embedding normalised, averaged, normalised (Sec. 4.1).

The templates are those published with ViLD (Gu et al., 2022; Apache-2.0). Absent: vocabularies, which come from the
data sets.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from saccade.clip.model import Clip
from saccade.types import InputError

VILD_TEMPLATES = (
    "There is {article} {} in the scene.",
    "There is the {} in the scene.",
    "a photo of {article} {} in the scene.",
    "a photo of the {} in the scene.",
    "a photo of one {} in the scene.",
    "itap of {article} {}.",
    "itap of my {}.",
    "itap of the {}.",
    "a photo of {article} {}.",
    "a photo of my {}.",
    "a photo of the {}.",
    "a photo of one {}.",
    "a photo of many {}.",
    "a good photo of {article} {}.",
    "a good photo of the {}.",
    "a bad photo of {article} {}.",
    "a bad photo of the {}.",
    "a photo of a nice {}.",
    "a photo of the nice {}.",
    "a photo of a cool {}.",
    "a photo of the cool {}.",
    "a photo of a weird {}.",
    "a photo of the weird {}.",
    "a photo of a small {}.",
    "a photo of the small {}.",
    "a photo of a large {}.",
    "a photo of the large {}.",
    "a photo of a clean {}.",
    "a photo of the clean {}.",
    "a photo of a dirty {}.",
    "a photo of the dirty {}.",
    "a bright photo of {article} {}.",
    "a bright photo of the {}.",
    "a dark photo of {article} {}.",
    "a dark photo of the {}.",
    "a photo of a hard to see {}.",
    "a photo of the hard to see {}.",
    "a low resolution photo of {article} {}.",
    "a low resolution photo of the {}.",
    "a cropped photo of {article} {}.",
    "a cropped photo of the {}.",
    "a close-up photo of {article} {}.",
    "a close-up photo of the {}.",
    "a jpeg corrupted photo of {article} {}.",
    "a jpeg corrupted photo of the {}.",
    "a blurry photo of {article} {}.",
    "a blurry photo of the {}.",
    "a pixelated photo of {article} {}.",
    "a pixelated photo of the {}.",
    "a black and white photo of the {}.",
    "a black and white photo of {article} {}.",
    "a plastic {}.",
    "the plastic {}.",
    "a toy {}.",
    "the toy {}.",
    "a plushie {}.",
    "the plushie {}.",
    "a cartoon {}.",
    "the cartoon {}.",
    "an embroidered {}.",
    "the embroidered {}.",
    "a painting of the {}.",
    "a painting of a {}.",
)


def fill(template: str, name: str) -> str:
    """Write a class name into a template (Sec. 4.1).

    Args:
        template: with {} for the name and, where it is wanted, {article} for "a" or "an".
        name: of a class; "_" becomes a space, "/" becomes " or ", capitals become small.

    Returns:
        The sentence, after "This is " where it begins with an article.

    Raises:
        InputError: a name without a character other than "_" and blanks.
    """
    words = " ".join(name.replace("_", " ").replace("/", " or ").lower().split())
    if not words:
        raise InputError("class names: need at least one character each; got an empty one.")
    article = "an" if words[0] in "aeiou" else "a"
    text = template.replace("{article}", article).replace("{}", words)
    return f"This is {text}" if text.startswith(("a ", "an ", "the ")) else text


@torch.no_grad()
def embed_names(
    clip: Clip, names: list[str], *, templates: tuple[str, ...] = VILD_TEMPLATES, batch: int = 512
) -> Float[Tensor, "K D"]:
    """Embed classes as the mean over templates (the zero-shot classifier of Sec. 4.1).

    Args:
        clip: whose text tower is asked.
        names: of the K classes.
        templates: see `fill`.
        batch: texts embedded at once.

    Returns:
        One embedding of length 1 a class, on the device of the model.

    Raises:
        InputError: no names or no templates, or an empty name.
    """
    if not names or not templates:
        raise InputError(f"need at least one class name and one template; got {len(names)} and {len(templates)}.")
    texts = [fill(template, name) for name in names for template in templates]
    parts = [clip.encode_text(clip.tokenize(texts[i : i + batch])) for i in range(0, len(texts), batch)]
    each = torch.cat(parts).float().unflatten(0, (len(names), len(templates)))  # (K * T, D) -> (K, T, D)
    return F.normalize(each.mean(dim=1), dim=1)
