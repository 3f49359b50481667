"""The quiz in a real browser: by keyboard alone, by touch on a narrow phone, without JavaScript; contrast and focus."""

import re
import shutil

import pytest
from quiz_visitors import make_quiz, open_answers, serving

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
playwright_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium: apt-get install chromium")

PHONE = {"viewport": {"width": 320, "height": 640}, "has_touch": True, "is_mobile": True}

# Every text against what lies behind it, (L1 + 0.05) / (L2 + 0.05) of WCAG 2.2; backgrounds here are plain colours.
LOW_CONTRAST = """() => {
  const channel = (c) => (c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
  const luminance = ([r, g, b]) => 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
  const colour = (text) => (text.match(/[\\d.]+/g) || []).map(Number);
  const behind = (element) => {
    for (let e = element; e; e = e.parentElement) {
      const c = colour(getComputedStyle(e).backgroundColor);
      if (c.length === 3 || c[3] === 1) return c;
      if (c[3] > 0) throw `half transparent: ${e.outerHTML.slice(0, 80)}`;
    }
    return [255, 255, 255];
  };
  const low = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  let seen = 0;
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement, style = getComputedStyle(element);
    if (!walker.currentNode.data.trim() || !element.checkVisibility() || element.closest("progress")) continue;
    const text = element.closest("svg") ? style.fill : style.color;
    const [a, b] = [luminance(colour(text)), luminance(behind(element))].sort((x, y) => y - x);
    seen += 1;
    if ((a + 0.05) / (b + 0.05) < 4.5) low.push(`${walker.currentNode.data.trim()}: ${(a + 0.05) / (b + 0.05)}`);
  }
  if (seen < 4) throw "no text seen";
  return low;
}"""

SMALL_TARGETS = """() => [...document.querySelectorAll("a, button, input:not([type=hidden])")].filter((e) => {
  const box = e.getBoundingClientRect();
  return box.width > 0 && !e.matches(".skip") && (box.height < 44 && e.type !== "checkbox" || box.height < 17);
}).map((e) => e.outerHTML.slice(0, 120))"""


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A server with a quiz of 4 tiles a visit; yields its folder and address."""
    folder = make_quiz(tmp_path_factory.mktemp("quiz"), n=16, per_visit=4, per_cell=6).folder
    with serving(folder) as (_, url):
        yield folder, url


@pytest.fixture(scope="module")
def browser():
    with playwright_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])  # root in containers
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser, site):
    """Open the start page in a fresh browser; in the end look at what its console said, and what it asked of whom."""
    contexts, said, asked = [], [], []

    def open_page(**options):
        context = browser.new_context(**options)
        page = context.new_page()
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(site[1])
        contexts.append(context)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert said == [] and all(url.startswith(site[1]) for url in asked), (said, asked)


def stored(site, visits=1):
    """The last visits' answers: says_real, sure, quality."""
    rows = list(open_answers(site[0])[1].export())
    return [(r["says_real"], r["sure"], r["quality"]) for r in rows if r["visit"] > rows[-1]["visit"] - visits]


def test_the_whole_quiz_by_keyboard_alone(site, open_page):
    page = open_page()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    for _ in range(2):
        page.keyboard.press("Tab")  # past the title to the experience
    page.keyboard.press("Space")
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement.value") == "biologist"
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.wait_for_url("**/quiz/1")
    for keys in ("rc", "sg4", "Sf", "R3g"):  # real, certain; synthetic, guess, quality 4; ...
        position = int(page.url.rsplit("/", 1)[1])
        for key in keys:
            page.keyboard.press(key)
        page.keyboard.press("Enter")
        page.wait_for_url("**/result" if position == 4 else f"**/quiz/{position + 1}")
    assert stored(site) == [(1, 3, None), (0, 1, 4), (0, 2, None), (1, 1, 3)]
    assert page.get_by_role("heading", level=1, name=re.compile(r"\d of 4 right")).is_visible()


def test_by_tab_and_arrows_alone_where_single_keys_are_off_and_the_choice_is_kept(site, open_page):
    page = open_page()
    page.get_by_role("button", name="Start").press("Enter")
    page.wait_for_url("**/quiz/1")
    page.get_by_role("checkbox", name=re.compile("single-key shortcuts")).press("Space")
    page.keyboard.press("r")
    assert page.locator("input:checked:not(#shortcuts)").count() == 0
    page.reload()
    page.keyboard.press("r")
    assert page.locator("input:checked").count() == 0, "still off"
    page.locator("#main").focus()
    for keys in (("Tab", "Space"), ("Tab", "Space", "ArrowRight"), ("Tab", "Space", "ArrowLeft"), ("Tab", "Enter")):
        for key in keys:
            page.keyboard.press(key)
    page.wait_for_url("**/quiz/2")
    assert stored(site) == [(1, 2, 5)]


def test_on_a_narrow_phone_by_touch(site, open_page):
    page = open_page(**PHONE)
    pages = []

    def fits():
        pages.append(page.url)
        assert page.evaluate("document.scrollingElement.scrollWidth") <= 320, page.url
        assert page.evaluate(SMALL_TARGETS) == [], page.url
        wide = "[...document.querySelectorAll('.choice span')].filter((e) => e.scrollWidth > e.clientWidth).length"
        assert page.evaluate(wide) == 0, "a label that sticks out"

    fits()
    page.get_by_role("radio", name="Pathologist").tap()
    page.get_by_role("button", name="Start").tap()
    for position in range(1, 5):
        page.wait_for_url(f"**/quiz/{position}")
        fits()
        page.get_by_role("radio", name="Synthetic").tap()
        page.get_by_role("radio", name="Certain").tap()
        page.get_by_role("radio", name="1 of 5, poor").tap()
        page.get_by_role("button", name="Finish" if position == 4 else "Next").tap()
    page.wait_for_url("**/result")
    fits()
    assert stored(site) == [(0, 3, 1)] * 4 and len(pages) == 6


def test_without_javascript_all_of_it_works(site, open_page):
    page = open_page(java_script_enabled=False)
    page.get_by_role("button", name="Start").click()
    page.get_by_role("button", name="Next").click()
    assert page.url.endswith("/quiz/1"), "required fields hold the form back"
    for position in range(1, 5):
        assert not page.get_by_text("shortcuts").is_visible()
        page.get_by_role("radio", name="Real").check()
        page.get_by_role("radio", name="Guess").check()
        page.get_by_role("button", name="Finish" if position == 4 else "Next").click()
    assert page.url.endswith("/result") and stored(site) == [(1, 1, None)] * 4


def test_the_back_button_and_a_second_click_count_nothing_twice(site, open_page):
    page = open_page()
    page.get_by_role("button", name="Start").click()
    page.wait_for_url("**/quiz/1")
    page.get_by_role("radio", name="Real").check()
    page.get_by_role("radio", name="Certain").check()
    page.get_by_role("button", name="Next").dblclick()
    page.wait_for_url("**/quiz/2")
    page.go_back()
    assert page.get_by_text("You have answered this tile").is_visible()
    assert page.get_by_role("radio", name="Real").is_checked()
    page.get_by_role("radio", name="Guess").check()
    page.get_by_role("button", name="Next").click()
    page.wait_for_url("**/quiz/2")
    assert stored(site) == [(1, 1, None)]
    second = page.context.new_page()
    second.goto(page.url)
    for tab, answer in ((page, "Real"), (second, "Synthetic")):
        tab.get_by_role("radio", name=answer).check()
        tab.get_by_role("radio", name="Certain").check()
        tab.get_by_role("button", name="Next").click()
    assert second.get_by_text("Tile 2 had an answer already").is_visible()
    assert stored(site) == [(1, 1, None), (1, 3, None)]


def test_a_link_on_another_site_leads_back_to_the_same_visit(site, open_page):
    page = open_page()
    page.get_by_role("button", name="Start").click()
    page.wait_for_url("**/quiz/1")
    elsewhere = page.context.new_page()
    elsewhere.goto(f"data:text/html,<a href='{site[1]}'>a quiz</a>")
    elsewhere.get_by_role("link", name="a quiz").click()
    elsewhere.wait_for_url(f"{site[1]}/")
    assert elsewhere.get_by_role("link", name="Go on with tile 1 of 4").is_visible()
    assert page.reload().url.endswith("/quiz/1"), "nor does the link end the visit in the first tab"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast_focus_and_names_on_every_page(site, open_page, scheme):
    page = open_page(color_scheme=scheme)

    def look():
        assert page.evaluate(LOW_CONTRAST) == [], page.url
        assert page.evaluate("document.documentElement.lang") == "en" and page.locator("h1").count() == 1
        unnamed = "[...document.querySelectorAll('img:not([alt]), svg:not([aria-label]):not([aria-hidden])')].length"
        assert page.evaluate(unnamed) == 0
        focused = 0
        for _ in range(40):
            page.keyboard.press("Tab")
            state = page.evaluate("""() => {
              const e = document.activeElement;
              const style = getComputedStyle(e.matches(".choice input") ? e.nextElementSibling : e);
              return [e.tagName, style.outlineStyle, parseFloat(style.outlineWidth)];
            }""")
            if state[0] == "BODY":
                break
            assert state[1] == "solid" and state[2] >= 2, state
            focused += 1
        assert focused >= 3, "something can be focused"
        for control in page.locator("input:not([type=hidden]), button, a, progress").all():
            assert control.evaluate("e => (e.labels?.[0]?.innerText || e.ariaLabel || e.innerText || '').trim()") != ""

    look()
    page.get_by_role("button", name="Start").click()
    for position in range(1, 5):
        page.wait_for_url(f"**/quiz/{position}")
        page.locator("input[value=real]").check()
        page.locator("input[name=sure][value='1']").check()
        look()
        assert page.get_by_role("progressbar", name="Tiles answered").count() == 1
        assert page.get_by_role("group", name="This tile is").count() == 1
        assert page.get_by_role("img", name=re.compile(f"Tile {position}: (lung|brain) tissue")).count() == 1
        page.locator(".go button").click()
    page.wait_for_url("**/result")
    look()


@pytest.mark.parametrize("motion", ["reduce", "no-preference"])
def test_nothing_moves_where_less_motion_is_asked_for(site, open_page, motion):
    page = open_page(reduced_motion=motion)
    moving = page.evaluate("""() => [...document.querySelectorAll("*")].filter((e) => {
      const s = getComputedStyle(e);
      return parseFloat(s.transitionDuration) > 0 || s.animationName !== "none" || s.scrollBehavior === "smooth";
    }).length""")
    assert (moving > 0) == (motion == "no-preference")


def test_the_picture_is_shown_large_and_its_bar_is_as_long_as_it_says(site, open_page):
    page = open_page(viewport={"width": 1280, "height": 800})
    page.get_by_role("button", name="Start").click()
    picture = page.locator(".tile img")
    assert picture.evaluate("e => e.decode().then(() => e.naturalWidth)") == 32
    width = picture.bounding_box()["width"]
    assert 400 < width < 620 and picture.bounding_box()["height"] == pytest.approx(width, abs=1)
    bar = page.locator(".scale rect").evaluate("e => e.getBoundingClientRect().width")
    assert bar == pytest.approx(width * 10 / 32, abs=1) and page.get_by_text("10 µm", exact=True).is_visible()
