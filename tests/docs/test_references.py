"""Files, pages and links that documents name exist, and every setting has a meaning."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = [*ROOT.glob("*.md"), *sorted((ROOT / "docs").rglob("*.md"))]
FOLDERS = "benchmarks|configs|deploy|docs|examples|native|src|tests"
PATH = re.compile(rf"`((?:{FOLDERS})/[\w./-]*)`")
CODE = re.compile(r"docs/[\w/-]+\.md")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_paths_that_a_page_names_exist(page):
    paths = PATH.findall(page.read_text(encoding="utf-8"))

    missing = [path for path in paths if "NAME" not in path and not (ROOT / path).exists()]

    assert missing == []


def test_pages_that_the_code_names_exist():
    missing = {
        f"{path.relative_to(ROOT)}: {page}"
        for folder in ("src", "native", "tests", "benchmarks", "examples", "deploy", "configs")
        for path in (ROOT / folder).rglob("*")
        if path.suffix in (".py", ".h", ".cpp", ".toml", ".yaml", ".js")
        for page in CODE.findall(path.read_text(encoding="utf-8"))
        if not (ROOT / page).exists()
    }

    assert missing == set()


def test_links_of_the_pages_outside_the_site_exist():
    for page in ROOT.glob("*.md"):
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
            assert (ROOT / target).exists(), f"{page.name}: {target}"


def test_every_configuration_key_has_a_meaning(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "docs")  # of a hook, mkdocs does the same
    generate = runpy.run_path(str(ROOT / "docs" / "generate.py"))
    sections = {**generate["SECTIONS"], "server": generate["ServerSettings"]}

    without = [
        f"{section}.{name}"
        for section, cls in sections.items()
        for name, _, meaning in generate["fields_of"](cls)
        if not meaning
    ]

    assert without == []
