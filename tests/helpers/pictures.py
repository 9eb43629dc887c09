"""Make the pictures of docs/ (``make pictures``): two figures of a sweep, and the first screen of its report."""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import sync_playwright

DOCS = Path(__file__).resolve().parents[2] / "docs"
WORDS = ("block_size=16,32,64", "scale_bits=6,8", "kv_quant=none,fp4_e2m1", "diagnostics=true")
FIGURES = ("accuracy_vs_block_size.png", "perplexity_vs_block_size.png")
SCREEN = {"width": 1280, "height": 800}


def main() -> None:
    """Write the three pictures into docs/."""
    with tempfile.TemporaryDirectory(prefix="mxsweep-pictures-") as folder:
        sweep = Path(folder) / "sweep"
        command = [sys.executable, "-m", "mxsweep", "-m", *WORDS, f"hydra.sweep.dir={sweep}"]
        subprocess.run(command, cwd=folder, check=True)
        for figure in FIGURES:
            shutil.copyfile(sweep / figure, DOCS / figure)
        with sync_playwright() as playwright:
            chromium = shutil.which("chromium") or shutil.which("google-chrome")
            browser = playwright.chromium.launch(executable_path=chromium, args=["--headless", "--no-sandbox"])
            page = browser.new_page(viewport=SCREEN)
            page.goto((sweep / "report.html").as_uri())
            page.wait_for_selector("html[data-drawn]")
            page.screenshot(path=DOCS / "report_first_screen.png")
            browser.close()


if __name__ == "__main__":
    main()
