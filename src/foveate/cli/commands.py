"""The table of commands: the only list of them, which help, dispatch, documentation and tests read.

A new command is one row here, one dataclass of its flags and one function that takes it. Only the modules of the
command that was typed are imported, so that `--help` never waits for torch.
"""

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from itertools import groupby
from typing import Any

from foveate.errors import InputError


@dataclass(frozen=True)
class Command:
    """One command of the command line."""

    group: str
    """Heading in the list of commands."""
    words: str
    """As typed after `foveate`."""
    summary: str
    """One line for the list of commands."""
    config: str
    """Dataclass of its flags, "module:Class"."""
    procedure: str
    """Function that takes that dataclass, "module:function"."""
    example: str
    """What may follow the words."""

    def load_config(self) -> type[Any]:
        """Import the dataclass of the flags."""
        return _load(self.config)

    def load_procedure(self) -> Callable[[Any], object]:
        """Import the function that does the work."""
        return _load(self.procedure)


COMMANDS: tuple[Command, ...] = (
    Command("start", "demo", "distil the shipped CLIP on rendered scenes: 5 minutes on 2 cores",
            "foveate.reproduce.flags:Demo", "foveate.reproduce.demo:run",
            "--out runs/demo"),
    Command("start", "segment", "label every pixel of images with a class of any vocabulary",
            "foveate.predict.flags:Segment", "foveate.predict.segment:run",
            'images/ --model foveate-small --vocab "grass, dog, sky" --out segmented'),
    Command("start", "detect", "find objects of any vocabulary with a trained detector",
            "foveate.predict.flags:Detect", "foveate.predict.detect:run",
            'images/ --model runs/fvit/model --vocab "dog, red cup" --out detected'),
    Command("start", "distill", "distil a CLIP's embeddings of crops into its dense features",
            "foveate.train.flags:DistillConfig", "foveate.train.distill:run",
            "--data coco --out runs/mine"),
    Command("start", "evaluate regions", "classify annotated regions by dense features and by crops",
            "foveate.evaluate.flags:Regions", "foveate.evaluate.commands.clip:run_regions",
            "--data coco --model runs/mine/model"),
    Command("start", "show similarity", "draw the similarity of image locations to a text",
            "foveate.show.flags:Similarity", "foveate.show.commands:run_similarity",
            '--data images/ --model runs/mine/model --vocab "a dog, grass" --out similarity.png'),
    Command("train", "train-fvit", "train F-ViT, an open-vocabulary detector",
            "foveate.train.flags:TrainFViT", "foveate.train.fvit:run",
            "--data coco --model runs/mine/model --out runs/fvit"),
    Command("train", "train-catseg", "train CAT-Seg, open-vocabulary semantic segmentation",
            "foveate.train.flags:TrainCatSeg", "foveate.train.catseg:run",
            "--data coco --model runs/mine/model --out runs/catseg"),
    Command("train", "train-panoptic", "train a mask generator for open-vocabulary panoptic segmentation",
            "foveate.train.flags:TrainPanoptic", "foveate.train.panoptic:run",
            "--data coco --model runs/mine/model --out runs/panoptic"),
    Command("train", "proposals", "generate region proposals for distill --regions",
            "foveate.train.flags:Proposals", "foveate.train.proposals:run",
            "--data coco --out runs/proposals"),
    Command("train", "pretrain", "pretrain a small CLIP on images with captions",
            "foveate.train.flags:Pretrain", "foveate.train.pretrain:run",
            "--data world/pairs --out runs/small"),
    Command("evaluate", "evaluate agreement", "compare dense features with crops, without labels",
            "foveate.evaluate.flags:Agreement", "foveate.evaluate.commands.clip:run_reference",
            "--data images/ --model runs/mine/model --reference foveate-small"),
    Command("evaluate", "evaluate retrieval", "retrieve images and regions by locations of the dense features",
            "foveate.evaluate.flags:Retrieval", "foveate.evaluate.commands.clip:run_reference",
            "--data coco --model runs/mine/model"),
    Command("evaluate", "evaluate global", "zero-shot classification and retrieval of whole images",
            "foveate.evaluate.flags:Global", "foveate.evaluate.commands.clip:run_global",
            "--data imagenet/val --model runs/mine/model --reference foveate-small"),
    Command("evaluate", "evaluate pareto", "interpolate student and teacher: dense against global accuracy",
            "foveate.evaluate.flags:Pareto", "foveate.evaluate.commands.clip:run_pareto",
            "--data coco --model runs/mine/model --reference foveate-small --plot pareto.png"),
    Command("evaluate", "evaluate detection", "AP of base and novel categories, of a model or a results file",
            "foveate.evaluate.flags:Detection", "foveate.evaluate.commands.detection:run_detection",
            "--data coco --model runs/fvit/model"),
    Command("evaluate", "evaluate semantic", "mIoU of semantic segmentation, of a model or of label maps",
            "foveate.evaluate.flags:Semantic", "foveate.evaluate.commands.semantic:run_semantic",
            "--data ADEChallengeData2016 --model runs/catseg/model"),
    Command("evaluate", "evaluate panoptic", "PQ of panoptic segmentation, of a model or of results files",
            "foveate.evaluate.flags:Panoptic", "foveate.evaluate.commands.panoptic:run_panoptic",
            "--data coco --model runs/panoptic/model --classifier runs/mine/model"),
    Command("predict", "embed", "write image, dense or box features of images to one file",
            "foveate.predict.flags:Embed", "foveate.predict.embed:run",
            "images/ --model runs/mine/model --what dense --out features.safetensors"),
    Command("predict", "show kmeans", "draw clusters of the dense features",
            "foveate.show.flags:KMeans", "foveate.show.commands:run_kmeans",
            "--data images/ --model runs/mine/model --reference foveate-small --out kmeans.png"),
    Command("predict", "show sizes", "plot accuracy against input size from results files",
            "foveate.show.flags:Sizes", "foveate.show.commands:run_sizes",
            "before=before.json after=after.json --out sizes.png"),
    Command("convert", "convert", "convert a CLIP or a published detector or segmenter",
            "foveate.convert.flags:Convert", "foveate.convert.run:run",
            "runs/mine/model converted --to hf"),
    Command("convert", "export", "write a CLIP's image tower as ONNX or torch.export",
            "foveate.export.flags:Export", "foveate.export.run:run",
            "--model runs/mine/model --out dense.onnx"),
    Command("data", "world", "render the synthetic data set in COCO's format",
            "foveate.cli.world:World", "foveate.cli.world:run",
            "world --train 1000"),
    Command("data", "convert-maps ade-full", "convert the label maps of the full ADE20K",
            "foveate.convert.flags:AdeFull", "foveate.convert.maps:run_ade_full",
            "ADE20K_2021_17_01 --out ade-full --split val"),
    Command("data", "convert-maps context", "convert the label maps of PASCAL Context",
            "foveate.convert.flags:Context", "foveate.convert.maps:run_context",
            "trainval --labels labels.txt --out context459"),
    Command("paper", "recipes", "list the named settings of training and evaluation",
            "foveate.reproduce.flags:Recipes", "foveate.reproduce.list_recipes:run",
            "clipself-b16-patches"),
    Command("paper", "reproduce", "run the paper's tables and write a page of results",
            "foveate.reproduce.flags:Reproduce", "foveate.reproduce.runner:run",
            "tab1 figs --out runs/reproduce"),
)  # fmt: skip
"""In the order of the list that `foveate --help` prints."""


def find_command(arguments: Sequence[str]) -> tuple[Command, list[str]]:
    """The command that the arguments begin with, and the arguments after its words.

    Raises:
        InputError: no command is called so; the message names the nearest.
    """
    commands = {command.words: command for command in COMMANDS}
    for count in (2, 1):
        words = " ".join(arguments[:count])
        if words in commands:
            return commands[words], list(arguments[count:])
    # the nearest of what was typed, else of its first word alone, whose others may be flags or paths
    typed = " ".join(word for word in arguments[:2] if not word.startswith("-"))
    nearest = [difflib.get_close_matches(words, commands, n=1, cutoff=0.5) for words in (typed, arguments[0])]
    hint = next((f" Did you mean `foveate {names[0]}`?" for names in nearest if names), "")
    raise InputError(f"need a command that `foveate --help` lists; got {typed or arguments[0]!r}.{hint}")


def commands_under(word: str) -> tuple[Command, ...]:
    """The commands of two words that begin with this one, such as those of `evaluate`."""
    return tuple(command for command in COMMANDS if command.words.startswith(f"{word} "))


def help_lines(commands: Sequence[Command]) -> list[str]:
    """A line for each command, its group beside the first of it, a blank line between groups."""
    lines: list[str] = []
    for group, members in groupby(commands, key=lambda command: command.group):
        for place, command in enumerate(members):
            lines.append(f"  {'' if place else group:8}  {command.words:21}  {command.summary}")
        lines.append("")
    return lines[:-1]


def _load(name: str) -> Any:
    module, _, attribute = name.partition(":")
    return getattr(import_module(module), attribute)
