"""The page of the viewer: that of Neuroglancer, and a script that loses no key.

A key reaches Neuroglancer only while one of its elements has the focus. After every new state, such as that of the next
object of a review, it draws its panels anew, and the focus is nowhere until they are there.
"""

from __future__ import annotations

from neuroglancer.static import get_default_static_content_source

KEY_SCRIPT = """<script>
document.addEventListener("keydown", (event) => {
  const hasFocus = event.target !== document.body && event.target !== document.documentElement;
  if (!event.isTrusted || hasFocus || window.viewer === undefined) return;
  const panel = document.querySelector(".neuroglancer-rendered-data-panel") || window.viewer.element;
  const { key, code, shiftKey, ctrlKey, altKey, metaKey, repeat } = event;
  const copy = { key, code, shiftKey, ctrlKey, altKey, metaKey, repeat, bubbles: true, cancelable: true };
  if (!panel.dispatchEvent(new KeyboardEvent("keydown", copy))) event.preventDefault();
});
</script>"""


def viewer_page() -> bytes:
    """Return the HTML of the page."""
    content, _ = get_default_static_content_source().get("index.html", "")
    page: bytes = content
    assert b"<head>" in page
    return page.replace(b"<head>", b"<head>" + KEY_SCRIPT.encode(), 1)
