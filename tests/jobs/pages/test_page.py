"""The comparison page: complete in one file, hostile names harmless, and every image described."""

from __future__ import annotations

import base64
import hashlib
import re
from html.parser import HTMLParser

from discernible.jobs.pages.page import Comparison, PageTable, Picture, render_page

HOSTILE = "<script>alert(1)</script>\"'&\x00\udcff--></style></script>"
VOID = {"meta", "img", "input", "br", "link"}


class Page(HTMLParser):
    """Checks nesting and collects tags with their attributes."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: dict[str, list[str]] = {}
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open:
            self.text.setdefault(self._open[-1], []).append(data)

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def picture(label: str) -> Picture:
    return Picture(label=label, mime="image/png", data=b"\x89PNG", facts=("1 kB", "0.5 bpp"))


def page(name: str = "a", pictures: int = 2) -> str:
    comparison = Comparison(
        name=name, note=name, width=4, height=3, pictures=tuple(picture(f"{name}{i}") for i in range(pictures))
    )
    table = PageTable(caption=name, head=("x", name), rows=((name, "1"),), foot=("All", "1"), notes=(name,))
    return render_page(
        title=name, lead=name, comparisons=[comparison, comparison], figures=[(name, name)], table=table, footer=name
    ).decode("utf-8")


def test_hostile_names_stay_text() -> None:
    text = page(HOSTILE)
    parsed = Page(text)
    assert len(parsed.named("script")) == 1
    assert len(parsed.named("style")) == 1
    assert not [key for _, attributes in parsed.tags for key in attributes if key.startswith("on")]
    shown = "".join(parsed.text["bdi"])
    assert "<script>alert(1)</script>" in shown


def test_nothing_is_loaded_from_elsewhere_and_only_its_own_script_runs() -> None:
    text = page(pictures=4)
    parsed = Page(text)
    for _, attributes in parsed.tags:
        for key in ("src", "href", "action", "srcset"):
            value = attributes.get(key)
            assert value is None or value.startswith(("data:", "#"))
    assert not re.search(r"https?://|@import|url\(", text)
    (policy,) = [m["content"] for m in parsed.named("meta") if m.get("http-equiv") == "Content-Security-Policy"]
    assert policy is not None
    assert policy.startswith("default-src 'none'")
    assert "unsafe" not in policy
    for tag in ("script", "style"):
        content = re.search(f"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        assert content is not None
        digest = base64.b64encode(hashlib.sha256(content[1].encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
    # The policy forbids style attributes; one would silently do nothing.
    assert not [attributes for _, attributes in parsed.tags if "style" in attributes]


def test_images_controls_and_tables_are_described() -> None:
    parsed = Page(page("cat", pictures=4))
    ids = [attributes["id"] for _, attributes in parsed.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    for image in parsed.named("img"):
        assert image["alt"]
        assert image["aria-describedby"] in ids
        assert (image["width"], image["height"]) == ("4", "3")
    assert len(parsed.named("select")) == 4
    assert all(control["aria-label"] for control in parsed.named("input"))
    assert {heading.get("scope") for heading in parsed.named("th")} == {"col", "row"}
    (document,) = parsed.named("html")
    assert document["lang"] == "en"


def test_a_single_picture_has_nothing_to_compare_with() -> None:
    parsed = Page(page(pictures=1))
    assert parsed.named("input") == []
    assert parsed.named("select") == []
    assert len(parsed.named("img")) == 2
