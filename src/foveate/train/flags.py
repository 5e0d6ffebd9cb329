"""The flags of the six commands that train, as frozen dataclasses: names, defaults and help.

Nothing here imports torch, so that `--help` is instant. What must hold of the values is in `checks.py`, what stands in
for those that are not given in `defaults.py`. Deliberately absent: configuration files, nested groups.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from foveate.clip.names import Pad, StudentHead, TemplateName
from foveate.data.flags import LabelMapFlags
from foveate.heads.catseg.names import Residual, Version
from foveate.heads.common.names import Length, PyramidKind
from foveate.heads.fvit.names import Resize, Statistics
from foveate.heads.panoptic.names import Templates

SMALL_CLIP = "foveate-small"  # the shipped small CLIP
CONV = "conv"  # --model of proposals that stand on no CLIP
SMALL_CONFIG = Path(__file__).parent.parent / "clip" / "small" / "open_clip_config.json"
HELD_OUT = "val"  # split of a --validate root
Track = Literal["tensorboard", "wandb", "trackio", "none"]


@dataclass(frozen=True, kw_only=True)
class RunFlags:
    """Flags of every run that trains."""

    out: Path
    """Folder of this run; the same command resumes a stopped run. What was trained is written to OUT/model."""
    steps: int = 600
    """Optimizer steps."""
    batch: int = 8
    """Images per process and pass."""
    seed: int = 0
    """Seed of the initial weights, the data order and everything else that is random."""
    log_every: int = 10
    """Steps between lines of OUT/metrics.jsonl."""
    save_every: int = 500
    """Steps between checkpoints."""
    validate: str | None = None
    """Held-out data, as --data (split val, where it has splits): at every checkpoint the loss over 64 of its images is
    measured, always the same ones with the same random draws. The checkpoint with the lowest loss is kept beside the
    newest ones."""
    product: Literal["last", "best"] = "last"
    """Which weights are written at the end: the last, or those with the lowest held-out loss."""
    skip_nonfinite: int = 0
    """Steps in a row with a non-finite loss or gradient that are skipped before the run stops; 0: stop at the first.
    Such a step never changes the weights; its images are in OUT/nonfinite.jsonl."""
    track: Track = "tensorboard"
    """Where the numbers of OUT/metrics.jsonl go too: to OUT/tensorboard; or, with what is in OUT/config.json, to a run
    of W&B or trackio that is named like the folder of OUT. Install and set up their packages yourself."""
    device: str = "auto"
    """Where to compute: auto, cpu, cuda or cuda:N."""
    compile: bool = False
    """Run the blocks of the CLIP's towers through torch.compile: faster on a GPU, after a minute of compiling."""
    dry_run: bool = False
    """Print what the run would do, need and write, measured on one batch, and stop there."""


@dataclass(frozen=True, kw_only=True)
class ReaderFlags(RunFlags):
    """Flags of every run that reads a data set through loader workers and starts from a CLIP."""

    model: str = SMALL_CLIP
    """The CLIP to start from: foveate-small, OUT/model of a distillation, or an open_clip architecture."""
    pretrained: str | None = None
    """Weights of an open_clip architecture: a file, or an open_clip tag such as laion2b_s34b_b88k."""
    split: str = "train"
    """Which part of the root is trained on."""
    accumulate: int = 1
    """Batches per process and step, whose gradients are added up; BatchNorm sees one of them at a time."""
    workers: int = 1
    """Processes that decode images; 0 decodes in the training process."""
    strict: bool = False
    """Stop at the first image that cannot be used, instead of counting it."""


@dataclass(frozen=True, kw_only=True)
class DistillConfig(ReaderFlags):
    """Distil a CLIP into itself, so that its dense features match its image crops (CLIPSelf)."""

    data: str
    """Training images (no annotations needed): any folder of them; a COCO, LVIS, VOC or Objects365 root; tar shards
    as a folder, as "shards-{00000..00331}.tar", or as a URL of that form (cached in $FOVEATE_CACHE/shards)."""
    model: str = SMALL_CLIP
    """The CLIP to distil: foveate-small, an open_clip architecture such as EVA02-B-16, or a saved model folder."""
    split: str = "train"
    """Which part of an annotated root: train, val or test, and for VOC also trainval."""
    annotations: Path | None = None
    """Annotation file to read instead of the standard one: COCO, LVIS or Objects365 JSON."""
    steps: int = 1000
    """Optimizer steps. The paper: 6 epochs of COCO."""
    batch: int = 4
    """Images per process and step (and pass, with --accumulate). The paper: 2 on each of 8 GPUs."""
    accumulate: int = 1
    """Batches per process and step, whose gradients are added up: batch 4 is batch 2 accumulated twice."""
    lr: float | None = None
    """Peak learning rate; default: the paper's 1e-5, and 1e-3 for foveate-small."""
    weight_decay: float | None = None
    """AdamW's weight decay of matrices (norms, biases and other vectors have none); default: the paper's 0.1,
    and 0.05 for foveate-small."""
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's betas. The paper for OpenAI weights: 0.9 0.98."""
    eps: float = 1e-8
    """AdamW's epsilon. The paper for OpenAI weights: 1e-6."""
    warmup: int | None = None
    """Steps of linear warm-up before the cosine to zero; default: a tenth of the steps but at most the paper's
    1000, and 20 for foveate-small."""
    layers: int | None = None
    """Train only the last so many transformer blocks; default: all."""
    objective: Literal["clipself", "region-text", "image-text"] = "clipself"
    """What is learned: clipself, the teacher's embeddings of crops. Or a baseline that learns from text: region-text,
    the noun that the teacher finds in each crop (A.4); image-text, each image's caption (Tab. 1, row 5)."""
    captions: Path | None = None
    """Captions for the two baselines: JSON in COCO's form or {"file name": ["caption", ...]}; default: those of the
    data, annotations/captions_SPLIT2017.json of a COCO root or KEY.txt beside KEY.jpg in tar shards. For region-text
    also a list of nouns instead: .txt, one per line, or a JSON list. Nouns that occur in captions fewer than 5 times
    are ignored; the others are in OUT/nouns.json, with their counts."""
    regions: str = "grid"
    """What is distilled: grid, random grid patches; annotations, the annotated boxes; or a JSON FILE of boxes
    (region proposals): in COCO's form, as a list of results, or {"file name": [[x1, y1, x2, y2], ...]}, in pixels."""
    grid: int = 6
    """Largest number of rows or columns of a patch grid (the paper's M)."""
    grid_rule: Literal["published", "all"] = "published"
    """Grids drawn: the published code's 24 pairs (for M = 6), or all 36 of the paper's text."""
    max_regions: int = 20
    """Maximum number of patches per image and step."""
    size: int | None = None
    """Longest side of the student's input [pixels]; default: the paper's 64 patches and at most 1024 (1024 for B/16,
    896 for L/14), and 192 for foveate-small."""
    pad: Pad = "black"
    """Padding of the student's input: black before colour normalisation (published code) or zeros after it (the paper's
    text). The model remembers it, and evaluation pads the same way."""
    head: StudentHead = "value"
    """The last block of the dense forward; value is the paper's. gated is values3 with a learned factor for each
    attention head, saved with the model, which is then measured with --head values3."""
    window: int | None = None
    """Side of the student's attention windows [patches], in all blocks but the last of each quarter. The paper: 16
    (Sec. 4.4). Default: the whole image."""
    keep: float = 0.0
    """Weight of a term that keeps the student's own embedding of a crop close to the teacher's, so that the image
    embedding is not forgotten; 0: no such term."""
    correlation: float = 0.0
    """Weight of a term that preserves the similarities between locations of the teacher's dense map (by its head
    naclip, at temperature 0.1); 0: no such term."""
    alpha: float = 1.0
    """The product is alpha * student + (1 - alpha) * teacher. The paper: 0.7 for B/16, 0.95 for L/14; 1 = off."""
    save_every: int = 200
    """Steps between checkpoints."""
    validate: str | None = None
    """Held-out images, as --data (split val, where it has splits): at every checkpoint the loss over 64 of them is
    measured, always the same ones, and the checkpoint with the lowest loss is kept beside the newest ones. Where boxes
    are distilled, those of its annotations."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Arithmetic of the towers; bfloat16 is several times faster on a recent GPU and slower on most CPUs. The weights
    that are trained stay float32."""
    tokens: Literal["all", "valid"] = "all"
    """Which tokens of its padded square the student computes: all (paper), or only those that hold part of the image,
    which is faster but not quite the paper's method: padding is then seen by no token."""
    checkpointing: bool = False
    """Store only the input of each of the student's blocks and compute it again in the backward pass: far less memory,
    about a third more time."""
    fsdp: bool = False
    """Shard the student's weights over the processes (FSDP2): for towers as large as ViT-H/14."""
    recipe: str | None = None
    """Start from the flags that `foveate recipes` lists under this name; any flag given overrides its own."""


@dataclass(frozen=True, kw_only=True)
class HeadFlags(ReaderFlags):
    """Flags of the three heads that are trained on a CLIP."""

    novel: Path | None = None
    """JSON file {"base": [names], "novel": [names]}. Default: what annotations/splits.json of the root says,
    OV-COCO's for COCO, rare = novel for LVIS; else all categories are base."""
    lr: float | None = None
    """Peak learning rate of AdamW."""
    weight_decay: float = 0.1
    """AdamW's weight decay of matrices."""
    clip_gradient: float | None = 1.0
    """Maximum norm of the gradient."""
    warmup: int = 0
    """Steps of linear warm-up."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Arithmetic; weights stay float32."""
    workers: int = 2
    """Processes that decode images; 0 decodes in the training process."""


@dataclass(frozen=True, kw_only=True)
class TrainFViT(HeadFlags):
    """Train F-ViT, an open-vocabulary detector on a frozen CLIP ViT (Sec. 3.3), on base categories only."""

    data: Path
    """COCO, LVIS, VOC or Objects365 root with annotated boxes, or a world."""
    annotations: Path | None = None
    """Annotation file to read instead of the standard one: COCO, LVIS or Objects365 JSON."""
    recipe: str | None = None
    """Start from a row of `foveate recipes fvit`; any flag given overrides its own."""
    steps: int = 600
    """Optimizer steps. The paper: 3 epochs of OV-COCO, 48 of OV-LVIS, 64 images per step."""
    lr: float = 1e-4
    """Learning rate of AdamW after the warm-up."""
    weight_decay: float = 0.1
    """AdamW's weight decay of all tensors, vectors too, as published."""
    warmup: int = 250
    """Steps of linear warm-up."""
    milestones: tuple[int, ...] = ()
    """Steps from which the rate is a tenth of what it was; none: constant, as on OV-COCO."""
    size: int | None = None
    """Side of the square input [pixels], a multiple of two patches; default: 640 for patches of 16, 896 for 14,
    192 for foveate-small."""
    augment: bool = True
    """Mirror half of the images, and jitter them."""
    jitter: tuple[float, float] = (0.1, 2.0)
    """Smallest and largest factor of the large-scale jitter; 1 1: none."""
    cache: bool = False
    """Cache the frozen tower's maps in OUT/maps, with --no-augment."""
    masks: bool = False
    """Learn masks too, from an annotation file with outlines (COCO, LVIS)."""
    lvis_heads: bool = False
    """As published for OV-LVIS: BatchNorm in the convolutions of the RPN and of the mask head, and each object takes
    its best proposal, even from an object that it overlaps more."""
    relu_embedding: bool = True
    """End the layer of class embeddings with a ReLU, as published."""
    statistics: Statistics = "imagenet"
    """Normalise images with ImageNet's mean and deviation, as published, or with the CLIP's own."""
    resize: Resize = "bilinear"
    """Resize images bilinearly without antialiasing (cv2's way), as published, or antialiased and bicubic."""
    background_weight: float | None = None
    """Weight of the background in the class loss; default: 0.9 for LVIS and 0.6 else."""
    pyramid: PyramidKind = "taps"
    """Feature pyramid (Tab. A6): four taps of the tower (the paper's); simple: ViTDet's, from the last block; fpn: the
    last block with a top-down path."""
    taps: tuple[int, ...] = ()
    """Blocks that are tapped, from 0, before the last one; default: 3 5 7 of 12 and 6 10 14 of 24 blocks."""
    layers: int = 0
    """Train the last so many blocks of the tower too; the paper freezes all."""
    layer_decay: float = 0.7
    """With --layers: the learning rate of each block, as a factor of the next block's."""
    channels: int | None = None
    """Width of the pyramid and of the heads; default: 256, and 64 for foveate-small."""
    templates: TemplateName = "vild"
    """Prompts for class names: ViLD's 63 templates, CLIP's 80 for ImageNet, or none."""
    benchmark: Literal["ov-coco", "ov-lvis-b", "ov-lvis-l"] | None = None
    """Whose score fusion the detector uses later; default: OV-LVIS's for LVIS and OV-COCO's else."""


@dataclass(frozen=True, kw_only=True)
class TrainCatSeg(LabelMapFlags, HeadFlags):
    """Train CAT-Seg (Cho et al., CVPR 2024): it aggregates the cosines of a CLIP's dense map to classes of pixels.

    Classes of the data that a split calls novel are not trained on; any vocabulary may be used later.
    """

    recipe: str | None = None
    """Start from a row of `foveate recipes catseg`; any flag given overrides its own."""
    steps: int = 600
    """Optimizer steps. CAT-Seg: 80,000 of 4 images."""
    batch: int = 4
    """Images per process and pass."""
    lr: float | None = None
    """Learning rate of AdamW, which falls to 0 in a cosine; default: 2e-4, and 1e-3 for foveate-small."""
    clip_lr: float = 0.01
    """Learning rate of the CLIP's attention, which is trained too, as a fraction of --lr."""
    weight_decay: float = 1e-4
    """AdamW's weight decay of matrices."""
    clip_gradient: float = 0.01
    """Maximum norm of the gradient."""
    version: Version = "2024"
    """2024: one prompt per class, the CLIP guides; 2023 (the paper's): 80 prompts per class, an ImageNet network
    guides."""
    residual: Residual | None = None
    """What the values of the last block are added to: each token, as in CLIPSelf's dense map, or the class token; when
    not given, as in CAT-Seg's code of the version: cls in 2024, token in 2023."""
    backbone: str | None = None
    """With --version 2023: the timm network that guides; resnet101 with a ViT-B, swin_base_patch4_window12_384 with a
    ViT-L."""
    backbone_weights: str | None = None
    """Weights of the backbone: a file with timm's, or none: random ones, for trials; default: timm's own from
    its cache, or fetched."""
    size: int | None = None
    """Side of a training crop, and of a window at test [pixels]; default: 384, and 96 for foveate-small. The
    CLIP gets it in proportion (24 patches of 384 pixels); at test an image is squashed to a square of 5/3 of it."""
    channels: int | None = None
    """Channels per class; default: 128, and 32 for foveate-small."""
    depth: int = 2
    """How often space and classes are aggregated."""
    augment: bool = True
    """Crop, mirror and colour training images at random; else they are squashed whole."""


@dataclass(frozen=True, kw_only=True)
class TrainPanoptic(HeadFlags):
    """Train a mask generator as ODISE's (Tab. 5): Mask2Former's decoder on a frozen encoder.

    It learns from the segments of base classes only, things and stuff.

    The encoder is the tower of the CLIP, or a Mask2Former or a Stable Diffusion in a folder (--encoder). With
    --class-names it also learns which base class a mask is, from text embeddings, so that any vocabulary can be
    queried; with --no-class-names it is class-agnostic, and CLIP alone classifies. The widths of the decoder and its
    other sizes are ODISE's, and smaller for foveate-small. ODISE takes 92,188 steps of 64 images of COCO,
    with a tenth of the rate from step 81,945 and a hundredth from 88,773 on. On 100 images of the world foveate-small
    takes --batch 2 --steps 800 --milestones 680 --warmup 20, six minutes on a core: stuff is found, of things every
    third.
    """

    data: Path
    """COCO root with panoptic annotations, or a world."""
    recipe: str | None = None
    """Start from a row of `foveate recipes panoptic`; any flag given overrides its own."""
    novel: Path | None = None
    """JSON file {"base": [names], "novel": [names]}; stuff that it does not name is base. Default: what
    annotations/splits.json of the root says; else all classes are base, as ODISE's 133 of COCO."""
    class_names: bool = True
    """Learn class names (ODISE's label model), or only class-agnostic masks."""
    labels: Path | None = None
    """File of the names of each class, `id:name,synonym` per line, as OpenSeg's lists, by the data's ids or in their
    order; default: the names of the annotation file."""
    templates: Templates = "photo"
    """Prompts for class names: ODISE's one template, ViLD's 63, CLIP's 80 for ImageNet, or none."""
    embeddings: Length = "raw"
    """Text embeddings as the generator gets them: as the text tower returns them (ODISE), or of length 1."""
    encoder: Path | None = None
    """Folder with a Mask2Former of transformers, whose decoder is then trained further, or with a Stable Diffusion as
    diffusers writes it (ODISE's); default: the CLIP's tower."""
    weight_decay: float = 0.05
    """AdamW's weight decay of matrices."""
    lr: float | None = None
    """Learning rate of AdamW after the warm-up; default: 1e-4, and 4e-4 for foveate-small."""
    clip_gradient: float | None = None
    """Maximum norm of the gradient; default: 0.01, and 10 for foveate-small."""
    milestones: tuple[int, ...] = ()
    """Steps from which the rate is a tenth of what it was; none: constant."""
    size: int | None = None
    """Side of the square input [pixels], a multiple of two patches of the CLIP, of 32 for a Mask2Former's encoder, of
    64 for Stable Diffusion; default: 1024 or what fits next below, and 128 for foveate-small."""
    augment: bool = True
    """Mirror half of the images, and jitter them."""
    jitter: tuple[float, float] | None = None
    """Smallest and largest factor of the large-scale jitter; 1 1: none. Default: 0.1 2, and 1 1 for
    foveate-small."""
    pyramid: PyramidKind = "taps"
    """Feature pyramid on the CLIP's tower (Tab. A6): four taps; simple: from the last block; fpn: likewise with a
    top-down path."""
    taps: tuple[int, ...] = ()
    """Blocks of the CLIP that are tapped, from 0, before the last one; default: 3 5 7 of 12, 6 10 14 of 24."""
    channels: int | None = None
    """Width of the encoder's maps; default: 256, 512 for Stable Diffusion, 64 for foveate-small."""
    queries: int | None = None
    """Masks per image; default: 100, and 30 for foveate-small."""
    depth: int | None = None
    """Layers of the decoder; default: 9, and 2 for foveate-small."""


@dataclass(frozen=True, kw_only=True)
class Proposals(ReaderFlags):
    """Make region proposals that have seen base categories only, for `foveate distill --regions FILE`.

    One process: a run takes minutes, and the boxes of a data set are written to one file in the order of its images.
    """

    data: Path
    """COCO, LVIS, VOC or Objects365 root with annotated boxes, or a world: what is trained on."""
    out: Path
    """Folder of this run; the same command resumes a stopped run. The proposals are written to
    OUT/proposals_SPLIT.json."""
    model: str = SMALL_CLIP
    """The CLIP whose frozen features are used: foveate-small, an open_clip architecture such as EVA02-B-16, or a
    saved model folder. Or conv, a small convolutional network that is trained with the rest."""
    split: str = "train"
    """Which part of the root is trained on, and gets proposals."""
    annotations: Path | None = None
    """Annotation file to read instead of the standard one: COCO, LVIS or Objects365 JSON."""
    novel: Path | None = None
    """JSON file {"base": [names], "novel": [names]}; boxes of base categories alone are trained on. Default:
    what annotations/splits.json of the root says, OV-COCO's for COCO, rare = novel for LVIS; else all categories are
    trained on."""
    images: Path | None = None
    """Images to make proposals for (a folder, or a root, of which SPLIT is taken), instead of those trained on."""
    steps: int = 300
    """Optimizer steps; 300 find 96 % of the rendered world's base objects at IoU 0.5 among 100 boxes."""
    batch: int = 8
    """Images per pass, and per batch when proposals are made."""
    lr: float = 1e-3
    """Peak learning rate of AdamW: 20 steps of warm-up, a cosine to zero."""
    size: int | None = None
    """Longest side of the input [pixels], a multiple of two patches; default: 64 patches and at most 1024, and
    192 for foveate-small and for conv."""
    channels: int | None = None
    """Width of the pyramid and of the RPN; default: 128, and 64 for foveate-small and for conv."""
    augment: bool = True
    """Mirror half of the images in training, at random."""
    max_boxes: int = 100
    """Maximum number of proposals per image."""
    min_score: float = 0.0
    """Leave out proposals of a lower score, in [0, 1]."""
    nms: float = 0.7
    """Of two boxes that overlap by more, the one with the lower score is removed."""
    save_every: int = 200
    """Steps between checkpoints."""


@dataclass(frozen=True, kw_only=True)
class Pretrain(RunFlags):
    """Pretrain a CLIP on image-caption pairs with the contrastive loss.

    The shipped small CLIP was made by this command (its card, clip/small/README.md, has the exact line and its log).
    The same command resumes a stopped run. One process: a caption is told from the others of its batch, which a second
    process would not see. A pair that cannot be read is refused before the first step.
    """

    data: Path
    """Folder of tar shards, KEY.jpg beside KEY.txt (`foveate world DIR --pairs 60000` writes DIR/pairs)."""
    out: Path
    """Folder for the model (an open_clip folder), metrics.jsonl and the checkpoints to resume from."""
    config: Path = SMALL_CONFIG
    """open_clip_config.json of the model to build; the small CLIP's by default. "residual" is its sibling with a CNN
    for an image tower (RN50's kind)."""
    text_from: str | None = None
    """A CLIP (foveate-small, or a saved model folder) whose text tower is taken and not trained, so that the new image
    tower shares its embedding space and learns sooner. Default: a text tower is trained too."""
    steps: int = 2000
    """Optimizer steps."""
    batch: int = 256
    """Pairs per step."""
    lr: float = 2e-3
    """Peak learning rate of Muon, for the transformers' matrices; AdamW takes half of it, for everything else."""
    warmup: int = 50
    """Steps of linear warm-up before the cosine to zero."""
    patch_dropout: float = 0.5
    """Fraction of each image's patches dropped while training, twice the speed (ViTs only; a residual tower sees whole
    images)."""
    whole_steps: int = 300
    """The last so many steps see whole images."""
    log_every: int = 1
    """Steps between lines of OUT/metrics.jsonl."""
    save_every: int = 100
    """Steps between checkpoints."""
    validate: str | None = None
    """Folder of held-out pairs, as --data: at every checkpoint the loss over 256 of them is measured, always the same
    ones, seen whole. The checkpoint with the lowest loss is kept beside the newest ones."""
