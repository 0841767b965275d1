"""A headless browser, if there is one on this machine: what it makes of a page, measured at several widths."""

import functools
import json
import re
import shutil
import subprocess
from html import unescape

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
MEASURE = """<!DOCTYPE html><meta charset="utf-8"><body><pre id="found"></pre><script>
const found = {};
async function measure(width) {
  const frame = document.createElement("iframe");
  frame.style = `border: 0; width: ${width}px; height: 800px`;
  frame.src = "PAGE";
  document.body.append(frame);
  await new Promise(done => frame.onload = done);
  const page = frame.contentDocument, root = page.documentElement, style = frame.contentWindow.getComputedStyle;
  const texts = page.querySelectorAll("figure svg text");
  found[width] = {
    overflow: root.scrollWidth - root.clientWidth,
    cut: [...page.querySelectorAll("p, dd, h1, h2, h3, li")].filter(e => e.scrollWidth > e.clientWidth + 1).length,
    requests: frame.contentWindow.performance.getEntriesByType("resource").map(entry => entry.name),
    sections: [...page.querySelectorAll("h2")].map(e => e.textContent),
    figures: [...page.querySelectorAll("figure svg")].map(
      e => [e.getAttribute("role"), page.getElementById(e.getAttribute("aria-labelledby"))?.textContent]),
    unlabelled: page.querySelectorAll("img:not([alt])").length,
    ids: [...page.querySelectorAll("[id]")].map(e => e.id),
    scripts: page.scripts.length,
    text: style(page.body).color,
    background: style(page.body).backgroundColor,
    drawn: [...new Set([...texts].map(e => style(e).fill))],
    smallest: Math.min(...[...texts].map(e => e.getBoundingClientRect().height)),
  };
}
Promise.all(WIDTHS.map(measure)).then(() => document.getElementById("found").textContent = JSON.stringify(found));
</script></body>"""


@functools.cache
def find():
    """Return the browser's path, or None."""
    return next(filter(None, map(shutil.which, NAMES)), None)


def look(page, folder, *, widths=(360, 1280), is_dark=False):
    """Return what is found at each width, and what the browser's console says."""
    measure = folder / "measure.html"
    measure.write_text(MEASURE.replace("PAGE", page.as_uri()).replace("WIDTHS", str(list(widths))), encoding="utf-8")
    done = subprocess.run(
        [
            find(),
            "--headless",
            "--no-sandbox",  # it may run as root, and looks at nothing but our page
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--allow-file-access-from-files",  # the page that measures, and the page
            f"--user-data-dir={folder / 'profile'}",
            "--enable-logging=stderr",
            f"--blink-settings=preferredColorScheme={0 if is_dark else 1}",
            "--virtual-time-budget=10000",
            "--dump-dom",
            measure.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    found = re.search(r'<pre id="found">(.+?)</pre>', done.stdout)
    assert found, done.stderr
    return {int(width): facts for width, facts in json.loads(unescape(found[1])).items()}, console
