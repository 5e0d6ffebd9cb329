"""The report of a distillation as one self-contained HTML page, without scripts, web fonts or links.

In this order: headline, table against baselines, accuracy by input size (Fig. 3 of the paper), figures (K-means maps as
Fig. 4, similarity maps), training loss, and how to reproduce it.
"""

import base64
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from foveate.errors import InputError
from foveate.io.files import write_whole
from foveate.show.charts import inline_svg, name_ends, new_chart
from foveate.show.curves import smooth
from foveate.show.palette import DARK, LIGHT

KINDS = (("boxes", "Boxes"), ("things", "Thing masks"), ("stuff", "Stuff masks"))
NONE = "\N{EN DASH}"  # a missing value
SUMMARY = (
    "A CLIP recognises whole images, but a single location of its dense feature map describes its content poorly. "
    "CLIPSelf distils the model into itself: the embedding of a region, pooled from the dense feature map, is trained "
    "towards the model's own embedding of that region's crop, without labels, text or a second model."
)


class Result(TypedDict):
    """The content of a report."""

    title: str
    before: dict[str, Any]  # evaluate_regions of the pretrained model, with crops
    after: dict[str, Any]  # evaluate_regions of the distilled model, with crops
    command: str  # reproduces all of this
    seed: int
    seconds: dict[str, float]  # by stage, in order
    versions: dict[str, str]
    colour: NotRequired[dict[str, Any] | None]  # colour_bound
    agreement: NotRequired[dict[str, dict[str, Any]]]  # evaluate_agreement of "before" and of "after"
    losses: NotRequired[list[tuple[int, float]]]  # read_losses


@dataclass(frozen=True)
class Line:
    """One line of a chart."""

    name: str  # written where it ends; empty for a line that explains itself
    colour: str  # a key of `palette.LIGHT`
    points: list[tuple[float, float]]  # by rising x
    style: str = "-"  # of matplotlib
    width: float = 2.4  # [points]
    decimals: int = 1  # of the value beside the name


def write_report(path: Path, *, result: Result, figures: list[tuple[str, str, Path]]) -> None:
    """Write the report of a distillation; headline and table are at the largest common input size.

    Args:
        figures: title, caption and PNG, in the order of the page.

    Raises:
        InputError: a figure is not a PNG file, or the two evaluations share no input size.
    """
    sizes = sorted(set(_dense(result["before"])) & set(_dense(result["after"])))
    if not sizes:
        raise InputError("result: need a common input size of before and after; got none.")
    size = sizes[-1]
    sections = [
        _header(result, size),
        _table(result, size),
        _agreement(result),
        _sweep(result, sizes),
        *(_figure(*figure) for figure in figures),
        _loss(result),
        _making(result),
    ]
    page = _PAGE.format(title=escape(result["title"]), style=_STYLE, body="\n".join(sections))
    write_whole(path, page.encode("utf-8"))


def _dense(evaluation: dict[str, Any]) -> dict[int, dict[str, Any]]:
    """Scores by input size; sizes are text in results from JSON."""
    return {int(size): scores for size, scores in evaluation["dense"].items()}


def _percent(value: float | None) -> str:
    return NONE if value is None else f"{value:.1f}"


def _header(result: Result, size: int) -> str:
    """Title, summary and headline: accuracy of boxes from the dense map, before and after."""
    before, after = (_dense(result[when])[size]["boxes"] for when in ("before", "after"))
    crop = result["before"]["crop"]
    facts = [f"{before['count']} boxes on {result['after']['images']} images, {result['after']['classes']} classes"]
    if before["top1"] and after["top1"]:
        facts.insert(0, f"{after['top1'] / before['top1']:.1f} times the accuracy before")
    if crop and crop["boxes"]["top1"] and after["top1"] is not None:
        facts.insert(1, f"{100 * after['top1'] / crop['boxes']['top1']:.0f} % of what crops reach")
    if colour := result.get("colour"):
        facts.append(f"colour alone: {_percent(colour['top1'])} %")
    return f"""<header>
<p class="eyebrow">Foveate · report</p>
<h1>{escape(result["title"])}</h1>
<p class="lead">{SUMMARY}</p>
<div class="headline">
<p class="figure"><span class="was">{_percent(before["top1"])}</span>
<span class="arrow" role="img" aria-label="to">&rarr;</span>
<span class="is">{_percent(after["top1"])}<small> %</small></span></p>
<div><p class="what">top-1 accuracy per class (mAcc) of boxes read from the dense map at {size} px,
before and after CLIPSelf</p>
<ul class="facts">{"".join(f"<li>{escape(fact)}</li>" for fact in facts)}</ul></div>
</div>
</header>"""


def _rows(result: Result, size: int) -> list[tuple[str, str, str, dict[str, Any] | None]]:
    """The table's rows: CSS class, name, explanation, scores by kind."""
    colour = result.get("colour")
    before, after = (_dense(result[when])[size] for when in ("before", "after"))
    old_head, new_head = result["before"]["head"], result["after"]["head"]
    return [
        ("colour", "Colour alone", "a classifier of mean colour and histograms", {"boxes": colour} if colour else None),
        ("before", "Dense, before", f"{size} px, pretrained, head {old_head}", before),
        ("after", "Dense, after", f"{size} px, CLIPSelf, head {new_head}", after),
        ("student", "Crops, after", "image embeddings of the distilled tower", result["after"]["crop"]),
        ("crop", "Crops, before", "image embeddings of the teacher, the target", result["before"]["crop"]),
    ]


def _table(result: Result, size: int) -> str:
    """Before and after, between the colour-only bound and crops."""
    groups = "".join(f'<th colspan="2" scope="colgroup">{name}</th>' for _, name in KINDS)
    tops = '<th scope="col">top-1</th><th scope="col">top-5</th>' * len(KINDS)
    rows = []
    for kind, name, note, scores in _rows(result, size):
        if scores is not None:
            cells = "".join(_cells(scores.get(key)) for key, _ in KINDS)
            rows.append(f'<tr class="{kind}"><th scope="row">{name}<small>{escape(note)}</small></th>{cells}</tr>')
    bad = len(result["after"]["bad"])
    unreadable = f" {bad} unreadable images are ignored." if bad else ""
    return f"""<section>
<h2>Comparison</h2>
<div class="scroll"><table>
<thead><tr><td></td>{groups}</tr><tr><td></td>{tops}</tr></thead>
<tbody>
{chr(10).join(rows)}
</tbody></table></div>
<p class="caption">mAcc in percent: accuracy per class, averaged over the classes present.
All {result["after"]["classes"]} classes compete, the colour-only bound among things. Crops of things carry half
a box of surroundings and are used for boxes and for thing masks.{unreadable}</p>
</section>"""


def _agreement(result: Result) -> str:
    """The dense map against crops, without labels."""
    if "agreement" not in result:
        return ""
    before, after = result["agreement"]["before"], result["agreement"]["after"]
    rows = "".join(
        f'<tr class="{kind}"><th scope="row">Dense, {kind}</th><td>{scores["cosine"]:.3f}</td>'
        f'<td class="top1"><span>{scores["recall"]:.1f}</span><i style="--share:{scores["recall"]:.1f}%"></i></td></tr>'
        for kind, scores in (("before", before), ("after", after))
    )
    return f"""<section>
<h2>Without any label</h2>
<div class="scroll"><table>
<thead><tr><td></td><th scope="col">mean cosine</th><th scope="col">R@1 [%]</th></tr></thead>
<tbody>{rows}</tbody></table></div>
<p class="caption">{after["regions"]} grid patches of {after["images"]} images: the cosine between a patch of the
dense map and the pretrained model's embedding of its crop, and how often the patch finds its own crop among
{after["crops"]:.0f}, those of its image and of {after["gallery"] - 1} others.</p>
</section>"""


def _cells(score: dict[str, Any] | None) -> str:
    """Top-1 with a bar of its length, and top-5."""
    if score is None or score["top1"] is None:
        return f'<td class="none">{NONE}</td>' * 2
    return (
        f'<td class="top1"><span>{_percent(score["top1"])}</span><i style="--share:{score["top1"]:.1f}%"></i></td>'
        f"<td>{_percent(score['top5'])}</td>"
    )


def _sweep(result: Result, sizes: list[int]) -> str:
    """Accuracy over the input size, one chart per kind of region (Fig. 3)."""
    charts = []
    for key, name in KINDS:
        lines = [line for line in _sweep_lines(result, sizes, key) if line.points]
        if lines:
            ticks = [float(size) for size in sizes]
            chart = _chart(lines, x_name="input size [px]", ticks=ticks, top=100.0, is_log=True)
            label = f"{name}: top-1 mAcc over input size"
            charts.append(f'<figure role="img" aria-label="{label}"><h3>{name}</h3>{chart}</figure>')
    return f"""<section>
<h2>Accuracy over the input size</h2>
<div class="charts">{"".join(charts)}</div>
<p class="caption">Top-1 mAcc in percent over the side of the dense input; the dashed levels are crops at the tower's
own size.</p>
</section>"""


def _sweep_lines(result: Result, sizes: list[int], kind: str) -> list[Line]:
    """Crops as dashed levels, dense features as lines with dots; unmeasured lines have no points."""
    ends = [sizes[0], sizes[-1]]
    lines = []
    for when, name, css in (("before", "crops", "crop"), ("after", "crops after", "student")):
        crop = result[when]["crop"]
        level = crop[kind]["top1"] if crop else None
        points = [] if level is None else [(float(size), level) for size in ends]
        lines.append(Line(name, css, points, style="--", width=1.6))
    for when in ("before", "after"):
        tops = [(float(size), _dense(result[when])[size][kind]["top1"]) for size in sizes]
        lines.append(Line(when, when, [(size, top) for size, top in tops if top is not None], style="-o"))
    return lines


def _chart(lines: list[Line], *, x_name: str, ticks: list[float], top: float, is_log: bool = False) -> str:
    """Lines as inline SVG, named where they end; y starts at 0."""
    figure, axes = new_chart("", x_name=x_name, y_name="", right=1.25, size=(4.3, 2.75))
    for line in lines:
        axes.plot(
            *zip(*line.points, strict=True), line.style, color=LIGHT[line.colour], lw=line.width, ms=5, clip_on=False
        )
    if is_log:
        axes.set_xscale("log", base=2)
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.set_ylim(0, top)
    axes.spines[["left", "bottom"]].set_visible(False)
    axes.tick_params(length=0)
    ends = [(line, line.points[-1][1]) for line in lines if line.name]
    name_ends(axes, [(y, f"{line.name} {y:.{line.decimals}f}", LIGHT[line.colour]) for line, y in ends])
    return inline_svg(figure, variables=LIGHT)


def _figure(title: str, caption: str, png: Path) -> str:
    """Put a PNG into the page."""
    data = png.read_bytes() if png.is_file() else b""
    if not data.startswith(b"\x89PNG"):
        raise InputError(f"{png}: need a PNG file for the figure {title!r}; got {'another file' if data else 'none'}.")
    return f"""<section>
<h2>{escape(title)}</h2>
<img class="sheet" alt="{escape(title)}" src="data:image/png;base64,{base64.b64encode(data).decode()}">
<p class="caption">{escape(caption)}</p>
</section>"""


def _loss(result: Result) -> str:
    """The loss, as logged and smoothed."""
    points = result.get("losses")
    if not points:
        return ""
    logged = [(float(step), loss) for step, loss in points]
    smoothed = [(float(step), loss) for step, loss in smooth(points)]
    last = points[-1][0]
    ticks = [0.0, float(last // 2), float(last)]
    lines = [Line("", "colour", logged, width=1.0), Line("loss", "after", smoothed, decimals=3)]
    top = max(1e-3, 1.05 * max(loss for _, loss in logged))
    chart = _chart(lines, x_name="step", ticks=ticks, top=top)
    return f"""<section>
<h2>Training loss</h2>
<div class="charts"><figure role="img" aria-label="loss over steps">{chart}</figure></div>
<p class="caption">1 &minus; mean cosine between a region of the dense map and its crop; thin as logged, bold
smoothed.</p>
</section>"""


def _making(result: Result) -> str:
    """Command, durations, seed and versions."""
    seconds = result["seconds"]
    stages = [(name, f"{value:,.0f} s") for name, value in [*seconds.items(), ("total", float(sum(seconds.values())))]]
    versions = [("seed", str(result["seed"])), *result["versions"].items()]
    return f"""<section>
<h2>Reproduce</h2>
<pre><code>{escape(result["command"])}</code></pre>
<div class="lists">{_list("Seconds", stages)}{_list("Seed and versions", versions)}</div>
</section>"""


def _list(title: str, rows: list[tuple[str, str]]) -> str:
    items = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in rows)
    return f"<div><h3>{title}</h3><dl>{items}</dl></div>"


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<style>{style}</style>
</head>
<body><main>
{body}
</main></body>
</html>
"""


def _variables(colours: dict[str, str]) -> str:
    return " ".join(f"--{name}: {colour};" for name, colour in colours.items())


_STYLE = f"""
:root {{ color-scheme: light dark; {_variables(LIGHT)} }}
@media (prefers-color-scheme: dark) {{ :root {{ {_variables(DARK)} }} }}
"""
_STYLE += """
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); line-height: 1.55;
  font-family: system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", Arial, sans-serif; }
main { max-width: 68rem; margin: 0 auto; padding: clamp(1.5rem, 5vw, 4rem) clamp(1rem, 4vw, 2.5rem); }
h1 { font-size: clamp(1.7rem, 4.5vw, 2.6rem); line-height: 1.15; letter-spacing: -.02em; margin: .2rem 0 1rem;
  text-wrap: balance; }
h2 { font-size: 1.3rem; letter-spacing: -.01em; margin: 0 0 1rem; }
h3 { font-size: .95rem; margin: 0 0 .4rem; }
.eyebrow { margin: 0; color: var(--quiet); font-size: .85rem; letter-spacing: .04em; }
.lead { max-width: 62ch; font-size: 1.08rem; margin: 0; }
section { margin-top: 3.5rem; }
.headline { display: flex; flex-wrap: wrap; align-items: center; gap: 1rem 2.5rem; margin-top: 2rem;
  padding: 1.4rem 1.6rem; background: var(--wash); border-radius: 14px; }
.headline > div { flex: 1 1 22rem; }
.figure { margin: 0; line-height: 1; white-space: nowrap; font-variant-numeric: tabular-nums; letter-spacing: -.03em; }
.was { font-size: clamp(1.8rem, 5vw, 2.8rem); color: var(--quiet); }
.arrow { font-size: 1.8rem; color: var(--quiet); margin: 0 .7rem; }
.is { font-size: clamp(3rem, 9vw, 5rem); font-weight: 700; color: var(--after); }
.is small { font-size: .4em; font-weight: 500; letter-spacing: 0; }
.what { margin: 0 0 .5rem; font-weight: 600; }
.facts { margin: 0; padding: 0; list-style: none; color: var(--quiet); font-size: .95rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; min-width: 42rem; font-variant-numeric: tabular-nums; }
th, td { padding: .6rem .7rem; text-align: right; font-weight: 400; vertical-align: top; }
thead th { color: var(--quiet); font-size: .85rem; padding-block: .2rem; }
thead th[colspan] { color: var(--ink); font-weight: 600; font-size: .95rem; }
tbody tr { border-top: 1px solid var(--rule); }
tbody tr:last-child { border-bottom: 1px solid var(--rule); }
tbody th { text-align: left; font-weight: 600; }
tbody th small { display: block; font-weight: 400; color: var(--quiet); font-size: .82rem; }
tbody td:nth-child(odd) { color: var(--quiet); }
td.top1 { min-width: 6.2rem; font-weight: 600; }
td.top1 i { display: block; height: 5px; margin-top: .3rem; border-radius: 3px;
  background: linear-gradient(to right, var(--bar) var(--share), var(--rule) var(--share)); }
tr.colour { --bar: var(--colour); } tr.before { --bar: var(--before); } tr.after { --bar: var(--after); }
tr.student { --bar: var(--student); } tr.crop { --bar: var(--crop); }
tr.after th, tr.after td.top1 { color: var(--after); }
tr.after { background: var(--wash); }
.none { color: var(--quiet); }
.caption { max-width: 70ch; margin: .9rem 0 0; color: var(--quiet); font-size: .92rem; }
.charts { display: grid; gap: 1.5rem; grid-template-columns: repeat(auto-fit, minmax(min(19rem, 100%), 1fr)); }
.charts figure { margin: 0; max-width: 27rem; }
svg { display: block; width: 100%; height: auto; overflow: visible; }
.sheet { display: block; max-width: 100%; height: auto; border-radius: 10px; background: #fff;
  border: 1px solid var(--rule); }
@media (prefers-color-scheme: dark) { .sheet { filter: brightness(.9); } }
pre { overflow-x: auto; margin: 0; padding: 1rem 1.2rem; background: var(--card); border: 1px solid var(--rule);
  border-radius: 10px; font-size: .9rem; }
.lists { display: grid; gap: 2rem; grid-template-columns: repeat(auto-fit, minmax(min(18rem, 100%), 1fr));
  margin-top: 1.5rem; }
dl { margin: 0; font-size: .95rem; }
dl div { display: flex; justify-content: space-between; gap: 1rem; padding: .3rem 0;
  border-top: 1px solid var(--rule); }
dt { color: var(--quiet); } dd { margin: 0; font-variant-numeric: tabular-nums; text-align: right; }
@media print { main { max-width: none; padding: 0; } section { break-inside: avoid; } }
"""
