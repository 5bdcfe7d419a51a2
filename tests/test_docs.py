"""What the docs name exists: every dotted name imports, every link leads somewhere."""

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    page.relative_to(ROOT).as_posix()
    for page in (*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"))
)
WALKS = ["docs/walk_of_a_prompt.md", "docs/walk_of_a_sample.md"]

DOTTED_NAME = re.compile(r"`(rectiflow(?:\.\w+)+)`")
LINK = re.compile(r"\]\(([^)\s]+)\)")


def resolve(name: str) -> object:
    """The module or attribute that a dotted name means."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        module_name = ".".join(parts[:length])
        try:
            found: object = importlib.import_module(module_name)
        except ModuleNotFoundError as error:
            if error.name is None or not module_name.startswith(error.name):
                raise
            continue
        for attribute in parts[length:]:
            found = getattr(found, attribute)
        return found
    raise AssertionError(f"{name} cannot be imported")


@pytest.mark.parametrize("page", PAGES)
def test_names_exist(page: str) -> None:
    for name in DOTTED_NAME.findall((ROOT / page).read_text(encoding="utf-8")):
        resolve(name)


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    path = ROOT / page
    for link in LINK.findall(path.read_text(encoding="utf-8")):
        if not link.startswith(("https://", "#")):
            target = (path.parent / link.partition("#")[0]).resolve()
            assert target.exists(), f"{page} links to {link}"
            assert target.is_relative_to(ROOT), f"{page} links out of the repository: {link}"


@pytest.mark.parametrize("page", WALKS)
def test_each_stop_has_a_name_and_a_result(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    stops = re.split(r"^\*\*(?=\d+\. )", text, flags=re.MULTILINE)[1:]
    assert [int(stop.split(".")[0]) for stop in stops] == list(range(1, len(stops) + 1))
    for stop in stops:
        assert DOTTED_NAME.search(stop), f"{page}: a stop without a name: {stop[:40]}"
    for stop in stops[:-1]:
        assert "\n→ " in stop, f"{page}: a stop without a result: {stop[:40]}"


@pytest.mark.parametrize("page", WALKS)
def test_a_linked_name_lies_in_the_linked_file(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    linked = re.findall(r"\[`(rectiflow(?:\.\w+)+)`\]\(\.\./([\w/.]+)\)", text)
    assert linked
    for name, file in linked:
        found = resolve(name)
        module = getattr(found, "__module__", None) or getattr(found, "__name__", "")
        assert file in (f"{module.replace('.', '/')}.py", f"{module.replace('.', '/')}/__init__.py")


def test_each_walk_has_the_nine_stops_that_the_readme_promises() -> None:
    assert "Nine stops each" in (ROOT / "README.md").read_text(encoding="utf-8")
    for page in WALKS:
        text = (ROOT / page).read_text(encoding="utf-8")
        assert len(re.findall(r"^\*\*\d+\. ", text, flags=re.MULTILINE)) == 9


def test_the_readmes_figures_are_those_measured() -> None:
    command = [sys.executable, ROOT / "docs" / "readme" / "table.py", "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_name_that_does_not_exist_is_noticed() -> None:
    with pytest.raises(AttributeError, match="not_there"):
        resolve("rectiflow.base.seeds.not_there")
    with pytest.raises(AttributeError, match="nowhere"):
        resolve("rectiflow.nowhere.at_all")
