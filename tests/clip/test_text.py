"""Prompts derived by hand, class embeddings against the definition, and cached embeddings against computed ones."""

import math

import pytest
import torch
from safetensors.torch import load_file, save_file

from foveate.clip import text
from foveate.clip.templates import VILD_TEMPLATES, TemplateSet, template_set
from foveate.clip.text import embed_vocabulary
from foveate.clip.vocabulary import Vocabulary
from foveate.errors import InputError
from foveate.heads.common.text import embed_classes
from foveate.io.files import default_cache

TWO = ("a photo of {article} {}.", "the {}.")


def test_sixty_three_different_templates():
    assert len(set(VILD_TEMPLATES)) == len(VILD_TEMPLATES) == 63
    assert all(template.count("{}") == 1 and template.endswith(".") for template in VILD_TEMPLATES)
    # counted in the published list
    assert sum("{article}" in template for template in VILD_TEMPLATES) == 15
    assert sum(template.startswith("There") for template in VILD_TEMPLATES) == 2
    assert sum(template.startswith("itap") for template in VILD_TEMPLATES) == 3


def test_eighty_templates_of_clip():
    """From CLIP's notebook of prompts: the first, the last, and that they have fixed articles."""
    chosen = template_set("clip")
    assert len(set(chosen.templates)) == 80 and all(one.count("{}") == 1 for one in chosen.templates)
    texts = chosen.fill("Apple_pie")
    assert texts[0] == "a bad photo of a Apple pie." and texts[-1] == "a tattoo of the Apple pie."
    assert not any(one.startswith("This is") for one in texts)


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
def test_vild_templates_derived_by_hand(template, name, wanted):
    assert TemplateSet((template,), vild=True).fill(name) == [wanted]


@pytest.mark.parametrize(
    ("templates", "name", "wanted"),
    [
        ("none", "A dog_house on the/left", ["A dog_house on the/left"]),
        (TWO, "Old_apple/Pear", ["a photo of an Old apple/Pear.", "the Old apple/Pear."]),
        (("{}",), "a  b", ["a b"]),
    ],
)
def test_other_templates_derived_by_hand(templates, name, wanted):
    assert template_set(templates).fill(name) == wanted


@pytest.mark.parametrize("templates", ["openai", (), ("a photo",), ("a {}", "a {article}")])
def test_invalid_templates_are_refused(templates):
    with pytest.raises(InputError, match="templates: "):
        template_set(templates)


def by_definition(clip, groups: list[list[str]]) -> torch.Tensor:
    """Prompt by prompt with the library's own model."""
    rows = []
    for prompts in groups:
        mean = torch.zeros(12)
        for prompt in prompts:
            with torch.no_grad():
                one = clip.model.encode_text(clip.tokenizer([prompt]))[0]
            mean += one / one.norm() / len(prompts)
        rows.append(mean / mean.norm())
    return torch.stack(rows)


def test_embedding_is_the_normalised_mean_of_normalised_texts(make_clip):
    clip = make_clip("vit")
    wanted = [["a photo of a cat.", "the cat."], ["a photo of an old apple.", "the old apple."]]
    got = embed_vocabulary(clip, ["cat", "old_apple"], templates=TWO)
    torch.testing.assert_close(got, by_definition(clip, wanted), atol=1e-5, rtol=1e-5)
    assert not got.requires_grad
    torch.testing.assert_close(embed_vocabulary(clip, ["cat", "old_apple"], templates=TWO, batch=3), got)


def test_synonyms_are_averaged_and_the_background_is_last(make_clip):
    clip = make_clip("vit")
    vocabulary = Vocabulary((("cat", "kitty", "tom"), ("dog",)))
    wanted = [["cat", "kitty", "tom"], ["dog"], ["nothing"]]
    got = embed_vocabulary(clip, vocabulary, templates="none", background="nothing")
    torch.testing.assert_close(got, by_definition(clip, wanted), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(embed_vocabulary(clip, vocabulary, templates="none"), got[:2])


def test_prompts_beyond_the_context_are_reported(make_clip, capsys):
    clip = make_clip("vit")
    room = clip.tokenize(["cat"]).shape[1] - 2  # beside the first and the last token
    embed_vocabulary(clip, ["cat", "cat " * room], templates="none")
    assert capsys.readouterr().err == ""  # it just fits
    embed_vocabulary(clip, ["cat", "dog " * (room + 1)], templates=TWO)
    length = room + 2
    assert capsys.readouterr().err.startswith(
        f"2 of 4 prompts exceed the {length} tokens of {clip.name} and are cut, first 'a photo of a dog dog"
    )


def test_classes_with_the_same_tokens_are_refused(make_clip):
    clip = make_clip("vit")
    long = "dog " * clip.tokenize(["cat"]).shape[1]
    with pytest.raises(InputError, match=r"prompts that differ; those of 'dog dog .* have the same \d+ tokens"):
        embed_vocabulary(clip, ["cat", long + "cat", long + "cow"], templates="none")
    with pytest.raises(InputError, match="prompts that differ"):
        embed_classes(clip, Vocabulary((("cat", long + "cat"), (long + "cow", "cat"))), templates="none")
    # names that official lists have in two classes stay, and so does one synonym that is cut to the same
    shared = Vocabulary((("screen", "tv"), ("screen", "door"), (long + "a",), ("pig", long + "b")))
    assert len(embed_classes(clip, shared, templates="none").embeddings) == 7
    assert len(embed_vocabulary(clip, ["screen", "screen"], templates="none")) == 2


def test_a_row_for_each_name(make_clip):
    clip = make_clip("vit")
    classes = Vocabulary((("cat", "kitty"), ("dog",)))
    each = embed_vocabulary(clip, classes, templates=TWO, each_name=True)
    assert torch.equal(each, embed_vocabulary(clip, ["cat", "kitty", "dog"], templates=TWO))


def test_invalid_vocabularies_are_refused(make_clip):
    clip = make_clip("vit")
    with pytest.raises(InputError, match="at least one class name"):
        embed_vocabulary(clip, [])
    with pytest.raises(InputError, match="got '_'"):
        embed_vocabulary(clip, ["cat", "_"])
    with pytest.raises(InputError, match="read_vocabulary"):
        embed_vocabulary(clip, "cat")
    with pytest.raises(InputError, match="is class 'cat'"):
        embed_vocabulary(clip, Vocabulary((("cat", "Tom cat"),)), background="tom_cat")
    with pytest.raises(InputError, match="batch"):
        embed_vocabulary(clip, ["cat"], batch=0)


@pytest.fixture()
def asked(monkeypatch):
    """The number of prompts embedded since the last call."""
    seen = []
    embed = text._embed

    def spy(clip, tokens, counts, *, normalize, batch):
        seen.append(len(tokens))
        return embed(clip, tokens, counts, normalize=normalize, batch=batch)

    monkeypatch.setattr(text, "_embed", spy)

    def count() -> int:
        total = sum(seen)
        seen.clear()
        return total

    return count


def test_cached_embeddings_have_the_same_bits(make_clip, tmp_path, asked):
    clip = make_clip("eva")
    fresh = embed_vocabulary(clip, ["cat", "dog"], templates=TWO)
    assert asked() == 4
    first = embed_vocabulary(clip, ["cat", "dog"], templates=TWO, cache=tmp_path / "new")
    assert asked() == 4
    again = embed_vocabulary(clip, ["cat", "dog"], templates=TWO, cache=tmp_path / "new")
    assert asked() == 0 and torch.equal(first, fresh) and torch.equal(again, fresh)
    assert [path.suffix for path in (tmp_path / "new").iterdir()] == [".safetensors"]


def test_other_texts_and_weights_have_other_cache_files(make_clip, tmp_path, asked):
    clip = make_clip("vit")
    embed_vocabulary(clip, Vocabulary((("cat", "dog"), ("bus",))), templates="none", cache=tmp_path)
    # the same prompts, grouped otherwise; other prompts; another batch, which may change the last bits
    embed_vocabulary(clip, Vocabulary((("cat",), ("dog", "bus"))), templates="none", cache=tmp_path)
    embed_vocabulary(clip, ["cat", "dog"], templates="none", cache=tmp_path)
    embed_vocabulary(clip, ["cat", "dog"], templates="none", batch=1, cache=tmp_path)
    assert asked() == 3 + 3 + 2 + 2 and len([*tmp_path.iterdir()]) == 4
    changed = make_clip("vit")
    with torch.no_grad():
        changed.model.ln_final.bias[3] += 1e-3
    one = embed_vocabulary(changed, ["cat", "dog"], templates="none", cache=tmp_path)
    assert asked() == 2 and torch.equal(one, embed_vocabulary(changed, ["cat", "dog"], templates="none"))
    asked()
    with torch.no_grad():  # the image tower has no part in it: a distilled student reads what its teacher wrote
        changed.model.visual.proj[0, 0] += 1
    assert torch.equal(embed_vocabulary(changed, ["cat", "dog"], templates="none", cache=tmp_path), one)
    assert asked() == 0


def damage_bytes(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1  # one bit of the last number
    path.write_bytes(content)


def not_finite(path):
    save_file({"rows": torch.full((2, 12), math.nan)}, path, {"key": path.stem.removeprefix("text-")})


def of_another_key(path):
    save_file({"rows": load_file(path)["rows"]}, path, {"key": "0" * 64})


@pytest.mark.parametrize(
    "spoil",
    [
        damage_bytes,
        not_finite,
        of_another_key,
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(path.read_bytes()[:-5]),
        lambda path: path.write_text("not ours at all"),
        lambda path: save_file({"other": torch.zeros(2, 12)}, path),
    ],
)
def test_damaged_cache_files_are_replaced(make_clip, tmp_path, asked, spoil):
    clip = make_clip("vit")
    fresh = embed_vocabulary(clip, ["cat", "dog"], templates="none", cache=tmp_path)
    (path,) = tmp_path.iterdir()
    spoil(path)
    asked()
    assert torch.equal(embed_vocabulary(clip, ["cat", "dog"], templates="none", cache=tmp_path), fresh)
    assert asked() == 2 and torch.equal(load_file(path)["rows"], fresh)
    assert torch.equal(embed_vocabulary(clip, ["cat", "dog"], templates="none", cache=tmp_path), fresh)
    assert asked() == 0


def test_a_cache_that_cannot_be_written_is_reported(make_clip, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    clip = make_clip("vit")
    got = embed_vocabulary(clip, ["cat"], cache=tmp_path / "file" / "cache")
    assert torch.equal(got, embed_vocabulary(clip, ["cat"]))
    assert "could not be cached" in capsys.readouterr().err


def test_default_folder_of_the_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("FOVEATE_CACHE", str(tmp_path / "here"))
    assert default_cache() == tmp_path / "here"
    monkeypatch.setenv("FOVEATE_CACHE", "")
    assert default_cache() is None
    monkeypatch.delenv("FOVEATE_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_cache() == tmp_path / ".cache" / "foveate"
