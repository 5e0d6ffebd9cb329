"""Text embeddings of classes with synonyms; the score of a class is that of its best synonym."""

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

ODISE_TEMPLATES = ("a photo of a {}.",)


@dataclass(frozen=True)
class ClassEmbeddings:
    """Text embeddings of all synonyms of K classes."""

    embeddings: Float[Tensor, "S D"]  # L2-normalised, or raw for a mask generator that learns from raw ones
    labels: Int64[Tensor, " S"]  # the class of each synonym, 0 to K - 1; every class has at least one
    count: int  # K

    def __post_init__(self) -> None:
        labels = set(self.labels.tolist())
        if len(self.embeddings) != len(self.labels) or labels != set(range(self.count)):
            raise InputError(
                f"classes: need one label per synonym and a synonym per class; got {len(self.embeddings)} embeddings, "
                f"{len(self.labels)} labels and {len(labels)} of {self.count} classes."
            )

    def normalized(self) -> "ClassEmbeddings":
        """The same classes with L2-normalised embeddings."""
        return ClassEmbeddings(F.normalize(self.embeddings, dim=1), self.labels, self.count)


def embed_classes(
    clip: Clip,
    vocabulary: Vocabulary,
    *,
    templates: TemplateName | tuple[str, ...] = ODISE_TEMPLATES,
    length: Length = "unit",
) -> ClassEmbeddings:
    """Embed every synonym of a vocabulary.

    Args:
        templates: of each synonym; their mean is taken.
        length: "unit": each prompt's embedding and the mean are L2-normalised (CLIP's classifier); "raw": neither is
            (ODISE's mask generator).
    """
    labels = [label for label, names in enumerate(vocabulary.classes) for _ in names]
    embeddings = embed_vocabulary(clip, vocabulary, templates=templates, normalize=length == "unit", each_name=True)
    return ClassEmbeddings(embeddings, torch.tensor(labels), len(vocabulary.classes))


def best_of_synonyms(scores: Float[Tensor, "*Q S"], classes: ClassEmbeddings) -> Float[Tensor, "*Q K"]:
    """The highest score among the synonyms of each class."""
    labels = classes.labels.to(scores.device).expand_as(scores)
    lowest = scores.new_full((*scores.shape[:-1], classes.count), -math.inf)
    return lowest.scatter_reduce(-1, labels, scores, "amax")
