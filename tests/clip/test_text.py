"""Prompts by hand, and class embeddings against the definition."""

import pytest
import torch

from saccade.clip.text import VILD_TEMPLATES, embed_names, fill
from saccade.types import InputError


def test_sixty_three_different_templates():
    assert len(set(VILD_TEMPLATES)) == len(VILD_TEMPLATES) == 63
    assert all(template.count("{}") == 1 and template.endswith(".") for template in VILD_TEMPLATES)
    # counted in the published list
    assert sum("{article}" in template for template in VILD_TEMPLATES) == 15
    assert sum(template.startswith("There") for template in VILD_TEMPLATES) == 2
    assert sum(template.startswith("itap") for template in VILD_TEMPLATES) == 3


@pytest.mark.parametrize(
    ("template", "name", "wanted"),
    [
        ("a photo of {article} {}.", "cat", "This is a photo of a cat."),
        ("a photo of {article} {}.", "apple", "This is a photo of an apple."),
        ("a photo of {article} {}.", "Umbrella", "This is a photo of an umbrella."),
        ("the toy {}.", "stop_sign", "This is the toy stop sign."),
        ("an embroidered {}.", "tv", "This is an embroidered tv."),
        ("itap of {article} {}.", "orange", "itap of an orange."),
        ("There is {article} {} in the scene.", "wall-other", "There is a wall-other in the scene."),
        ("{article} {}", "egg", "This is an egg"),
        ("the {}.", "sofa/couch", "This is the sofa or couch."),
        ("the {}.", "odd {} {article} name", "This is the odd {} {article} name."),
        ("another {}.", "dog", "another dog."),
        ("{}", "  hot   dog ", "hot dog"),
    ],
)
def test_filled_by_hand(template, name, wanted):
    assert fill(template, name) == wanted


def test_embedding_is_the_normalised_mean_of_normalised_texts(make_clip):
    clip = make_clip("vit")
    names, templates = ["cat", "old_apple"], ("a photo of {article} {}.", "itap of the {}.", "the {}.")
    wanted = []
    for name in names:
        mean = torch.zeros(12)
        for template in templates:
            with torch.no_grad():
                one = clip.model.encode_text(clip.tokenizer([fill(template, name)]))[0]
            mean += one / one.norm() / 3
        wanted.append(mean / mean.norm())
    got = embed_names(clip, names, templates=templates)
    torch.testing.assert_close(got, torch.stack(wanted), atol=1e-5, rtol=1e-5)
    assert not got.requires_grad
    torch.testing.assert_close(embed_names(clip, names, templates=templates, batch=2), got)


def test_nothing_to_embed_is_refused(make_clip):
    clip = make_clip("vit")
    with pytest.raises(InputError, match="at least one class name"):
        embed_names(clip, [])
    with pytest.raises(InputError, match="empty one"):
        embed_names(clip, ["cat", "_"])
