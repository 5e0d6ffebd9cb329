"""Cat-Seg: segmentation with any vocabulary by aggregating a CLIP's cosines (Cho et al., CVPR 2024; Tab. 5).

    picture --tower--> dense map . texts --> a cosine a place, class and prompt --aggregator--> a logit a place and class

It learns from maps of the classes of pixels, and the tower's attention learns with it a hundred times slower. What is
asked at test may be any texts (`embed_classes`). Two versions, between which the paper's numbers and Cat-Seg's own
stand apart:

    2024    one prompt a class, the CLIP tower guides, queries, values and positions of both towers learn
    2023    80 prompts a class, an ImageNet network guides, attention and positions of the image tower learn

`residual` says what the values of the tower's last block are added to: "token", as CLIPSelf's own dense map, or "cls",
as Cat-Seg of 2024. Deliberately absent: epochs, files, and the arg max over several pictures' vocabularies.
"""

from collections.abc import Iterator, Sequence
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from open_clip.modified_resnet import ModifiedResNet
from torch import Tensor, nn

from saccade.clip.dense import dense_of_last, tower_stages
from saccade.clip.model import Clip
from saccade.clip.names import Head
from saccade.clip.templates import template_set
from saccade.clip.vocabulary import Vocabulary
from saccade.heads.catseg.aggregate import Aggregator
from saccade.heads.catseg.cost import best_classes, cost_volume, spread_classes, take_classes
from saccade.heads.catseg.guidance import STRIDE, Backbone, Guidance, TowerGuidance
from saccade.heads.catseg.tune import unfreeze_attention, unfreeze_queries_and_values
from saccade.heads.catseg.views import cut_windows, fold_average, offsets, squash, training_view
from saccade.heads.fvit.pyramid import tap_width
from saccade.ops.resample import normalize
from saccade.types import Batch, InputError, LabelMap, Sample

Version = Literal["2024", "2023"]
Residual = Literal["token", "cls"]
HEADS: dict[Residual, Head] = {"token": "value", "cls": "value_cls"}
PROMPT = "A photo of a {} in the scene"
PROMPTS_AT_ONCE = 512
CLASSES_AT_ONCE = 32  # brought to the picture's size


class CatSeg(nn.Module):
    """The objective (`loss = model(batch)`), and what it finds (`predict`, `label_maps`).

    Attributes:
        version: "2024" or "2023".
        head: of the dense map.
        partly: matrices of the CLIP of which only some rows learn, see `saccade.engine.optim.take_step`.
    """

    def __init__(
        self,
        clip: Clip,
        *,
        vocabulary: Vocabulary | Sequence[str],
        version: Version = "2024",
        residual: Residual = "token",
        backbone: Backbone | None = None,
        size: int = 384,
        clip_size: int | None = None,
        test_size: int = 640,
        stride: int = 256,
        window: int = 12,
        hidden: int = 128,
        guidance: int = 128,
        decoder: tuple[int, int] = (64, 32),
        decoder_guidance: tuple[int, int] = (32, 16),
        tower_guidance: tuple[int, int] = (256, 128),
        heads: int = 4,
        layers: int = 2,
        most: int = 256,
        is_varied: bool = True,
    ) -> None:
        """Put an aggregator on a CLIP, of which what does not learn is frozen here.

        Args:
            clip: a vision transformer; changed here.
            vocabulary: K classes of the data to learn from.
            version: see the module.
            residual: see the module.
            backbone: what guides under 2023; None under 2024.
            size: side of a training crop and of a window at test [pixels].
            clip_size: side that a crop is brought to for the tower [pixels]: 336 with a ViT-L/14; None: `size`.
            test_size: side of the square a picture is squashed to at test [pixels].
            stride: from one window to the next [pixels].
            window: side of the attention's windows [tokens].
            hidden: channels a class.
            guidance: channels of what guides the aggregation.
            decoder: channels a class after each step of the decoder.
            decoder_guidance: channels of what guides these steps.
            tower_guidance: channels of the tower's maps made finer, under 2024.
            heads: of the aggregator's attention.
            layers: how often space and classes are aggregated.
            most: classes looked at in a view at test, under 2024, those of the greatest cosine; fewer are padded.
            is_varied: crop, mirror and colour training pictures at random; else they are squashed.

        Raises:
            InputError: a version, residual or tower there is not, sizes that do not fit, a backbone where none belongs
                or none where one does.
        """
        super().__init__()
        clip_size = size if clip_size is None else clip_size
        _check(clip, version, residual, backbone)
        _check_sizes(clip, size, clip_size, test_size, stride, window)
        if backbone is not None and size // STRIDE != clip_size // clip.patch_size:
            raise InputError(f"--clip-size: the backbone's map has {size // STRIDE} places a side and the tower's "
                             f"{clip_size // clip.patch_size}; need {size // STRIDE * clip.patch_size}.")  # fmt: skip
        self.version, self.head, self.size, self.clip_size = version, HEADS[residual], size, clip_size
        self.test_size, self.stride, self.most, self.is_varied = test_size, stride, most, is_varied
        self.clip = clip.eval()
        unfreeze = unfreeze_queries_and_values if version == "2024" else unfreeze_attention
        self.partly = unfreeze(clip, head=self.head)
        stages = len(tower_stages(clip.visual))
        count = len(clip.visual.trunk.blocks) if hasattr(clip.visual, "trunk") else stages
        self.taps = (count // 3 - 1, 2 * count // 3 - 1, stages - 1)
        self.backbone, self.tower_guidance = backbone, None
        if version == "2024":
            self.tower_guidance = TowerGuidance(tap_width(clip), channels=tower_guidance)
            guides = (clip.embed_dim, *tower_guidance)
        else:
            assert backbone is not None, "the version of 2023 has a backbone"
            guides = backbone.channels
        self.aggregator = Aggregator(
            prompts=len(self._templates.templates),
            text_dim=clip.embed_dim,
            guides=guides,
            hidden=hidden,
            guidance=guidance,
            decoder=decoder,
            decoder_guidance=decoder_guidance,
            heads=heads,
            layers=layers,
            window=window,
            padding=most if version == "2024" else 0,
        )
        self.to(next(clip.parameters()).device)
        self.tokens, self.words = self._tokenize(vocabulary)
        self.text = self.embed_classes(vocabulary) if version == "2023" else None
