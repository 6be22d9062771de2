"""The page of an audit in headless Chromium: its keys, its decisions, the table that it saves."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fastcifar import open_beton
from fastcifar.audit.issues import Image, Issue, IssuesFile, Line, lines_of, read_issues, write_issues
from fastcifar.audit.run import Audit
from fastcifar.report.audit import write_audit_page
from tests.test_report_browser import CONTRAST, css, opened, press
from tests.test_report_browser import driver as driver

pytestmark = pytest.mark.slow
HOSTILE = ('</script><img src=x onerror="document.title=1">', 'a "quoted", name', "قطة 👩‍🚀")


def an_audit(data: Path, out: Path, class_names: tuple[str, ...] | None = None) -> Audit:
    out.mkdir()
    splits = {name: open_beton(data / f"{name}.beton") for name in ("train", "test")}
    if class_names:
        splits = {name: replace(b, class_names=(*class_names, *b.class_names[3:])) for name, b in splits.items()}
    names, labels = splits["train"].class_names, splits["train"].labels
    image = [Image(split="train", index=index) for index in range(9)]
    issues = [
        Issue(
            kind="near-leak",
            image=image[i],
            label=names[labels[i]],
            score=0.9,
            other=Image(split="test", index=i),
            action="drop",
        )
        for i in range(2)
    ]
    issues += [
        Issue(kind="label", image=image[i], label=names[labels[i]], score=0.8, suggested=names[i % 3])
        for i in range(2, 6)
    ]
    issues += [Issue(kind="blank", image=image[i], label=names[labels[i]], score=1.0) for i in range(6, 9)]
    lines: list[Line] = lines_of(issues, splits)
    file: IssuesFile = write_issues(out / "issues.csv", lines)
    parts = ("duplicates", "labels", "images")
    return Audit(data_dir=data, out=out, splits=splits, parts=parts, issues=file)


@pytest.fixture(scope="module")
def file(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_audit_page(an_audit(tiny_data, tmp_path_factory.mktemp("page") / "audit"))


@pytest.fixture(scope="module")
def hostile_file(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_audit_page(an_audit(tiny_data, tmp_path_factory.mktemp("hostile") / "audit", HOSTILE))


@pytest.fixture
def page(driver: Any, file: Path) -> Iterator[Any]:
    yield opened(driver, file)
    driver.execute_script("isSaved = true")  # else it asks before it closes


def current(driver: Any) -> list[str]:
    return [card.get_attribute("data-line") for card in css(driver, ".issue.current")]


def decisions(driver: Any) -> list[str]:
    return [card.text for card in css(driver, ".decision")]


def downloaded(driver: Any, folder: Path) -> Path:
    """The table that the button saves."""
    folder.mkdir()
    settings = {"behavior": "allow", "downloadPath": str(folder)}
    driver.execute_cdp_cmd("Browser.setDownloadBehavior", settings)
    css(driver, "#download")[0].click()
    saved = folder / "issues.csv"
    for _ in range(300):
        if saved.is_file() and saved.stat().st_size:  # not yet the empty one that the browser makes first
            return saved
        time.sleep(0.1)
    raise AssertionError(list(folder.iterdir()))


def test_it_opens_without_console_messages_or_requests(page: Any, file: Path) -> None:
    assert page.execute_script("return [...document.images].every(i => i.complete && i.naturalWidth > 0)")
    assert page.get_log("browser") == []
    asked = [e["message"] for e in page.get_log("performance") if "Network.requestWillBeSent" in e["message"]]
    assert [message for message in asked if '"url":"data:' not in message and file.as_uri() not in message] == []


def test_j_and_k_move_through_all_cards_and_stop_at_the_ends(page: Any) -> None:
    press(page, "k")
    assert current(page) == ["0"]
    press(page, *"jj")
    assert current(page) == ["2"]
    assert page.switch_to.active_element.get_attribute("data-line") == "2"
    press(page, *"jjjjjjjjj")
    assert current(page) == ["8"]
    card = css(page, ".issue.current")[0]
    visible = "const box = arguments[0].getBoundingClientRect(); return box.top >= 0 && box.bottom <= innerHeight"
    assert page.execute_script(visible, card)
    press(page, "k")
    assert current(page) == ["7"]


def test_decisions_are_made_undone_and_saved_with_all_lines(page: Any, file: Path, tmp_path: Path) -> None:
    from selenium.webdriver.common.keys import Keys

    before = read_issues(file.parent / "issues.csv").lines
    press(page, *"jo")  # keep the first
    press(page, *"jjr", Keys.ENTER)  # the suggested label of line 2
    press(page, *"jr", Keys.DELETE, *before[2].issue.label, Keys.ENTER)  # a label of one's own
    press(page, *"jd", *"jd", "u", "u", "u")  # undo both drops, and the label
    assert decisions(page)[:4] == ["keep", "drop", f"relabel: {before[2].issue.suggested}", ""]
    assert current(page) == ["3"]
    press(page, "r", Keys.DELETE, *before[2].issue.label, Keys.ENTER)
    button = css(page, ".issue [data-do=drop]")[8]
    page.execute_script("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", button)
    button.click()
    assert css(page, "#count")[0].text == "2 drop, 2 relabel, 1 keep · 4 changes"
    saved = downloaded(page, tmp_path / "saved")
    after = read_issues(saved).lines
    expected = {0: ("keep", ""), 2: ("relabel", before[2].issue.suggested), 3: ("relabel", before[2].issue.label)}
    expected |= {8: ("drop", "")}
    for number, (one, other) in enumerate(zip(before, after, strict=True)):
        action, suggested = expected.get(number, (one.issue.action, one.issue.suggested))
        assert other == replace(one, issue=replace(one.issue, action=action, suggested=suggested))
    assert page.get_log("browser") == []


def test_a_label_that_is_no_class_is_refused_and_escape_changes_nothing(page: Any, file: Path) -> None:
    from selenium.webdriver.common.keys import Keys

    press(page, *"JJJR", Keys.DELETE, *"unicorn", Keys.ENTER)  # as with Caps Lock
    assert css(page, "#relabel")[0].is_displayed()
    label = read_issues(file.parent / "issues.csv").lines[2].issue.label
    assert css(page, "#relabel-name")[0].text == f"New label of train 2, now {label}"
    assert css(page, "#relabel-problem")[0].text == "unicorn: no class of these data"
    press(page, Keys.ESCAPE)
    assert not css(page, "#relabel")[0].is_displayed()
    assert decisions(page)[2] == ""
    press(page, "d")  # the card has the focus again
    assert decisions(page)[2] == "drop"
    css(page, "#undo")[0].click()
    assert decisions(page)[2] == ""


def test_an_untouched_page_saves_the_file_as_it_was(driver: Any, hostile_file: Path, tmp_path: Path) -> None:
    opened(driver, hostile_file)
    assert driver.get_log("browser") == []
    assert driver.title.endswith(" · fastcifar")
    assert len(css(driver, "script")) == 2
    assert css(driver, "[onerror]") == []
    saved = downloaded(driver, tmp_path / "saved")
    assert saved.read_bytes() == (hostile_file.parent / "issues.csv").read_bytes()


@pytest.mark.parametrize("width", [360, 1400])
def test_the_page_does_not_scroll_sideways(driver: Any, file: Path, hostile_file: Path, width: int) -> None:
    for each in (file, hostile_file):
        opened(driver, each, width)
        assert driver.execute_script("return document.documentElement.scrollWidth") == width
        driver.execute_script("document.getElementById('relabel').showModal()")
        assert driver.execute_script("return document.documentElement.scrollWidth") == width


def test_text_has_contrast_in_both_colour_schemes(driver: Any, file: Path) -> None:
    for scheme in ("light", "dark"):
        opened(driver, file, scheme=scheme)
        found = driver.execute_script(CONTRAST)
        assert len(found) > 50
        assert [row for row in found if row[0] < 4.5] == []


def test_without_scripts_nothing_pretends_to_work(driver: Any, file: Path) -> None:
    driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        opened(driver, file)
        assert not css(driver, "#toolbar")[0].is_displayed()
        assert not any(each.is_displayed() for each in css(driver, ".actions"))
        assert css(driver, "noscript p")[0].is_displayed()
        assert decisions(driver)[:2] == ["drop", "drop"]
    finally:
        driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
