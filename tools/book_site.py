"""Sphinx extension of the book: what `_config.yml` cannot say.

* Launch buttons appear only once the repository's address is set; the theme stops with an error otherwise.
* No page names an address that it does not need: sphinx-thebe adds one to every page, used or not.
* Of MathJax only what the pages load is kept (the package also carries speech rules and a second output format).
* In docstrings a shape stays a shape: "(N, C)" is not the name of a class to look up.
"""

import re
import shutil
from pathlib import Path

THEME_OPTIONS = {
    "navbar_persistent": [],  # search stands in the sidebar; without this a second bar opens on top
    "use_fullscreen_button": False,
    "search_bar_text": "Search this book",
    "show_toc_level": 2,
    "logo": {"text": "Deep Nearest Centroids", "alt_text": ""},
}
UNUSED_MATHJAX = ("sre", "a11y", "output/svg", "output/svg.js", "adaptors", "ui")


def set_theme_options(app, config) -> None:
    """Complete the theme's options, and drop the launch buttons while the repository has no address."""
    options = config.html_theme_options
    options.update(THEME_OPTIONS)
    if not options.get("repository_url"):
        options.pop("launch_buttons", None)
        options.pop("repository_url", None)


def drop_unused_scripts(app, pagename, templatename, context, doctree) -> None:
    """Take sphinx-thebe's scripts out of a page."""
    if "script_files" in context:
        context["script_files"] = [
            script
            for script in context["script_files"]
            if "thebe" not in str(getattr(script, "filename", script)).lower()
            and "thebe" not in str((getattr(script, "attributes", None) or {}).get("body", "")).lower()
        ]


def prune_mathjax(app, error) -> None:
    """Remove the parts of MathJax that no page loads: 24 MB become 3."""
    root = Path(app.outdir, "_static", "mathjax")
    for name in UNUSED_MATHJAX:
        path = root / name
        if path.is_dir():
            shutil.rmtree(path)
        elif path.is_file():
            path.unlink()
    for bundle in root.glob("*.js"):
        if bundle.name != "tex-chtml.js":
            bundle.unlink()


def keep_remarks(app, what, name, obj, options, lines) -> None:
    """Put a variable's `#:` remark aside before napoleon takes its words up to a colon for a type."""
    if what in ("data", "attribute", "property"):
        app.env.temp_data["book_site_remark"] = list(lines)


def restore_remarks(app, what, name, obj, options, lines) -> None:
    """Undo what napoleon made of a remark, and print shapes and letters as they stand."""
    if what in ("data", "attribute", "property"):
        lines[:] = app.env.temp_data.pop("book_site_remark", lines)
    for index, line in enumerate(lines):
        field = re.fullmatch(r"(\s*:(?:rtype|type [^:]+|vartype [^:]+):) ([^`]+)", line)
        if field:
            lines[index] = f"{field[1]} ``{field[2]}``"
        letter = re.fullmatch(r"(\s*:\w[^:]*:) ([A-Z])\.", line)
        if letter:  # "C." alone would open a list counted by letters
            lines[index] = f"{letter[1]} {letter[2]}\\."


def skip_inherited_machinery(app, what, name, obj, skip, options) -> bool | None:
    """Leave out the methods that scikit-learn writes into every estimator."""
    return True if re.fullmatch(r"set_\w+_request", name) else None


def setup(app) -> dict:
    app.connect("config-inited", set_theme_options, priority=10)
    app.connect("html-page-context", drop_unused_scripts, priority=900)
    app.connect("build-finished", prune_mathjax, priority=900)
    app.connect("autodoc-process-docstring", keep_remarks, priority=400)
    app.connect("autodoc-process-docstring", restore_remarks, priority=600)
    app.connect("autodoc-skip-member", skip_inherited_machinery)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
