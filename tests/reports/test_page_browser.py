"""The page in a headless browser of the system: what a reader can do with it, by mouse and by keyboard, wide and narrow."""

import pages
import pandas as pd
import pytest
import simulate
from pages import Reader

from harness.base import read_json
from reports import frames


@pytest.fixture(scope="module")
def browser():
    yield from pages.launch()


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A page with two tables and two figures inside its run folder, whose questions hold hostile text."""
    with pytest.MonkeyPatch.context() as patch:
        students = ["ce", "ce+fkl@fixed", "ce+fkl@task", "ce+fkl@instance"]
        run = simulate.write_run(tmp_path_factory.mktemp("site") / "run", (0, 1), clusters=12, students=students, steps=30)
        pages.poison(run)
        return run, pages.built(run, run / "report", patch)


@pytest.fixture
def reader(browser, site):
    """Wide and light; every test ends without a complaint and without a request that leaves the disk."""
    opened = Reader(browser, site[1].as_uri(), color_scheme="light")
    yield opened
    assert opened.said == []
    assert all(url.startswith("file://") for url in opened.asked)
    opened.context.close()


@pytest.fixture
def phone(browser, site):
    """360 pixels wide, dark."""
    opened = Reader(browser, site[1].as_uri(), viewport={"width": 360, "height": 740}, color_scheme="dark")
    yield opened
    assert opened.said == []
    opened.context.close()


# ---- text, theme, tables, figures ------------------------------------------------------------------------------------------


def test_hostile_text_is_text(reader):
    page = reader.explore()
    page.fill("input[name=text]", "window.hacked")
    assert reader.count() == 6  # the first question of each benchmark
    page.wait_for_timeout(200)
    assert page.evaluate("window.hacked") is None
    shown = page.inner_text("#list-questions .row >> nth=0")
    assert "</script><script>window.hacked = 1</script><!-- <img src=x" in shown
    detail = page.inner_text(".detail-body")
    assert "{{ 7*7 }} & " in detail
    assert "${7*7}" in detail
    assert "<!--" in page.inner_text("h1")
    assert "window.hacked" in page.inner_text("footer")
    assert page.locator("#samples img[src=x]").count() == 0


def test_a_column_sorts_both_ways_and_back(reader):
    page = reader.page

    def column(name):
        return page.eval_on_selector_all(
            "#table-difference-fixed tbody tr", f"rows => rows.map((r) => r.cells[2].dataset.{name} ?? null)"
        )

    before = column("v")
    assert len(before) == 2
    head = page.locator("#table-accuracy thead th").nth(3)
    rows = "rows => rows.map((r) => r.cells[3].dataset.v === undefined ? null : Number(r.cells[3].dataset.v))"
    original = page.eval_on_selector_all("#table-accuracy tbody tr", rows)
    known = [v for v in original if v is not None]
    assert None in original  # a dash
    head.locator("button").click()
    assert head.get_attribute("aria-sort") == "descending"
    assert page.eval_on_selector_all("#table-accuracy tbody tr", rows)[: len(known)] == sorted(known, reverse=True)
    assert page.eval_on_selector_all("#table-accuracy tbody tr", rows)[-1] is None
    page.keyboard.press("Enter")  # the button kept the focus
    assert head.get_attribute("aria-sort") == "ascending"
    assert page.eval_on_selector_all("#table-accuracy tbody tr", rows)[: len(known)] == sorted(known)
    page.keyboard.press("Space")
    assert head.get_attribute("aria-sort") is None
    assert page.eval_on_selector_all("#table-accuracy tbody tr", rows) == original


def test_a_figure_enlarges_and_escape_returns(reader):
    page = reader.page
    link = page.locator(".plate a").first
    link.focus()
    page.keyboard.press("Enter")
    box = page.locator("#lightbox")
    assert box.is_visible()
    image = box.locator("img")
    assert image.evaluate("i => i.decode().then(() => i.naturalWidth)") > 500
    first = image.get_attribute("src")
    page.keyboard.press("ArrowRight")
    assert image.get_attribute("src") != first
    page.keyboard.press("ArrowLeft")
    assert image.get_attribute("src") == first
    page.keyboard.press("Escape")
    assert not box.is_visible()
    assert link.evaluate("a => a === document.activeElement")


def test_dark_by_the_system_and_by_the_button(browser, site):
    opened = Reader(browser, site[1].as_uri(), color_scheme="dark")
    page = opened.page
    colour = "getComputedStyle(document.body).backgroundColor"
    dark = page.evaluate(colour)
    assert sum(map(int, dark[4:-1].split(","))) < 150
    assert page.locator(".plate img").first.evaluate("i => i.currentSrc").endswith("-dark.png")
    page.click("#theme")
    light = page.evaluate(colour)
    assert sum(map(int, light[4:-1].split(","))) > 600
    assert not page.locator(".plate img").first.evaluate("i => i.currentSrc").endswith("-dark.png")
    page.reload()
    assert page.evaluate(colour) == light
    page.click(".plate a >> nth=0")
    assert not page.locator("#lightbox img").get_attribute("src").endswith("-dark.png")
    assert opened.said == []
    opened.context.close()


# ---- the explorer ----------------------------------------------------------------------------------------------------------


def test_filters_count_what_the_scores_say(reader, site):
    run, _ = site
    page = reader.explore()
    scores = pd.read_parquet(run / "scores.parquet")
    now = scores[scores["seed"].isna() | (scores["seed"] == 0)]
    asked = len(now.drop_duplicates(["protocol", "id"]))
    assert reader.count() == asked
    protocols = list(read_json(run / "manifest.json")["protocols"])
    page.select_option("select[name=protocol]", label="POPE (miniature)")
    assert reader.count() == now[now["protocol"] == "pope@miniature"]["id"].nunique()
    assert len(protocols) == page.locator("select[name=protocol] option").count() - 1
    option = page.locator("select[name=group] option", has_text="popular")
    page.select_option("select[name=group]", option.get_attribute("value"))
    group = now[(now["protocol"] == "pope@miniature") & (now["group"] == "popular")]
    assert abs(reader.count() - group["id"].nunique()) <= 1  # one category was poisoned
    page.click(".reset[data-for=questions]")
    assert reader.count() == asked
    table = now.pivot_table(index=["protocol", "id"], columns="student", values="score")
    trained = table[[s for s in table if s not in ("teacher", "base")]]
    page.click("[name=disagree]")
    assert reader.count() == (trained.max(axis=1) > trained.min(axis=1)).sum()
    page.click("[name=disagree]")
    page.select_option("select[name=student]", label="ce+fkl@instance")
    page.select_option("select[name=baseline]", label="ce+fkl@fixed")
    assert page.locator("[name=flipped]").get_attribute("aria-pressed") == "true"
    change = trained["ce+fkl@instance"] - trained["ce+fkl@fixed"]
    assert reader.count() == (change != 0).sum() > 0
    page.select_option("select[name=direction]", "gained")
    assert reader.count() == (change > 0).sum()
    page.select_option("select[name=direction]", "lost")
    assert reader.count() == (change < 0).sum()
    page.click(".reset[data-for=questions]")
    page.select_option("select[name=teacher]", "wrong")
    assert reader.count() == (table["teacher"] < 1).sum()


def test_the_other_seed_has_its_own_answers(reader, site):
    page = reader.explore()
    scores = pd.read_parquet(site[0] / "scores.parquet")
    page.click("[name=disagree]")
    for seed in (1, 0):
        page.select_option("select[name=seed]", str(seed))
        own = scores[scores["seed"] == seed].groupby(["protocol", "id"])["score"].agg(["min", "max"])
        expected = (own["max"] > own["min"]).sum()
        page.wait_for_function(f"document.querySelector('.count').textContent.startsWith('{expected:,} of')")


def test_details_show_every_students_reply_and_the_picture(reader, site):
    page = reader.explore()
    page.fill("input[name=text]", "gqa-0003-1")
    assert reader.count() == 1
    scores = pd.read_parquet(site[0] / "scores.parquet")
    own = scores[(scores["id"] == "gqa-0003-1") & (scores["seed"].isna() | (scores["seed"] == 0))].set_index("student")
    rows = page.locator(".said tbody tr")
    assert rows.count() == len(own) == 6
    for k in range(rows.count()):
        name, reply = rows.nth(k).locator("th code").inner_text(), rows.nth(k).locator(".reply").inner_text()
        assert reply == own.loc[name, "prediction"]
        assert ("right" in rows.nth(k).locator(".mark").get_attribute("class")) == (own.loc[name, "score"] == 1)
    found = pd.read_parquet(site[0] / "diagnostics.parquet")
    teacher = found[(found["student"] == "teacher") & (found["id"] == "gqa-0003-1")].iloc[0]
    assert f"{100 * teacher['confidence']:.0f} % sure" in page.inner_text(".asked")
    assert "no β" in page.inner_text(".detail-body")
    for selector in ("#list-questions img.thumb", ".picture img"):
        assert page.locator(selector).first.evaluate("i => i.decode().then(() => i.naturalWidth)") == 60
    assert "/images/" in page.locator(".picture img").get_attribute("src")  # the whole one, from the run folder
    page.click(".picture")
    assert page.locator("#lightbox").is_visible()
    page.keyboard.press("Escape")


def test_training_samples_show_their_weights(reader, site):
    page = reader.explore()
    page.click("#tab-training")
    page.wait_for_selector("#list-training .row")
    frame = pd.read_parquet(site[0] / "students" / "ce+fkl@instance" / "seed0" / "betas.parquet")
    last = frame.sort_values("step", kind="stable").drop_duplicates("id", keep="last").set_index("id")["beta"]
    assert page.locator("select[name=weight] option:checked").inner_text() == "ce+fkl@instance"
    page.select_option("form[data-for=training] select[name=order]", "high")
    assert page.inner_text(".detail-body .asked code") == last.idxmax()
    assert f"{last.max():.3g}" in page.inner_text(".said")
    page.select_option("select[name=noisy]", "1")
    assert 0 < reader.count() < len(last) + 600
    assert "label replaced" in page.inner_text("#list-training .row >> nth=0")


def test_the_keyboard_is_enough(reader):
    page = reader.explore()
    page.locator("#tab-questions").focus()
    order = []
    for _ in range(20):
        page.keyboard.press("Tab")
        order.append(reader.focused())
        if order[-1] == "list-questions":
            break
    assert order[-1] == "list-questions", order
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"  # the focus is seen
    place = page.locator(".place-in-list")
    assert place.inner_text().startswith("1 of")
    for _ in range(3):
        page.keyboard.press("ArrowDown")
    assert place.inner_text().startswith("4 of")
    active = page.get_attribute("#list-questions", "aria-activedescendant")
    assert page.get_attribute(f"#{active}", "aria-selected") == "true"
    assert page.get_attribute(f"#{active}", "aria-posinset") == "4"
    page.keyboard.press("ArrowUp")
    assert place.inner_text().startswith("3 of")
    page.keyboard.press("End")
    size = reader.count()
    assert place.inner_text() == f"{size} of {size}"
    page.keyboard.press("Home")
    page.keyboard.press("PageDown")
    assert not place.inner_text().startswith("1 of")
    page.keyboard.press("Enter")
    assert "detail" in reader.focused()
    page.keyboard.press("Escape")
    assert reader.focused() == "list-questions"
    page.locator("#tab-questions").focus()
    page.keyboard.press("ArrowRight")
    page.wait_for_selector("#list-training .row")
    assert reader.focused() == "tab-training"


def test_roles_name_what_is_there(reader):
    page = reader.explore()
    assert page.get_by_role("listbox").count() == 1  # the other tab's is hidden
    assert page.get_by_role("tab").count() == 2
    assert page.get_by_role("option").count() > 3
    assert page.locator("img:not([alt])").count() == 0
    nameless = "els => els.filter((e) => !(e.getAttribute('aria-label') || e.innerText.trim() || e.title)).length"
    assert page.eval_on_selector_all("button:not([hidden])", nameless) == 0
    unlabelled = "els => els.filter((e) => !e.labels?.length && !e.getAttribute('aria-label')).length"
    assert page.eval_on_selector_all("#explorer select, #explorer input", unlabelled) == 0


# ---- narrow ----------------------------------------------------------------------------------------------------------------


def test_a_phone_scrolls_in_one_direction_only(phone):
    page = phone.explore()
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    page.fill("input[name=text]", "nothing holds this")
    assert phone.count() == 0
    assert "Nothing matches" in page.evaluate("getComputedStyle(document.querySelector('#list-questions'), '::before').content")
    page.click("#tab-training")
    page.wait_for_selector("#list-training .row")
    page.click("form[data-for=training] summary")
    assert page.evaluate("document.documentElement.scrollWidth") == 360


def test_a_phone_opens_details_in_a_sheet(phone):
    page = phone.explore()
    assert not page.locator(".detail-body").is_visible()
    page.locator("#list-questions .row").nth(1).click()
    sheet = page.locator("#sheet")
    assert sheet.is_visible()
    assert page.locator(".place-in-list").inner_text().startswith("2 of")
    assert sheet.evaluate("s => s.querySelector('.content').scrollWidth") <= 360
    page.locator("#sheet [data-step='1']").click()
    assert page.locator(".place-in-list").inner_text().startswith("3 of")
    page.keyboard.press("Escape")
    assert not sheet.is_visible()
    assert phone.focused() == "list-questions"
    page.keyboard.press("Enter")
    assert sheet.is_visible()
    page.locator("#sheet .close").click()
    assert not sheet.is_visible()


def test_a_sheet_that_is_opened_again_at_once_keeps_its_details(phone):
    """The browser says that a dialog was closed only after it has taken the next key."""
    page = phone.explore()
    page.locator("#list-questions .row").nth(1).click()
    page.evaluate(
        """() => {
            document.querySelector("#sheet").close();
            const key = new KeyboardEvent("keydown", {key: "Enter", bubbles: true});
            document.querySelector("#list-questions").dispatchEvent(key);
        }"""
    )
    page.wait_for_timeout(50)
    assert page.locator("#sheet .detail-inner").is_visible()
    page.locator("#sheet .close").click()
    assert not page.locator("#sheet").is_visible()


# ---- size, and files that are not there ------------------------------------------------------------------------------------


def test_twenty_thousand_questions_stay_fast(browser, tmp_path, record_property):
    run = pages.large(tmp_path / "run", 20_000)
    opened = Reader(browser, pages.bare(frames.load(run), run / "report").as_uri())
    page = opened.explore()
    assert opened.count() > 20_000
    spent = {}

    def timed(name):
        spent[name] = float(page.get_attribute("#explorer", "data-milliseconds"))

    timed("first")
    page.fill("input[name=text]", "what is at 2")
    timed("search")
    assert 0 < opened.count() < 20_000
    page.fill("input[name=text]", "")
    page.click("[name=disagree]")
    timed("disagree")
    page.click("[name=flipped]")
    timed("flipped")
    page.click(".reset[data-for=questions]")
    page.select_option("select[name=protocol]", "3")
    timed("benchmark")
    page.select_option("select[name=protocol]", "")
    frame = page.evaluate(
        """async () => {
          const box = document.querySelector("#list-questions");
          const next = () => new Promise((done) => requestAnimationFrame(done));
          const spent = [];
          await next();
          for (let k = 0; k < 40; k++) {
            const started = performance.now();
            box.scrollTop += 1700;
            await next();
            await next();
            spent.push((performance.now() - started) / 2);
          }
          box.scrollTop = box.scrollHeight;
          await next();
          await next();
          const rows = [...box.querySelectorAll(".row")];
          const last = Math.max(...rows.map((row) => Number(row.getAttribute("aria-posinset"))));
          return { median: spent.sort((a, b) => a - b)[20], rows: rows.length, last };
        }"""
    )
    record_property("milliseconds to filter, and per frame while scrolling", {**spent, "frame": frame["median"]})
    assert frame["last"] == opened.count()
    assert frame["rows"] < 60
    assert max(spent.values()) < 1500  # a tenth of it on two quiet cores
    assert frame["median"] < 150
    assert opened.said == []
    opened.context.close()


def test_a_page_without_its_folder_says_so(browser, site, tmp_path):
    alone = tmp_path / "index.html"
    alone.write_text(site[1].read_text())
    opened = Reader(browser, alone.as_uri())
    opened.page.evaluate("document.querySelector('#samples').scrollIntoView()")
    opened.page.wait_for_selector("#explorer .failed:not([hidden])")
    assert "samples/questions.js is not beside this page" in opened.page.inner_text("#explorer .failed")
    assert opened.page.locator("#table-accuracy tbody tr").count() > 4
    opened.context.close()
