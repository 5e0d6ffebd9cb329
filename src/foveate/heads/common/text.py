"""Text embeddings of classes that go by several names, and the score of a class: that of its best name."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from foveate.clip.model import Clip
from foveate.clip.names import TemplateName
from foveate.clip.text import embed_vocabulary
from foveate.clip.vocabulary import Vocabulary
from foveate.errors import InputError
from foveate.heads.common.names import Length

ODISE = ("a photo of a {}.",)


@dataclass(frozen=True)
class ClassEmbeddings:
    """Text embeddings of all synonyms of K classes."""

    rows: Float[Tensor, "S D"]  # L2-normalised; as the text tower gives them where a mask generator learns from such
    owner: Int64[Tensor, " S"]  # the class of each synonym, 0 to K - 1; every class has one at least
    count: int  # K

    def __post_init__(self) -> None:
        owners = set(self.owner.tolist())
        if len(self.rows) != len(self.owner) or owners != set(range(self.count)):
            raise InputError(
                f"words: need one class a word and a word a class; got {len(self.rows)} embeddings, "
                f"{len(self.owner)} owners and {len(owners)} of {self.count} classes."
            )

    def normalized(self) -> "ClassEmbeddings":
        """The same classes with L2-normalised embeddings."""
        return ClassEmbeddings(F.normalize(self.rows, dim=1), self.owner, self.count)


def embed_words(
    clip: Clip,
    vocabulary: Vocabulary,
    *,
    templates: TemplateName | tuple[str, ...] = ODISE,
    length: Length = "unit",
    batch: int = 512,
) -> ClassEmbeddings:
    """Embed every synonym of a vocabulary by itself.

    Args:
        clip: whose text tower is used.
        vocabulary: the classes.
        templates: of each synonym; their mean is taken. ODISE's one is the default, "vild" or "clip" are larger sets.
        length: unit = each prompt's embedding and their mean are L2-normalised (CLIP's classifier), raw = neither is
            (what ODISE's mask generator learns from).
        batch: prompts embedded at once.
    """
    synonyms = [name for names in vocabulary.classes for name in names]
    owner = [label for label, names in enumerate(vocabulary.classes) for _ in names]
    rows = embed_vocabulary(clip, synonyms, templates=templates, normalize=length == "unit", batch=batch)
    return ClassEmbeddings(rows, torch.tensor(owner), len(vocabulary.classes))


def best_of_synonyms(scores: Float[Tensor, "*Q S"], classes: ClassEmbeddings) -> Float[Tensor, "*Q K"]:
    """The highest score among the synonyms of each class.

    Args:
        scores: of each synonym.
        classes: which class each synonym belongs to.
    """
    owner = classes.owner.to(scores.device).expand_as(scores)
    lowest = scores.new_full((*scores.shape[:-1], classes.count), -math.inf)
    return lowest.scatter_reduce(-1, owner, scores, "amax")
