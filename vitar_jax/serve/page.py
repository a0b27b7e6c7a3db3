"""The page at `/`, whose files are part of the package: it asks this server, and nothing else."""

from importlib.resources import files

from vitar_jax.evaluation.report import report_asset

# A browser loads these files from this server, and sends nothing to another one.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}
INDEX = "index.html"
_TYPES = {"html": "text/html", "css": "text/css", "js": "text/javascript"}  # a system's own table may have others
_SHARED = ("report.css", "dom.js", "masks.js", "pictures.js", "tokens.js", "episode.js")  # with reports
_OWN = (INDEX, "page.css", "images.js", "stream.js", "play.js", "page.js")


def page_files() -> dict[str, tuple[bytes, str]]:
    """Returns content and media type of each file of the page, by name."""
    own = files("vitar_jax.serve") / "page_assets"
    contents = {name: (own / name).read_bytes() for name in _OWN} | {name: report_asset(name) for name in _SHARED}
    return {name: (content, _TYPES[name.rpartition(".")[2]]) for name, content in contents.items()}
