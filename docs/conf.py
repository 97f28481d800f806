"""How Sphinx builds the site: `make docs`. The pages are Markdown that GitHub shows as well."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from docutils import nodes

import loopaware_pool

if TYPE_CHECKING:
    from docutils.nodes import Element, TextElement
    from sphinx.addnodes import pending_xref
    from sphinx.application import Sphinx
    from sphinx.environment import BuildEnvironment

DOCS: Final = Path(__file__).parent
ROOT: Final = DOCS.parent
# Pages of the site that are files of the project's root.
FROM_ROOT: Final = {"security": "SECURITY.md", "changelog": "CHANGELOG.md", "features": "README.md"}
# The parts of the README that are a page.
README_PARTS: Final = ("What you get", "What it does not do", "Supported versions")

project = "loopaware-pool"
author = "the loopaware-pool authors"
copyright = f"2026, {author}"  # noqa: A001 - the name that Sphinx reads
version = release = loopaware_pool.__version__
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "sphinx_design",
]
exclude_patterns = ["examples/**"]
default_role = "code"

myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 4

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_preserve_defaults = True
autodoc_default_options = {"members": True}
autoclass_content = "both"
napoleon_numpy_docstring = False
napoleon_use_ivar = True
add_module_names = False
python_display_short_literal_types = True
python_maximum_signature_line_length = 100
toc_object_entries_show_parents = "hide"

# No other project's index is read, so that the site can be built without a network. Ours must be complete.
nitpick_ignore_regex = [
    ("py:.*", r"(?!loopaware_pool).*"),
]
# Two flavours have errors of the same names; the nearest is taken.
suppress_warnings = ["ref.python"]

html_theme = "furo"
html_title = f"loopaware-pool {version}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sourcelink = False
html_theme_options = {"navigation_with_keys": True}
copybutton_prompt_text = r"\$ |>>> "
copybutton_prompt_is_regexp = True
pygments_style = "default"
pygments_dark_style = "github-dark"


def read_root_page(app: Sphinx, docname: str, source: list[str]) -> None:
    """Put a file of the root in place of its page, and have links to such files lead to their pages."""
    if docname in FROM_ROOT:
        path = ROOT / FROM_ROOT[docname]
        app.env.note_dependency(path)
        text = _readme_parts(path.read_text()) if docname == "features" else path.read_text()
        source[0] = re.sub(r"\]\((?:\./)?docs/", "](", text)
    if docname == "index":  # a pattern that matches no page is a warning, and warnings are errors
        source[0] = re.sub(r"^\S+\*$", lambda line: line[0] * any(DOCS.glob(f"{line[0]}.md")), source[0], flags=re.M)
    up = "../" * docname.count("/")
    for page, file in FROM_ROOT.items():
        source[0] = re.sub(rf"\]\((?:\.\./)*{re.escape(file)}", f"]({up}{page}.md", source[0])


def _readme_parts(text: str) -> str:
    parts = dict(re.findall(r"^## (.*)\n((?:.|\n)*?)(?=^## |\Z)", text, re.MULTILINE))
    return "\n".join(["# Features, limits, versions", *(f"\n## {name}\n{parts[name]}" for name in README_PARTS)])


def find_type(app: Sphinx, env: BuildEnvironment, node: pending_xref, content: TextElement) -> Element | None:
    """
    Link a type that an annotation names without its module, or in a module that is private, if only one public thing
    has that name. A private type is no link, and no broken one.
    """
    if node.get("refdomain") != "py":
        return None
    domain: Any = env.get_domain("py")
    module, _, name = node["reftarget"].rpartition(".")
    found = {
        (entry.docname, entry.node_id)
        for path, entry in domain.objects.items()
        if path.rpartition(".")[2] == name and not entry.aliased and entry.objtype in ("class", "exception")
    }
    if len(found) == 1:
        docname, node_id = found.pop()
        uri = app.builder.get_relative_uri(node.get("refdoc", env.docname), docname)
        return nodes.reference("", "", content, internal=True, refuri=f"{uri}#{node_id}")
    is_private = module.startswith("loopaware_pool.") and (name.startswith("_") or module not in domain.modules)
    return content if is_private or name.endswith("_co") else None


class PlainSentences:
    """Keeps napoleon from reading "Whether it is closed: if ..." as the type and the meaning of a property."""

    def __init__(self) -> None:
        self._kept: dict[str, list[str]] = {}

    def keep(self, *event: Any) -> None:
        """Note the docstring of a property, before napoleon has it."""
        _, what, name, _, _, lines = event
        if what in ("property", "attribute"):
            self._kept[name] = list(lines)

    def restore(self, *event: Any) -> None:
        """Put it back."""
        _, _, name, _, _, lines = event
        lines[:] = self._kept.pop(name, lines)


def with_public_names(*event: Any) -> tuple[str, str] | None:
    """Show a default by the name that users know."""
    signature, returned = event[-2:]
    return (signature.replace("_DEFAULT_CLASS", "LoopAwareConnection"), returned) if signature else None


def setup(app: Sphinx) -> None:
    plain = PlainSentences()
    app.connect("autodoc-process-docstring", plain.keep, priority=400)  # napoleon's is 500
    app.connect("autodoc-process-docstring", plain.restore, priority=600)
    app.connect("autodoc-process-signature", with_public_names)
    app.connect("source-read", read_root_page)
    app.connect("missing-reference", find_type)
