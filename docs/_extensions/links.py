"""Whether every link of a built site that leads within it leads somewhere: to a file, and to a place in it."""

import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit


class Page(HTMLParser):
    """What a page links to, and the places in it that can be linked to."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.places: set[str] = {"", "top"}
        self.feed(file.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("href", "src"):
                self.links.append(value or "")
            elif name == "id" or (tag == "a" and name == "name"):
                self.places.add(value or "")


def broken(site: Path) -> list[str]:
    """The links that lead nowhere, each with its page."""
    site = site.resolve()
    pages = {file: Page(file) for file in site.rglob("*.html") if "_static" not in file.parts}  # there are templates
    found = []
    for file, page in pages.items():
        for link in page.links:
            url = urlsplit(link)
            if url.scheme or url.netloc:
                continue
            target = (file.parent / unquote(url.path)).resolve() if url.path else file
            target = target / "index.html" if target.is_dir() else target
            is_place = target not in pages or unquote(url.fragment) in pages[target].places
            if not (target.is_relative_to(site) and target.is_file() and is_place):
                found.append(f"{file.relative_to(site)}: {link}")
    return found


def main() -> None:
    [_, site] = sys.argv
    found = broken(Path(site))
    print(*found, sep="\n", end="\n" * bool(found))
    sys.exit(f"{len(found)} links lead nowhere." if found else None)


if __name__ == "__main__":
    main()
