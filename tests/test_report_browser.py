"""The report in headless Chromium: it opens, filters, works by keyboard, and runs no code in names.

Skipped where Chromium or its driver is missing, unless FASTCIFAR_BROWSER=required.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fastcifar.report import write_report
from fastcifar.report.run_files import clean
from tests import run_folders as make
from tests.test_report import HOSTILE, NAMES

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def driver() -> Iterator[Any]:
    browser, service = (shutil.which(name) for name in ("chromium", "chromedriver"))
    if not browser or not service:
        missing = "chromium or chromedriver is not installed"
        (pytest.fail if os.environ.get("FASTCIFAR_BROWSER") == "required" else pytest.skip)(missing)
    webdriver = pytest.importorskip("selenium.webdriver")
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for flag in ("--headless=new", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"):
        options.add_argument(flag)
    if os.geteuid() == 0:
        options.add_argument("--no-sandbox")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    found = webdriver.Chrome(options=options, service=webdriver.ChromeService(service))
    yield found
    found.quit()


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(make.whole_run(tmp_path_factory.mktemp("runs") / "a-run", NAMES))


@pytest.fixture(scope="module")
def hostile_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(make.whole_run(tmp_path_factory.mktemp("runs") / "<img src=x onerror=alert(1)>", HOSTILE))


def opened(driver: Any, file: Path, width: int = 1400, scheme: str = "light") -> Any:
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    for kind in ("browser", "performance"):
        driver.get_log(kind)  # what was before
    driver.get(file.as_uri())
    return driver


def css(driver: Any, selector: str) -> list[Any]:
    return driver.find_elements("css selector", selector)


def press(driver: Any, *keys: str) -> None:
    from selenium.webdriver import ActionChains

    ActionChains(driver).send_keys(*keys).perform()


def click(driver: Any, element: Any) -> None:
    """After a jump to it: the page scrolls smoothly, and a click would miss."""
    driver.execute_script("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", element)
    element.click()


def choose(driver: Any, field: str, name: str) -> None:
    from selenium.webdriver.support.ui import Select

    Select(css(driver, f"select[name={field}]")[0]).select_by_visible_text(name)


def shown(driver: Any) -> list[str]:
    cards = css(driver, "#test-image-cards > .card")
    return ["→".join(e.text for e in css(card, "h3 bdi")) for card in cards if card.is_displayed()]


def count(driver: Any) -> str:
    return str(css(driver, "#count")[0].text)


def test_it_opens_without_console_messages_or_requests(driver: Any, file: Path) -> None:
    opened(driver, file)
    assert driver.title == "a-run · fastcifar"
    assert driver.execute_script("return [...document.images].every(i => i.complete && i.naturalWidth > 0)")
    assert driver.get_log("browser") == []
    asked = [
        entry["message"] for entry in driver.get_log("performance") if "Network.requestWillBeSent" in entry["message"]
    ]
    assert [message for message in asked if '"url":"data:' not in message and file.as_uri() not in message] == []


def test_filters_show_the_matching_cards_and_count_them(driver: Any, file: Path) -> None:
    from selenium.webdriver.common.keys import Keys

    opened(driver, file)
    everything = ["cat→dog", "dog→ship", "ship→tree", "tree→cat", "cat→dog", "dog→dog"]
    assert shown(driver) == everything
    assert count(driver) == "6 of 6 images"
    choose(driver, "true", "cat")
    assert shown(driver) == ["cat→dog"] * 2
    assert count(driver) == "2 of 6 images"
    choose(driver, "predicted", "ship")
    assert shown(driver) == []
    assert count(driver) == "0 of 6 images"
    assert css(driver, "#empty")[0].text == "None of these images has this true and predicted class."
    css(driver, "#filters button")[0].send_keys(Keys.ENTER)  # the page moves while it becomes shorter
    assert len(shown(driver)) == 6
    assert count(driver) == "6 of 6 images"
    assert not css(driver, "#empty")[0].is_displayed()
    choose(driver, "predicted", "dog")
    assert len(shown(driver)) == 3
    assert css(driver, "#count")[0].get_attribute("aria-live") == "polite"
    assert len([card for card in css(driver, "#own-image-cards > .card") if card.is_displayed()]) == 2


def test_a_sheet_opens_and_closes_by_the_keyboard(driver: Any, file: Path) -> None:
    from selenium.webdriver.common.keys import Keys

    opened(driver, file)
    button, dialog = css(driver, "#test-image-cards .open")[1], css(driver, "#test-image-2")[0]
    for close in ([Keys.ESCAPE], [Keys.ENTER]):  # the focus is on the button that closes
        driver.execute_script("arguments[0].focus()", button)
        press(driver, Keys.ENTER)
        assert dialog.is_displayed()
        assert dialog.find_element("css selector", "img").is_displayed()
        inside = "return arguments[0].contains(document.activeElement)"
        assert driver.execute_script(inside, dialog)
        press(driver, *close)
        assert not dialog.is_displayed()
        assert driver.switch_to.active_element == button
    assert driver.get_log("browser") == []


def test_a_sheet_is_as_wide_as_its_maps_and_its_layers_are_above_them_on_a_phone(driver: Any, file: Path) -> None:
    width = "const [sheet] = document.querySelectorAll('dialog[open] .sheet'); return sheet.offsetWidth"
    for screen in (1400, 390):
        opened(driver, file, screen)
        click(driver, css(driver, "[data-open]")[0])
        dialog = css(driver, "dialog[open]")[0].size["width"]
        assert dialog <= max(driver.execute_script(width), 450) + 2 * 16 + 2 or screen == 390
        name, tile = (css(driver, f"dialog[open] .sheet tbody {each}")[0] for each in ("th", "td:last-child img"))
        assert (name.rect["y"] + name.rect["height"] <= tile.rect["y"] + 1) == (screen == 390)
        assert screen == 1400 or name.rect["height"] < 40  # one line


def test_a_sheet_opens_by_a_click_on_the_card(driver: Any, file: Path) -> None:
    opened(driver, file)
    card = css(driver, "#own-image-cards > .card")[0]
    driver.execute_script("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", card)
    from selenium.webdriver import ActionChains

    ActionChains(driver).move_to_element(card.find_element("css selector", ".pair")).click().perform()
    assert css(driver, "#own-image-1")[0].is_displayed()
    css(driver, "#own-image-1 [data-close]")[0].click()
    assert not css(driver, "#own-image-1")[0].is_displayed()


def test_previous_and_next_go_round_the_images_that_the_filter_shows(driver: Any, file: Path) -> None:
    from selenium.webdriver.common.keys import Keys

    opened(driver, file)
    choose(driver, "predicted", "dog")  # images 1, 5 and 6
    css(driver, "#test-image-cards .open")[0].send_keys(Keys.ENTER)

    def place() -> str:
        (dialog,) = [each for each in css(driver, "dialog") if each.is_displayed()]
        assert driver.execute_script("return arguments[0].contains(document.activeElement)", dialog)
        return f"{dialog.get_attribute('id')}: {dialog.find_element('css selector', '.position').text}"

    assert place() == "test-image-1: 1 of 3"
    press(driver, Keys.ARROW_RIGHT)
    assert place() == "test-image-5: 2 of 3"
    next_button = [each for each in css(driver, "#test-image-5 [data-step='1']") if each.is_displayed()]
    next_button[0].click()
    assert place() == "test-image-6: 3 of 3"
    press(driver, Keys.ENTER)  # the button of the next image has the focus
    assert place() == "test-image-1: 1 of 3"
    press(driver, Keys.ARROW_LEFT)
    assert place() == "test-image-6: 3 of 3"
    press(driver, Keys.ESCAPE)
    assert [each for each in css(driver, "dialog") if each.is_displayed()] == []
    assert driver.switch_to.active_element == css(driver, "#test-image-cards .open")[5]
    assert "has-dialog" not in css(driver, "html")[0].get_attribute("class")
    assert driver.get_log("browser") == []


def cell(driver: Any, true: str, predicted: str) -> Any:
    return css(driver, f"#matrix td[data-true='{NAMES.index(true)}'][data-predicted='{NAMES.index(predicted)}']")[0]


def selected_cells(driver: Any) -> list[Any]:
    return css(driver, "#matrix [aria-selected='true']")


def test_a_cell_of_the_confusion_matrix_filters_the_images(driver: Any, file: Path) -> None:
    opened(driver, file)
    chosen = cell(driver, "cat", "dog")
    click(driver, chosen)
    assert shown(driver) == ["cat→dog"] * 2
    assert selected_cells(driver) == [chosen]
    count = chosen.get_attribute("data-count")
    assert css(driver, "#cell-text")[0].text == f"{count} of 15 images of cat are predicted as dog."
    thumbs = css(driver, "#cell-images button")
    assert len(thumbs) == 2
    click(driver, thumbs[1])
    assert css(driver, "#test-image-5")[0].is_displayed()
    click(driver, css(driver, "#test-image-5 [data-close]")[0])
    assert driver.switch_to.active_element == thumbs[1]
    click(driver, css(driver, "#cell-all button")[0])
    assert len(shown(driver)) == 6
    assert selected_cells(driver) == []
    assert not css(driver, "#cell")[0].is_displayed()
    click(driver, chosen)
    click(driver, chosen)  # a second click takes it back
    assert len(shown(driver)) == 6
    click(driver, chosen)
    choose(driver, "true", "any")  # the form and the matrix agree
    assert selected_cells(driver) == []
    assert driver.get_log("browser") == []


def test_a_cell_without_explained_images_says_so_with_the_command_that_explains_some(driver: Any, file: Path) -> None:
    opened(driver, file)
    chosen = cell(driver, "cat", "cat")
    click(driver, chosen)
    assert shown(driver) == []
    panel = css(driver, "#cell")[0].text
    assert "images of cat are correctly classified." in panel
    assert "None of them is among the explained images of this report." in panel
    assert f"--select {chosen.get_attribute('data-images')}" in css(driver, "#cell-command")[0].text
    assert css(driver, "#cell-images button") == []
    assert "has-images" in cell(driver, "cat", "dog").get_attribute("class")
    assert "has-images" not in chosen.get_attribute("class")


def test_the_cells_are_reached_by_the_keyboard(driver: Any, file: Path) -> None:
    from selenium.webdriver.common.keys import Keys

    opened(driver, file)
    assert len(css(driver, "#matrix [tabindex='0']")) == 1  # one stop of Tab
    driver.execute_script("arguments[0].focus()", cell(driver, "cat", "cat"))
    press(driver, Keys.ARROW_RIGHT, Keys.ARROW_DOWN, Keys.ARROW_DOWN, Keys.ARROW_LEFT, Keys.ARROW_UP, Keys.HOME)
    assert driver.switch_to.active_element == cell(driver, "dog", "cat")
    press(driver, Keys.ARROW_LEFT, Keys.END, Keys.ARROW_LEFT, Keys.ENTER)  # it stops at the edge
    assert selected_cells(driver) == [cell(driver, "dog", "ship")]
    assert shown(driver) == ["dog→ship"]
    press(driver, Keys.SPACE)
    assert selected_cells(driver) == []
    assert len(css(driver, "#matrix [tabindex='0']")) == 1


def test_a_frequent_mistake_selects_its_cell(driver: Any, file: Path) -> None:
    opened(driver, file)
    button = css(driver, ".confused button")[0]
    click(driver, button)
    assert button.get_attribute("aria-pressed") == "true"
    (chosen,) = selected_cells(driver)
    for key in ("data-true", "data-predicted"):
        assert chosen.get_attribute(key) == button.get_attribute(key)


NO_CLIPBOARD = "Object.defineProperty(navigator, 'clipboard', {value: undefined});"


@pytest.mark.parametrize(
    ("browser", "label"),
    [
        ("", "Copied|Selected: copy with Ctrl+C"),  # headless, it may refuse
        (NO_CLIPBOARD, "Copied|Selected: copy with Ctrl+C"),
        (NO_CLIPBOARD + "document.execCommand = () => false;", "Selected: copy with Ctrl+C"),
    ],
)
def test_the_command_is_copied_or_at_least_selected(driver: Any, file: Path, browser: str, label: str) -> None:
    opened(driver, file)
    driver.execute_script(browser)
    click(driver, css(driver, "[data-copy=command]")[0])
    button = css(driver, "[data-copy=command] span")[0]
    for _ in range(50):
        if button.text != "Copy":
            break
    assert button.text in label.split("|")
    command = css(driver, "#command")[0].text
    assert driver.execute_script("return getSelection().toString()") == command
    assert driver.get_log("browser") == []


def test_nothing_is_white_in_the_dark(driver: Any, file: Path) -> None:
    opened(driver, file, scheme="dark")
    click(driver, css(driver, "#test-image-cards .open")[0])
    brightness = """
        const rgb = getComputedStyle(arguments[0]).backgroundColor.match(/\\d+/g).map(Number);
        return rgb.length === 4 && rgb[3] === 0 ? 0 : Math.max(...rgb.slice(0, 3));"""
    for element in css(driver, "body, .figure, .sheet, .sheet td, .matrix .m0, dialog, .cell, code, .card"):
        assert driver.execute_script(brightness, element) < 200
    visible = "return [...document.querySelectorAll('.drawing img')].filter(i => i.offsetWidth).map(i => i.className)"
    assert set(driver.execute_script(visible)) == {"dark"}
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    assert set(driver.execute_script(visible)) == {"light"}
    others = driver.execute_script("return [...document.images].filter(i => !i.closest('.drawing')).map(i => i.width)")
    assert max(others) < 300  # images and their maps, no sheet of paper


def test_the_skip_link_is_the_first_stop_and_leads_to_the_report(driver: Any, file: Path) -> None:
    from selenium.webdriver.common.keys import Keys

    opened(driver, file)
    press(driver, Keys.TAB)
    assert driver.switch_to.active_element.text == "Skip to the report"
    press(driver, Keys.ENTER)
    assert driver.switch_to.active_element.tag_name == "main"


def test_hostile_names_are_text_and_nothing_runs(driver: Any, hostile_file: Path) -> None:
    opened(driver, hostile_file)
    assert driver.title.endswith(" · fastcifar")
    assert driver.get_log("browser") == []
    assert len(css(driver, "script")) == 1
    assert css(driver, "[onerror], [onclick], img[src='x']") == []
    text = driver.find_element("css selector", "body").text
    for name in HOSTILE:
        assert clean(name) in text
    from selenium.webdriver.support.ui import Select

    names = {option.text for option in Select(css(driver, "select[name=true]")[0]).options}
    assert {clean(name) for name in HOSTILE[:4]} <= names
    choose(driver, "true", clean(HOSTILE[0]))
    assert len(shown(driver)) == 1


@pytest.mark.parametrize("width", [360, 1400])
def test_the_page_does_not_scroll_sideways(driver: Any, file: Path, hostile_file: Path, width: int) -> None:
    for page in (file, hostile_file):
        opened(driver, page, width)
        for details in css(driver, "details"):
            driver.execute_script("arguments[0].open = true", details)
        assert driver.execute_script("return document.documentElement.scrollWidth") == width
        driver.execute_script("document.getElementById('test-image-1').showModal()")
        assert driver.execute_script("return document.documentElement.scrollWidth") == width
        assert css(driver, "#test-image-1")[0].rect["width"] <= width


CONTRAST = """
const canvas = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
const rgb = colour => { canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
                        return [...canvas.getImageData(0, 0, 1, 1).data]; };
const light = c => c.slice(0, 3).map(v => v / 255).map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
                    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
const ground = e => { for (; e; e = e.parentElement) { const c = rgb(getComputedStyle(e).backgroundColor);
                                                       if (c[3] === 255) return c; } };
const found = [];
for (const e of document.body.querySelectorAll("*")) {
  const own = [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim());
  if (!own || ["SCRIPT", "NOSCRIPT"].includes(e.tagName)) continue;
  const [a, b] = [light(rgb(getComputedStyle(e).color)), light(ground(e))].sort((x, y) => y - x);
  found.push([(a + 0.05) / (b + 0.05), e.tagName, e.textContent.trim().slice(0, 40)]);
}
return found;
"""


def test_text_has_contrast_in_both_colour_schemes(driver: Any, file: Path) -> None:
    grounds = []
    for scheme in ("light", "dark"):
        opened(driver, file, scheme=scheme)
        found = driver.execute_script(CONTRAST)
        assert len(found) > 100
        assert [row for row in found if row[0] < 4.5] == []
        grounds.append(driver.execute_script("return getComputedStyle(document.body).backgroundColor"))
        picture = "return [...document.querySelectorAll('.curves img')].find(i => i.offsetWidth).src"
        grounds.append(driver.execute_script(picture))
    assert len(set(grounds)) == 4


def test_every_scrolling_part_is_reachable_by_keyboard(driver: Any, file: Path) -> None:
    opened(driver, file, 360)
    loose = """return [...document.querySelectorAll("main *")].filter(e => {
        const style = getComputedStyle(e);
        return ["auto", "scroll"].includes(style.overflowX) && e.scrollWidth > e.clientWidth
               && !(e.tabIndex === 0 && e.getAttribute("aria-label"));
    }).map(e => e.outerHTML.slice(0, 80))"""
    assert driver.execute_script(loose) == []
    assert css(driver, ".scroll[role=region][aria-label][tabindex='0']")
