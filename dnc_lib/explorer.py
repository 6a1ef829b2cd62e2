"""A map of embeddings to point at, as one piece of HTML: each dot shows its image and the case it is nearest to.

It needs neither a kernel nor the network nor a library: the images are two sheets within it, the script is below.
"""

import base64
import io
import json
import re
from dataclasses import dataclass
from html import escape
from string import Template

import numpy as np
from PIL import Image
from torch import Tensor

#: Images on one map, at most: a page is to stay light.
MOST = 300

#: Columns of a sheet of images.
COLUMNS = 20

#: Of the JPEG sheets.
QUALITY = 88


@dataclass(frozen=True)
class Cases:
    """What the images are compared with: sub-centroids, each with the training image that it stands for.

    Attributes:
        images: (M, H, W, 3) uint8.
        labels: (M,) long, in [0, C).
        places: (M, 2) on the map.
        similarity: (N, M) of each image on the map to each case.
    """

    images: Tensor
    labels: Tensor
    places: Tensor
    similarity: Tensor


def explorer(
    images: Tensor,
    labels: Tensor,
    places: Tensor,
    cases: Cases,
    classes: tuple[str, ...],
    colours: list[str],
    name: str = "explorer",
) -> str:
    """A map as HTML, to be shown in a notebook by ``IPython.display.HTML``.

    Args:
        images: (N, H, W, 3) uint8, 300 at most.
        labels: (N,) true classes.
        places: (N, 2) on the map, in any units.
        cases: what they are compared with; the class of the nearest is the prediction.
        classes: the C names.
        colours: C colours as CSS knows them.
        name: of this map within its page: letters, digits, - and _.

    Returns:
        About 1.3 kB an image of 32 x 32.

    Raises:
        ValueError: for more than 300 images, parts that do not fit together, cases of a single class, or a name that
            a page cannot use.
    """
    number = len(images)
    if not 0 < number <= MOST:
        raise ValueError(f"a map takes 1 to {MOST} images, got {number}: draw some of them")
    if not len(labels) == len(places) == len(cases.similarity) == number:
        got = f"{number} images, {len(labels)} labels, {len(places)} places, {len(cases.similarity)} similarities"
        raise ValueError(f"each image needs a label, a place and similarities, got {got}")
    if not len(cases.images) == len(cases.labels) == len(cases.places) == cases.similarity.shape[1]:
        raise ValueError("each case needs an image, a label, a place and a column of similarities")
    if len(colours) != len(classes):
        raise ValueError(f"each class needs a colour, got {len(colours)} for {len(classes)} classes")
    for what, own in (("images", labels), ("cases", cases.labels)):
        if wrong := [int(c) for c in own if not 0 <= c < len(classes)]:
            raise ValueError(f"label {wrong[0]} of the {what} is none of {len(classes)} classes")
    if len(set(cases.labels.tolist())) < 2:
        raise ValueError("the cases are of one class: there is no nearest of another to show")
    if not re.fullmatch(r"[A-Za-z][\w-]*", name, re.ASCII):
        raise ValueError(f"name must begin with a letter and have letters, digits, - and _ alone, got {name!r}")
    together = np.concatenate([places.numpy(), cases.places.numpy()]).astype(float)
    low, high = together.min(0), together.max(0)
    together = np.round(3 + 94 * (together - low) / np.maximum(high - low, 1e-12), 2)  # of 100, with an edge
    best = cases.similarity.argmax(1)
    predicted = cases.labels[best]
    others = cases.similarity.masked_fill(cases.labels[None] == predicted[:, None], -2)
    second = others.argmax(1)
    dots = [
        [*place, int(label), int(first), round(float(row[first]), 3), int(then), round(float(row[then]), 3)]
        for place, label, first, then, row in zip(
            together[:number].tolist(), labels, best, second, cases.similarity, strict=True
        )
    ]
    data = {
        "dots": dots,
        "cases": [[*p, int(c)] for p, c in zip(together[number:].tolist(), cases.labels, strict=True)],
        "classes": list(classes),
        "colours": list(colours),
        "columns": COLUMNS,
        "rows": [-(-len(each) // COLUMNS) for each in (images, cases.images)],
    }
    legend = "".join(
        f'<li><span style="background:{escape(colour)}"></span>{escape(label)}</li>'
        for label, colour in zip(classes, colours, strict=True)
    )
    return _PAGE.substitute(
        name=escape(name),
        data=json.dumps(data, separators=(",", ":")).replace("<", "\\u003c"),
        images=_sheet(images),
        cases=_sheet(cases.images),
        legend=legend,
    )


def _sheet(images: Tensor) -> str:
    """Images side by side as one JPEG, for a ``url()``."""
    count, height, width, _ = images.shape
    rows = -(-count // COLUMNS)
    sheet = np.full((rows * height, COLUMNS * width, 3), 255, dtype=np.uint8)
    for i, image in enumerate(images.numpy()):
        top, left = height * (i // COLUMNS), width * (i % COLUMNS)
        sheet[top : top + height, left : left + width] = image
    file = io.BytesIO()
    Image.fromarray(sheet).save(file, "JPEG", quality=QUALITY, subsampling=0)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"


_PAGE = Template("""
<div class="dnc-explorer" id="$name">
<style>
#$name { display: flex; flex-wrap: wrap; gap: 1rem; align-items: flex-start; }
#$name .map { flex: 1 1 20rem; max-width: 34rem; }
#$name svg { width: 100%; background: #fff; border: 1px solid #ccc; border-radius: 4px; touch-action: manipulation; }
#$name circle { cursor: pointer; stroke: #fff; stroke-width: .25; }
#$name circle.wrong { stroke: #000; stroke-width: .55; }
#$name circle.chosen { stroke: #000; stroke-width: .9; r: 1.8px; }
#$name path, #$name line { pointer-events: none; }
#$name path { fill: #fff; stroke-width: .6; }
#$name .link { stroke: #000; stroke-width: .45; }
#$name .link.second { stroke-dasharray: 1.2 1; }
#$name .panel { flex: 0 1 17rem; font-size: .9rem; line-height: 1.4; }
#$name figure { display: inline-block; margin: 0 .6rem .6rem 0; vertical-align: top; width: 7.5rem; }
#$name .picture { width: 7.5rem; height: 7.5rem; image-rendering: pixelated; background-repeat: no-repeat; }
#$name figcaption { font-size: .85rem; margin: .2rem 0 0; text-align: left; }
#$name ul { list-style: none; padding: 0; margin: .4rem 0; display: flex; flex-wrap: wrap; gap: .1rem .8rem; }
#$name li { font-size: .85rem; margin: 0; }
#$name li span { display: inline-block; width: .7rem; height: .7rem; border-radius: 50%; margin-right: .3rem; }
</style>
<div class="map">
<svg viewBox="0 0 100 100" tabindex="0" role="img"
 aria-label="Map of embeddings. Arrow keys go from image to image; what is chosen is told beside it."></svg>
<ul>$legend</ul>
</div>
<div class="panel">
<div class="pictures"></div>
<p class="words" aria-live="polite">Point at a dot, tap it, or choose the map and use the arrow keys.</p>
<p>Dots are test images, in the colour of their true class; a black ring marks a wrong prediction. Diamonds are
cases: sub-centroids, shown by a training image each. Lines go to the nearest case, dashed to the nearest of another
class.</p>
</div>
<noscript>This map needs JavaScript, and nothing else.</noscript>
<script>
(() => {
  const root = document.getElementById("$name"), svg = root.querySelector("svg"), data = $data;
  const sheets = ["$images", "$cases"];
  const make = (what, into, attributes) => {
    const node = document.createElementNS("http://www.w3.org/2000/svg", what);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    return into.appendChild(node);
  };
  const dots = data.dots.map(([x, y, label, first], i) => {
    const wrong = data.cases[first][2] !== label;
    const dot = make("circle", svg, {cx: x, cy: y, r: 1, fill: data.colours[label], class: wrong ? "wrong" : ""});
    for (const event of ["pointerenter", "click"]) dot.addEventListener(event, () => show(i));
    return dot;
  });
  const lines = ["link second", "link"].map(name => make("line", svg, {class: name, visibility: "hidden"}));
  for (const [x, y, c] of data.cases)
    make("path", svg, {d: `M$${x} $${y - 1.6}L$${x + 1.6} $${y}L$${x} $${y + 1.6}L$${x - 1.6} $${y}Z`,
                       stroke: data.colours[c]});
  const picture = (sheet, i, words) => {
    const figure = document.createElement("figure"), image = figure.appendChild(document.createElement("div"));
    const [row, column] = [Math.floor(i / data.columns), i % data.columns], rows = data.rows[sheet];
    image.className = "picture";
    image.style.backgroundImage = `url($${sheets[sheet]})`;
    image.style.backgroundSize = `$${100 * data.columns}% $${100 * rows}%`;
    const along = (place, of) => of > 1 ? 100 * place / (of - 1) : 0;
    image.style.backgroundPosition = `$${along(column, data.columns)}% $${along(row, rows)}%`;
    figure.appendChild(document.createElement("figcaption")).textContent = words;
    return figure;
  };
  let chosen = -1;
  const show = i => {
    if (chosen >= 0) dots[chosen].classList.remove("chosen");
    dots[chosen = i].classList.add("chosen");
    const [x, y, label, first, near, second, next] = data.dots[i];
    [[lines[1], first], [lines[0], second]].forEach(([line, k]) => {
      for (const [key, value] of Object.entries({x1: x, y1: y, x2: data.cases[k][0], y2: data.cases[k][1]}))
        line.setAttribute(key, value);
      line.setAttribute("visibility", "visible");
    });
    const name = k => data.classes[data.cases[k][2]], truth = data.classes[label];
    root.querySelector(".pictures").replaceChildren(
      picture(0, i, `test image: $${truth}`),
      picture(1, first, `nearest case: $${name(first)}, similarity $${near.toFixed(3)}`),
      picture(1, second, `nearest of another class: $${name(second)}, $${next.toFixed(3)}`));
    root.querySelector(".words").textContent =
      `Nearer to a case of $${name(first)} than to any other, so $${name(first)}: ` +
      (name(first) === truth ? "right." : `wrong, it is $${truth}.`);
  };
  svg.addEventListener("keydown", event => {
    const step = {ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1}[event.key];
    if (!step) return;
    event.preventDefault();
    show((chosen + step + dots.length) % dots.length);
  });
})();
</script>
</div>
""")
