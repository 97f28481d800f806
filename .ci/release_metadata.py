"""What the metadata of a release says about addresses: the project's own, and the README's with absolute links."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

# A link or an image whose target is neither an address nor an anchor of the README itself.
_RELATIVE = re.compile(r"(!?)(\[[^\]]*\])\((?!https?://|#)([^)\s]+)\)")


class ReleaseMetadata(MetadataHookInterface):
    """Makes `readme` and `urls` from README.md and the repository's address."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Fill in what pyproject.toml calls dynamic."""
        repository = self.config["repository"]
        tag = f"v{metadata['version']}"
        metadata["urls"] = {
            "Homepage": repository,
            "Documentation": f"{repository}/tree/{tag}/docs",
            "Issues": f"{repository}/issues",
            "Changelog": f"{repository}/blob/{tag}/CHANGELOG.md",
        }

        def absolute(link: re.Match[str]) -> str:
            is_image, text, target = link.groups()
            return f"{is_image}{text}({repository}/{'raw' if is_image else 'blob'}/{tag}/{target})"

        readme = Path(self.root, "README.md").read_text(encoding="utf-8")
        metadata["readme"] = {"content-type": "text/markdown", "text": _RELATIVE.sub(absolute, readme)}
