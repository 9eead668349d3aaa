"""MkDocs hook: pages and results outside ``docs/`` become part of the site, other links into the repository plain text.

On a checkout every link of a page leads somewhere; on the site only what is published exists.
"""

from __future__ import annotations

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent
PUBLISHED = ("CONTRIBUTING.md", "CHANGELOG.md", "export/README.md", "benchmarks/results/*")
LINK = re.compile(r"(!?)\[([^\]]*)\]\((?!\w+:|#)([^)#\s]+)(#[^)]*)?\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add what lies outside ``docs/``."""
    for pattern in PUBLISHED:
        for path in sorted(ROOT.glob(pattern)):
            name = path.relative_to(ROOT).as_posix()
            files.append(File.generated(config, name, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Point links at the site; keep the words of those that lead out of it."""
    here = ROOT / page.file.src_uri if page.file.generated_by else Path(config.docs_dir) / page.file.src_uri
    depth = "../" * page.file.src_uri.count("/")

    def linked(match: re.Match[str]) -> str:
        mark, text, target, anchor = match.groups()
        path = (here.parent / target).resolve()
        for root in (Path(config.docs_dir), ROOT):
            if path.is_relative_to(root) and files.get_file_from_path(name := path.relative_to(root).as_posix()):
                return f"{mark}[{text}]({depth}{name}{anchor or ''})"
        return text if path.exists() else match[0]  # what is not there at all is for the strict build to find

    return LINK.sub(linked, markdown)
