"""Prompt templates for class names (Sec. 4.1), and how each set writes a name.

ViLD's 63 were published with ViLD (Gu et al., 2022; Apache-2.0); CLIP's 80 for ImageNet come from open_clip.
"""

from dataclasses import dataclass

import open_clip

from foveate.clip.names import TemplateName
from foveate.errors import InputError

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


@dataclass(frozen=True)
class TemplateSet:
    """Templates and how a name is written into them; by default "_" becomes a blank."""

    templates: tuple[str, ...]  # with {} for the name and optionally {article} for "a" or "an"
    verbatim: bool = False  # the name is not changed
    vild: bool = False  # "/" becomes " or ", the name is lower case, and "This is " precedes an article

    def fill(self, name: str) -> list[str]:
        """Write a class name into every template (Sec. 4.1).

        Raises:
            InputError: a name without a character other than "_" and blanks.
        """
        text = " ".join(name.replace("_", " ").split())
        if not text:
            raise InputError(f"class names: need a letter or a digit in each; got {name!r}. Remove or complete it.")
        if self.verbatim:
            text = name
        if self.vild:
            text = " ".join(text.replace("/", " or ").lower().split())
        article = "an" if text[0].lower() in "aeiou" else "a"
        texts = [template.replace("{article}", article).replace("{}", text) for template in self.templates]
        if self.vild:
            return [f"This is {text}" if text.startswith(("a ", "an ", "the ")) else text for text in texts]
        return texts


def template_set(templates: TemplateName | tuple[str, ...]) -> TemplateSet:
    """The template set with a name, or one of custom templates.

    Args:
        templates: "vild": ViLD's 63, the paper's choice for detection. "clip": CLIP's 80 for ImageNet, with fixed
            articles ("a photo of a {}."). "none": the class name alone, for free text. Or custom templates, each with
            {} for the name and optionally {article}.

    Raises:
        InputError: an unknown name, no template, or a template without {}.
    """
    match templates:
        case "vild":
            return TemplateSet(VILD_TEMPLATES, vild=True)
        case "clip":
            return TemplateSet(tuple(write("{}") for write in open_clip.OPENAI_IMAGENET_TEMPLATES))
        case "none":
            return TemplateSet(("{}",), verbatim=True)
        case str() | ():
            raise InputError(
                f"templates: must be vild, clip, none, or a tuple of at least one custom template; got {templates!r}."
            )
    for template in templates:
        if "{}" not in template:
            raise InputError(f"templates: need {{}} as placeholder of the class name; got {template!r}.")
    return TemplateSet(tuple(templates))
