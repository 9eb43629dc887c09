"""report.html in a real browser: it opens from disk, asks nobody for anything, and does what it offers."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.made_report import NASTY, put_failed, put_study
from playwright.sync_api import Browser, Page, expect, sync_playwright

from mxsweep.report.collection import collect

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
ARGUMENTS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
PHONE = {"width": 390, "height": 844}
LINE = "KV unquantized"

pytestmark = [pytest.mark.browser, pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a sweep with everything in it, and with texts that would break out of a page that let them."""
    folder = tmp_path_factory.mktemp("sweep")
    put_study(folder / "a")
    put_study(folder / "b", blocks=(16,), scale_bits=(8,), limit=100, modules={NASTY: "none"})
    put_failed(folder / "bad", NASTY)
    collect(folder)
    return folder / "report.html"


@pytest.fixture
def visit(browser: Browser, report: Path) -> Iterator[Callable[..., Page]]:
    """Opens the report, drawn; afterwards nothing may have gone wrong, or been asked for."""
    problems: list[str] = []
    pages: list[Page] = []

    def visit(path: Path = report, **context: Any) -> Page:
        page = browser.new_context(**context).new_page()
        pages.append(page)
        url = path.as_uri()
        page.on("console", lambda message: problems.append(f"console: {message.type}: {message.text}"))
        page.on("pageerror", lambda error: problems.append(f"error: {error}"))
        page.on(
            "request",
            lambda request: (
                request.url.split("#")[0] == url
                or request.url.startswith(("data:", "blob:"))
                or problems.append(f"asked for {request.url}")
            ),
        )
        page.on("dialog", lambda dialog: problems.append(f"dialog: {dialog.message}"))
        page.goto(url)
        page.wait_for_selector("html[data-drawn]", timeout=60_000)
        return page

    yield visit
    for page in pages:
        page.context.close()
    assert problems == []


def column(page: Page, name: str) -> list[str]:
    """The texts of a column of the first group's table, of the rows that are seen."""
    return page.evaluate(
        """name => {
            const table = document.getElementById("group-1-table");
            const heads = [...table.tHead.rows[0].cells].map(cell => cell.textContent);
            return [...table.querySelectorAll("tbody.run")].filter(run => !run.hidden)
                .map(run => run.rows[0].cells[heads.indexOf(name)].textContent);
        }""",
        name,
    )


def marks(page: Page, figure: str) -> int:
    """How many markers a figure has."""
    return page.locator(f'.plot[data-figure="{figure}"] .mark-symbol > path').count()


def test_every_figure_is_drawn(visit: Callable[..., Page]) -> None:
    page = visit()
    figures = page.locator(".plot").count()
    assert figures == page.locator(".plot svg").count() >= 10
    assert marks(page, "accuracy_vs_block_size_limit-none") == 6
    labels = page.locator('.plot[data-figure="accuracy_vs_block_size_limit-none"] .role-axis-label text')
    assert {"16", "32", "64"} <= set(labels.all_text_contents())
    # No label reaches out of its figure.
    assert (
        page.evaluate(
            """() => [...document.querySelectorAll(".plot svg")].flatMap(svg => {
            const box = svg.getBoundingClientRect();
            return [...svg.querySelectorAll("text")].filter(text => {
                const own = text.getBoundingClientRect();
                return own.width && (own.left < box.left - 1 || own.right > box.right + 1 || own.top < box.top - 1
                    || own.bottom > box.bottom + 1);
            }).map(text => `${svg.closest("figure").id}: ${text.textContent}`);
        })"""
        )
        == []
    )


@pytest.mark.parametrize("size", [{"width": 1280, "height": 800}, PHONE], ids=["desktop", "phone"])
def test_the_line_of_no_change_crosses_no_name(visit: Callable[..., Page], size: dict[str, int]) -> None:
    page = visit(viewport=size)
    lines, crossed = page.evaluate(
        """() => {
            const plot = document.querySelector('.plot[data-figure="cost_limit-none"]');
            const lines = [...plot.querySelectorAll(".mark-rule.role-mark line")]
                .map(each => each.getBoundingClientRect()).filter(box => box.height > box.width);
            const texts = [...plot.querySelectorAll(".mark-text.role-mark text")];
            return [lines.length, texts.filter(text => {
                const own = text.getBoundingClientRect();
                return lines.some(line => line.left < own.right && line.right > own.left
                    && line.top < own.bottom - 2 && line.bottom > own.top + 2);
            }).map(text => text.textContent)];
        }"""
    )
    assert lines == 6 and crossed == []


def test_no_name_of_a_config_is_cut_on_a_phone(visit: Callable[..., Page]) -> None:
    plot = visit(viewport=PHONE).locator('.plot[data-figure="cost_limit-none"]')
    names = plot.locator(".mark-text.role-mark text").filter(has_text="block size")
    right = (plot.bounding_box() or {})["x"] + (plot.bounding_box() or {})["width"]
    assert names.count() == 6
    for name in names.all():
        box = name.bounding_box()
        assert box is not None and box["x"] + box["width"] <= right
        assert re.fullmatch(
            r"(▸ )?block size \d+, *scale bits 6 or 8, *KV (unquantized|fp4_e2m1)", name.text_content() or ""
        )


@pytest.mark.parametrize("size", [{"width": 1280, "height": 800}, PHONE], ids=["desktop", "phone"])
def test_the_first_screen_says_what_to_use(visit: Callable[..., Page], size: dict[str, int]) -> None:
    page = visit(viewport=size)
    expect(page).to_have_title(re.compile("^tiny on story: .*block size.* – mxsweep$"))
    use = page.locator("#group-1-verdict .use")
    expect(use).to_contain_text("bits a weight")
    box = use.bounding_box()
    assert box is not None and box["y"] < 230 and box["y"] + box["height"] <= size["height"]
    tops = page.evaluate(
        """() => ["#group-1-verdict", "nav", "#group-1-knobs", "#group-1-memory", "#environments"]
            .map(each => document.querySelector(each).getBoundingClientRect().top)"""
    )
    assert tops == sorted(tops)


def test_sorting_by_a_column(visit: Callable[..., Page]) -> None:
    page = visit()
    head = page.locator("#group-1-table th", has_text="block size")
    blocks = ["–", *(str(block) for block in (16, 32, 64) for _ in range(4))]
    assert column(page, "block size") == blocks
    page.locator("#group-1-table button.sort", has_text=re.compile("^ppl$")).click()
    values = [float(text.split()[0]) for text in column(page, "ppl")]
    assert values == sorted(values) and len(set(values)) > 3
    head.get_by_role("button").click()
    assert column(page, "block size") == [*blocks[1:], "–"]  # what has no value comes last
    expect(head).to_have_attribute("aria-sort", "ascending")
    head.get_by_role("button").focus()
    page.keyboard.press("Enter")
    assert column(page, "block size") == [*reversed(blocks[1:]), "–"]
    expect(head).to_have_attribute("aria-sort", "descending")
    effects = page.get_by_role("region", name="Table: All pairs of block size").first
    effects.get_by_role("button", name="p, acc").click()
    expect(effects.locator("th", has_text="p, acc")).to_have_attribute("aria-sort", "ascending")


def test_filtering_grouping_and_resetting(visit: Callable[..., Page]) -> None:
    page = visit()
    controls = page.locator('[data-table="group-1-table"]')
    count = controls.get_by_role("status")
    expect(count).to_have_text("13 runs")
    controls.get_by_label(re.compile("^KV")).select_option("fp4_e2m1")
    assert set(column(page, "KV")) == {"fp4_e2m1"}
    expect(count).to_have_text("6 of 13 runs")
    controls.get_by_label("Find").fill("block_size16")
    expect(count).to_have_text("2 of 13 runs")
    controls.get_by_role("button", name="Reset").click()
    expect(count).to_have_text("13 runs")
    controls.get_by_label("Group by").select_option(label="block size")
    groups = page.locator("#group-1-table tbody.group-row")
    assert groups.all_text_contents() == [
        "block size –: 1 run",
        *(f"block size {block}: 4 runs" for block in (16, 32, 64)),
    ]
    page.locator("#group-1-table button.sort", has_text="ppl").first.click()
    by_group = column(page, "block size")
    assert by_group == sorted(by_group, key=lambda text: int(text) if text != "–" else 0)
    assert groups.count() == 4


def test_a_run_opens_to_its_config_and_command(visit: Callable[..., Page]) -> None:
    page = visit()
    run = page.locator("#group-1-run-2")
    detail = run.locator("tr.detail")
    expect(detail).to_be_hidden()
    opener = run.get_by_role("button", name="Run 2: config, command and files")
    opener.focus()
    page.keyboard.press("Enter")
    expect(detail).to_be_visible()
    expect(opener).to_have_attribute("aria-expanded", "true")
    expect(detail).to_contain_text("python -m mxsweep block_size=16")
    expect(detail).to_contain_text("name: w4a6")
    detail.get_by_role("button", name="Copy").click()
    expect(detail.get_by_role("button", name="Copied")).to_be_visible()
    opener.click()
    expect(detail).to_be_hidden()
    use = page.locator("#group-1-verdict .use").get_by_role("link")
    use.click()
    expect(page.locator(f"{use.get_attribute('href')} tr.detail")).to_be_visible()


def test_the_legend_hides_a_line_and_shows_it_again(visit: Callable[..., Page]) -> None:
    page = visit()
    name = "perplexity_vs_block_size_limit-none"
    key = page.locator(f'button.key[data-for="{name}"]', has_text=LINE)
    assert marks(page, name) == 6
    key.focus()
    page.keyboard.press("Space")
    expect(key).to_have_attribute("aria-pressed", "false")
    expect(page.locator(f'.plot[data-figure="{name}"] .mark-symbol > path')).to_have_count(3)
    key.click()
    expect(page.locator(f'.plot[data-figure="{name}"] .mark-symbol > path')).to_have_count(6)


def test_a_point_says_which_run_it_is(visit: Callable[..., Page]) -> None:
    page = visit()
    name = "accuracy_vs_block_size_limit-none"
    page.locator(f'.plot[data-figure="{name}"] .mark-symbol > path').first.hover(force=True)
    tip = page.locator("#vg-tooltip-element")
    expect(tip).to_be_visible()
    for words in ("id_block_size", "change", "[-", "significant", "scale bits 6 or 8"):
        expect(tip).to_contain_text(words)


def test_the_heat_map_shows_the_run_that_is_chosen(visit: Callable[..., Page]) -> None:
    page = visit()
    figure = page.locator("#sqnr_limit-none")
    cells = figure.locator(".plot .mark-rect.role-mark > path")
    texts = figure.locator(".plot .mark-text.role-mark text")
    assert cells.count() == 18 and "17.8" in texts.all_text_contents()
    chooser = figure.get_by_label("Run")
    name = next(text for text in chooser.locator("option").all_text_contents() if "KV fp4_e2m1" in text)
    chooser.select_option(label=name)
    expect(cells).to_have_count(24)
    figure.get_by_label("Tensors").select_option("keys")
    expect(cells).to_have_count(3)
    figure.get_by_label("Show").select_option("share of elements saturated")
    expect(texts.first).to_have_text("2.0%")
    figure.locator("summary").click()
    expect(figure.locator("table.heat-data")).to_contain_text("2.000 %")


@pytest.mark.parametrize("width", [320, 390, 768])
def test_a_narrow_window_scrolls_no_page(visit: Callable[..., Page], width: int) -> None:
    page = visit(viewport={**PHONE, "width": width})
    for summary in page.locator("summary").all():
        if summary.is_visible():
            summary.click()
    page.locator("button.open").first.click()
    assert page.evaluate("document.scrollingElement.scrollWidth") <= width
    table = page.get_by_role("region", name="All runs of").first
    assert table.evaluate("box => box.scrollWidth > box.clientWidth")  # it is the table that scrolls, in its box


def test_the_metric_stays_in_view_however_far_a_table_is_scrolled(visit: Callable[..., Page]) -> None:
    page = visit(viewport=PHONE)
    where = """at => {
        const box = document.querySelector("#group-1-table").closest(".scroll");
        box.scrollLeft = at * (box.scrollWidth - box.clientWidth);
        const own = box.getBoundingClientRect();
        return [...document.querySelectorAll("#group-1-table .opener, #group-1-table .key-column")].slice(0, 12)
            .map(cell => cell.getBoundingClientRect())
            .every(cell => cell.left >= own.left - 1 && cell.right <= own.right + 1);
    }"""
    assert page.locator("#group-1-table thead .key-column").inner_text().startswith("Δ ppl")
    for at in (0, 0.3, 0.6, 1):
        assert page.evaluate(where, at)
    # Of other tables it is the first column, what a row is of.
    first = """at => {
        const box = document.querySelector('[aria-label^="Table: All pairs of block size"]');
        box.scrollLeft = at * (box.scrollWidth - box.clientWidth);
        const left = box.getBoundingClientRect().left;
        return Math.abs(box.querySelector("td").getBoundingClientRect().left - left) < 2 && box.scrollLeft;
    }"""
    assert page.evaluate(first, 1) > 50


def colours(page: Page) -> tuple[str, str, str]:
    """Of the page, its text, and a label of a figure."""
    return tuple(
        page.evaluate(
            """() => {
                const style = getComputedStyle(document.body);
                const label = document.querySelector(".plot .role-axis-label text");
                return [style.backgroundColor, style.color, getComputedStyle(label).fill];
            }"""
        )
    )


def test_dark_and_light(visit: Callable[..., Page]) -> None:
    page = visit(color_scheme="light")
    light = colours(page)
    page.emulate_media(color_scheme="dark")
    dark = colours(page)
    assert all(a != b for a, b in zip(light, dark, strict=True))
    assert light[1] == light[2] and dark[1] == dark[2]  # figures are drawn in the page's ink
    button = page.get_by_role("button", name="Theme")
    button.click()
    expect(button).to_have_text("Theme: light")
    assert colours(page) == light
    button.click()
    page.emulate_media(color_scheme="light")
    assert colours(page) == dark


def test_printing(visit: Callable[..., Page]) -> None:
    page = visit(color_scheme="dark")
    page.emulate_media(media="print", color_scheme="dark")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert not page.locator("nav").is_visible() and not page.locator(".controls").first.is_visible()
    assert page.pdf(prefer_css_page_size=True).startswith(b"%PDF")


def test_texts_of_users_run_nothing(browser: Browser, report: Path) -> None:
    page = browser.new_page()
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.goto(report.as_uri())
    page.wait_for_selector("html[data-drawn]")
    assert said == []
    assert page.locator("b").count() == 0
    assert NASTY in (page.locator("#undone").text_content() or "")
    # Nor would a script that came in all the same.
    page.evaluate(
        """() => {
            const script = document.createElement("script");
            script.textContent = "window.broken = true";
            document.body.append(script);
        }"""
    )
    assert page.evaluate("window.broken") is None
    assert len(said) == 1 and "Content Security Policy" in said[0]
    page.close()


def test_it_can_be_read_without_scripts(browser: Browser, report: Path) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(report.as_uri())
    assert page.locator("#group-1-table tbody.run").count() == 13
    expect(page.locator("#group-1-run-2 tr.detail")).to_be_visible()
    expect(page.locator(".controls").first).to_be_hidden()
    expect(page.locator("#accuracy_vs_block_size_limit-none")).to_contain_text("see the files below")
    context.close()


def test_landmarks_and_names(visit: Callable[..., Page]) -> None:
    page = visit()
    for role in ("banner", "navigation", "main"):
        assert page.get_by_role(role).count() == 1  # type: ignore[arg-type]
    nameless = page.evaluate(
        """() => [...document.querySelectorAll("button, select, input, [role=region], [role=img], section")]
            .filter(element => !(element.textContent.trim() && element.matches("button")) && !element.labels?.length
                && !element.getAttribute("aria-label") && !element.getAttribute("aria-labelledby"))
            .map(element => element.outerHTML.slice(0, 100))"""
    )
    assert nameless == []
    page.keyboard.press("Tab")
    expect(page.locator(".skip")).to_be_focused()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [{"width": 1280, "height": 800}, PHONE], ids=["desktop", "phone"])
def test_axe_finds_nothing(visit: Callable[..., Page], size: dict[str, int], scheme: str) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="no axe-playwright-python")
    page = visit(viewport=size, color_scheme=scheme, bypass_csp=True)  # the page's policy runs no script but its own
    page.evaluate("document.querySelectorAll('details').forEach(each => { each.open = true; })")
    found = axe.Axe().run(page).response["violations"]
    assert [(one["id"], [node["html"][:120] for node in one["nodes"]]) for one in found] == []
