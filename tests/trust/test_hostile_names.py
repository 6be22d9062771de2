"""No name runs code in the report: names of classes, files and runs are shown as text in a browser."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fastcifar.report import write_report
from fastcifar.report.run_files import clean
from tests import run_folders as make
from tests.test_report_browser import choose, driver, opened  # noqa: F401 (a fixture)

RUN = "document.title='ran'"
NAMES = (
    f"<script>{RUN}</script>",
    f"</script><script>{RUN}</script>",
    f"</style><script>{RUN}</script>",
    f"</title><script>{RUN}</script>",
    f"</textarea><script>{RUN}</script>",
    f"--><script>{RUN}</script>",
    f"]]><script>{RUN}</script>",
    f"<img src=x onerror={RUN}>",
    f'"><img src=x onerror="{RUN}">',
    f"'><img src=x onerror='{RUN}'>",
    f'" autofocus onfocus="{RUN}',
    f"' autofocus onfocus='{RUN}",
    f"<svg onload={RUN}>",
    f"<svg><script>{RUN}</script></svg>",
    f'<math><mi//xlink:href="data:x,<script>{RUN}</script>">',
    f'<iframe srcdoc="<script>{RUN}</script>"></iframe>',
    f'<a href="javascript:{RUN}">click</a>',
    f"<form action=javascript:{RUN}><button>x</button></form>",
    f"<details open ontoggle={RUN}>",
    f"<base href=//example.com/><meta http-equiv=refresh content=0;url=javascript:{RUN}>",
    "{{ 7 * 7 }}{% raw %}{{ cycler.__init__.__globals__ }}",
    "${7*7}#{7*7}<%= 7*7 %>",
    "&lt;b&gt;&#60;script&#62;",
    "javascript:alert(1)//",
    "url(javascript:alert(1)); } body { display: none } /*",
    "\u202eevil\u202c\u2066x\u2069",
    "a\nb\tc\rd\x00e\x1b[2Jf",
    "\ufdd0\ufeff\u200b\U000e0041 unseen",
    "👩‍🚀 قطة Z̸͎̈ 猫",
    "W" * 255,
    "=cmd|' /C calc'!A0",
    "../../../etc/passwd",
)


@pytest.mark.slow
def test_hostile_names_are_shown_as_text(
    driver: Any,  # noqa: F811
    tmp_path: Path,
    tally: Callable[[str], None],
) -> None:
    assert len(NAMES) >= 30
    run = make.whole_run(tmp_path / f"<img src=x onerror={RUN}>".replace("/", ""), NAMES)
    make.write_explained(run, NAMES, len(NAMES))
    make.write_explained(run, NAMES, len(NAMES), "explain/images", own=True)
    plain = make.whole_run(tmp_path / "plain", [f"class {i}" for i in range(len(NAMES))])
    make.write_explained(plain, [f"class {i}" for i in range(len(NAMES))], len(NAMES))
    make.write_explained(plain, [f"class {i}" for i in range(len(NAMES))], len(NAMES), "explain/images", own=True)

    def kinds(page: Path) -> dict[str, int]:
        opened(driver, page)
        script = """const found = {}; for (const e of document.querySelectorAll("*")) {
            found[e.tagName] = (found[e.tagName] || 0) + 1;
            for (const a of e.attributes) if (a.name.startsWith("on")) found[a.name] = 1;
        } delete found.WBR; return found"""  # WBR: paths may break at their slashes
        return dict(driver.execute_script(script))

    expected, found = kinds(write_report(plain)), kinds(write_report(run))
    assert found == expected  # not an element more, and no handler
    assert driver.title.endswith(" · fastcifar")
    assert driver.get_log("browser") == []
    text = driver.execute_script("return document.body.textContent")
    for name in NAMES:
        assert clean(name).encode("utf-8", "replace").decode() in text, name
    for name in NAMES[:5]:
        choose(driver, "true", clean(name))
        assert driver.title.endswith(" · fastcifar")
    tally(f"{len(NAMES)} names of classes and files, and one of a run: all shown as text")
