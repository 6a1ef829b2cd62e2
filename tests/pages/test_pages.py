"""Every built page in a headless Chromium with the network off.

The pages are those of the last `make html` or `make book`; `make test` builds them first. Where there is no browser
these tests are skipped, and say so.
"""

import re
import sys
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from browser import Browser, find_browser

HTML = Path(__file__).resolve().parents[2] / "_build" / "html"
PHONE, DESK = (390, 844), (1280, 900)
FILES = sorted(path for path in HTML.rglob("*.html") if "_static" not in path.parts)
#: index.html only sends the reader to the first page.
PAGES = [path for path in FILES if "http-equiv" not in path.read_text(encoding="utf8")[:400]]

if not PAGES:
    pytest.skip("no pages yet: run `make html` first", allow_module_level=True)
if sys.platform == "win32":
    pytest.skip("the browser is spoken to through a POSIX pipe", allow_module_level=True)
if not find_browser():
    pytest.skip("no Chromium here (install chromium, or set CHROMIUM to its path)", allow_module_level=True)

#: Wait until everything has come, then say what the page holds.
LOOK = r"""
if (window.MathJax && MathJax.startup) await MathJax.startup.promise;
await document.fonts.ready;
const images = [...document.images];
for (const image of images) image.loading = "eager";
await Promise.all(images.map(image => image.decode().catch(() => null)));
const article = document.querySelector("article") || document.body;
const prose = article.cloneNode(true);
for (const part of prose.querySelectorAll("pre, code, script, style, mjx-container, .cell_output")) part.remove();
return {
  brokenImages: images.filter(image => !image.naturalWidth).map(image => image.src),
  noAltText: images.filter(image => !image.hasAttribute("alt")).map(image => image.src),
  rawMath: [...document.querySelectorAll(".math")].filter(part => !part.querySelector("mjx-container"))
    .map(part => part.textContent.slice(0, 80)),
  wrongMath: [...document.querySelectorAll("mjx-merror, [data-mjx-error]")]
    .map(part => part.textContent.slice(0, 80)),
  prose: prose.textContent,
  links: [...document.querySelectorAll("a[href]")].map(link => link.href),
  ids: [...document.querySelectorAll("[id]")].map(part => part.id),
};
"""

#: The theme, once it has followed the preference.
THEME = "await new Promise(done => setTimeout(done, 300)); return document.documentElement.dataset.theme"

#: Elements that stick out of the window although nothing around them scrolls.
OVERFLOW = r"""
if (window.MathJax && MathJax.startup) await MathJax.startup.promise;
await document.fonts.ready;
const width = document.documentElement.clientWidth;
const scrolls = part => { for (let up = part.parentElement; up && up !== document.body; up = up.parentElement)
  if (getComputedStyle(up).overflowX !== "visible") return true; return false; };
const wide = [...document.querySelectorAll("article *")].filter(part =>
  part.getBoundingClientRect().right > width + 1 && part.getBoundingClientRect().width > 0 && !scrolls(part));
return {width, page: document.documentElement.scrollWidth,
  wide: wide.slice(0, 5).map(part => `${part.tagName} ${part.className} ${part.textContent.slice(0, 40)}`)};
"""

#: The lowest contrast (WCAG) between text and what is behind it, for the kinds of text a chapter has.
CONTRAST = r"""
const canvas = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
const rgba = colour => { canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
  return canvas.getImageData(0, 0, 1, 1).data; };
const light = data => [0, 1, 2].map(i => data[i] / 255)
  .map(v => v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
  .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
const ground = part => { for (let up = part; up; up = up.parentElement) {
  const data = rgba(getComputedStyle(up).backgroundColor); if (data[3] > 250) return data; }
  return rgba("white"); };
const poor = [];
for (const part of document.querySelectorAll("article p, article a, article code, article pre span, article li, "
    + "article td, article th, article dt, article h1, article h2, .bd-sidebar-primary a")) {
  if (!part.textContent.trim() || !part.getClientRects().length || part.matches(".headerlink")) continue;
  const [a, b] = [light(rgba(getComputedStyle(part).color)), light(ground(part))];
  const ratio = (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
  const words = part.textContent.trim().slice(0, 30);
  if (ratio < 4.5) poor.push(`${part.tagName} ${part.className}: ${words} ${ratio.toFixed(1)}`);
}
return [...new Set(poor)].slice(0, 8);
"""


def name(path: Path) -> str:
    """A page's path below the pages' folder."""
    return path.relative_to(HTML).as_posix()


@pytest.fixture(scope="module")
def browser():
    browser = Browser(find_browser())
    yield browser
    browser.close()


@pytest.fixture(scope="module")
def seen(browser):
    """What each page holds and looks like, by its path. A page is opened once, then seen in each size and light."""
    found = {}
    for path in PAGES:
        browser.resize(*DESK)
        browser.open(path.as_uri())
        page = found[path] = browser.run(LOOK)
        for scheme in ("light", "dark"):
            browser.resize(*DESK, dark=scheme == "dark")
            page[scheme] = {"theme": browser.run(THEME), "poor": browser.run(CONTRAST)}
        browser.resize(*PHONE)
        page["phone"] = browser.run(OVERFLOW)
        page.update(requests=browser.requests(), complaints=browser.complaints())
    return found


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_page_is_whole(seen, page):
    look = seen[page]
    assert not look["complaints"], f"errors in the console: {look['complaints']}"
    foreign = [url for url in look["requests"] if not url.startswith(("file:", "data:", "blob:", "about:"))]
    assert not foreign, f"asks the network for {foreign}"
    for kind in ("brokenImages", "noAltText", "rawMath", "wrongMath"):
        assert not look[kind], f"{kind}: {look[kind]}"
    left = re.findall(r"\$[^$\n]{1,60}\$|\\\(|\\\[|\{[a-z:]+\}`[^`]*`", look["prose"])
    assert not left, f"markup left as it was written: {left}"


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(seen, page):
    broken = []
    for link in sorted(set(seen[page]["links"])):
        parts = urlsplit(link)
        if parts.scheme != "file":
            assert parts.scheme in ("https", "http", "mailto", "javascript"), f"strange link {link}"
            continue
        target = Path(unquote(parts.path))
        anchor = unquote(parts.fragment)
        known = seen.get(target)
        if not target.is_file() or (anchor and known is not None and anchor not in known["ids"]):
            broken.append(link)
    assert not broken


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_page_fits_a_phone(seen, page):
    phone = seen[page]["phone"]
    assert phone["page"] <= PHONE[0], f"{phone['page']} pixels wide on a phone of {PHONE[0]}: {phone['wide']}"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("page", PAGES, ids=name)
def test_text_stands_out(seen, page, scheme):
    assert seen[page][scheme]["theme"] == scheme, "the page does not follow the reader's preference"
    assert not seen[page][scheme]["poor"], "contrast below 4.5"


def test_first_page_is_found(browser):
    browser.open((HTML / "index.html").as_uri())
    browser.open((HTML / re.search(r'url=([^"]+)"', (HTML / "index.html").read_text())[1]).as_uri())
    assert browser.run("return document.querySelector('h1') !== null")


def test_search_finds(browser):
    browser.resize(*DESK)
    browser.open((HTML / "search.html").as_uri() + "?q=centroid")
    found = browser.run(
        """let hits = [], before = -1;
        for (let i = 0; i < 50 && (!hits.length || hits.length > before); i++) {
          before = hits.length;
          await new Promise(done => setTimeout(done, 400));
          hits = [...document.querySelectorAll("#search-results li a")].map(hit => hit.textContent); }
        return hits;"""
    )
    assert len(found) >= 3, f"searching for 'centroid' finds {found}"
    assert not browser.complaints()


@pytest.mark.parametrize("size", [DESK, PHONE], ids=["desk", "phone"])
def test_the_map_of_embeddings_answers_without_a_kernel(browser, size):
    """Pointing at a dot, a tap and the arrow keys each show its image and the two nearest cases, in words too."""
    path = HTML / "book" / "explorer.html"
    images = re.findall(r'src="\.\./(_images/[^"]+)"', path.read_text(encoding="utf8"))
    assert images
    whole = path.stat().st_size + sum((HTML / image).stat().st_size for image in images)
    assert whole < 3_000_000, "the page is to weigh less than 3 MB"
    browser.resize(*size)
    browser.open(path.as_uri())
    found = browser.run(
        """const root = document.querySelector(".dnc-explorer"), dots = [...root.querySelectorAll("circle")];
        const look = () => ({
          pictures: [...root.querySelectorAll(".picture")].map(part => part.style.backgroundPosition),
          words: root.querySelector(".words").textContent,
          captions: [...root.querySelectorAll("figcaption")].map(part => part.textContent),
          lines: [...root.querySelectorAll("line")].map(line => line.getAttribute("visibility")),
          chosen: dots.findIndex(dot => dot.classList.contains("chosen"))});
        const told = [look()];
        dots[7].dispatchEvent(new PointerEvent("pointerenter")); told.push(look());
        dots[200].dispatchEvent(new MouseEvent("click")); told.push(look());
        root.querySelector("svg").dispatchEvent(new KeyboardEvent("keydown", {key: "ArrowLeft"})); told.push(look());
        const sheets = [...root.querySelectorAll(".picture")].map(part => getComputedStyle(part).backgroundImage);
        await Promise.all(sheets.map(sheet => { const image = new Image();
          image.src = sheet.slice(5, -2); return image.decode(); }));
        return {told, count: dots.length, wrong: dots.filter(dot => dot.classList.contains("wrong")).length};"""
    )
    before, pointed, tapped, stepped = found["told"]
    assert before["chosen"] == -1
    assert not before["pictures"]
    assert [each["chosen"] for each in (pointed, tapped, stepped)] == [7, 200, 199]
    for each in (pointed, tapped, stepped):
        assert len(each["pictures"]) == 3
        assert each["lines"] == ["visible", "visible"]
        test, first, second = each["captions"]
        truth, near, other = test.split(": ")[1], first.split(": ")[1], second.split(": ")[1]
        assert near.split(",")[0] != other.split(",")[0]
        assert float(near.split()[-1]) > float(other.split()[-1])
        assert each["words"].endswith("right." if near.split(",")[0] == truth else f"wrong, it is {truth}.")
    assert 0 < found["wrong"] < found["count"] == 300
    assert not browser.complaints()


def test_no_address_but_links():
    """No page names a script, style, font or image elsewhere, whether or not the browser would fetch it."""
    pattern = re.compile(r"""<(?:script|link|img|iframe|source)\b[^>]*\b(?:src|href)=["'](?:https?:)?//[^"']+""")
    found = {name(path): pattern.findall(path.read_text(encoding="utf8")) for path in FILES}
    assert not {page: hits for page, hits in found.items() if hits}
