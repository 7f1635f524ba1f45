"""The page on what was taught: classes open into their samples; corrections, doubts and reasons, by mouse and keys."""
from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from helpers_daemon import until
from helpers_http import image_state, photo, shades, web_of
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from test_page import CONTRAST, clean, opened, samples
from test_page import browser as browser
from test_page import chromium as chromium
from test_page import robot as robot

pytestmark = pytest.mark.slow
AXE = os.environ.get("EDGECL_AXE")      # axe.min.js of axe-core: then it judges the page as well


def keys(driver, *pressed, shift=False, control=False):
    hands = ActionChains(driver)
    held = [key for key, down in ((Keys.SHIFT, shift), (Keys.CONTROL, control)) if down]
    for key in held:
        hands.key_down(key)
    hands.send_keys(*pressed)
    for key in held:
        hands.key_up(key)
    hands.perform()


def opens(driver, find, label):
    """Open a class with the keyboard; its tiles, once their pictures are there and the first has the focus."""
    button = find(f"[aria-label='Samples of {label}']")
    driver.execute_script("arguments[0].focus()", button)
    button.send_keys(Keys.ENTER)
    until(lambda: driver.find_elements(By.CSS_SELECTOR, "#tiles .pic img"))
    until(lambda: driver.execute_script("return document.activeElement.matches('.tile:first-child')"))
    return driver.find_elements(By.CSS_SELECTOR, ".tile")


def chosen(driver):
    return driver.execute_script(
        "return [...document.querySelectorAll('[aria-selected=true]')].map(each => each.dataset.id)")


def ids(service, label):
    return [each["id"] for each in service.samples(label)["samples"]]


def test_samples_are_chosen_with_the_mouse_and_moved(browser, robot):
    url, service, _, _ = robot
    with browser() as driver:
        find = opened(driver, url)
        tiles, before = opens(driver, find, "dark"), ids(service, "dark")
        assert [each.get_attribute("data-id") for each in tiles] == before
        tiles[1].click()
        ActionChains(driver).key_down(Keys.SHIFT).click(tiles[4]).key_up(Keys.SHIFT).perform()
        tiles[2].click()
        assert chosen(driver) == [before[1], before[3], before[4]] and find("#chosen").text == "3 selected"
        find("#move").click()
        find("#choose-name").send_keys("dim" + Keys.ENTER)
        until(lambda: samples(service) == {"dark": 22, "dim": 3, "light": 25})
        until(lambda: "Moved 3 samples to dim" in find("#sheet-said").text)
        until(lambda: len(driver.find_elements(By.CSS_SELECTOR, ".tile")) == 22)
        assert chosen(driver) == []
        find("#sheet-said button").click()      # undo
        until(lambda: samples(service) == {"dark": 25, "light": 25})
        until(lambda: len(driver.find_elements(By.CSS_SELECTOR, ".tile")) == 25)
        assert ids(service, "dark") == before
        assert not clean(driver)


def test_the_keyboard_alone_chooses_removes_and_renames(browser, robot):
    url, service, _, _ = robot
    with browser() as driver:
        find = opened(driver, url)
        opens(driver, find, "dark")
        before = ids(service, "dark")
        keys(driver, Keys.ARROW_RIGHT, " ")
        keys(driver, Keys.ARROW_RIGHT, Keys.ARROW_RIGHT, shift=True)
        assert chosen(driver) == before[1:4]
        keys(driver, Keys.ESCAPE)               # first the choice, then the class
        assert chosen(driver) == [] and find("#sheet").is_displayed()
        keys(driver, Keys.END, " ", Keys.HOME, " ")
        assert chosen(driver) == [before[0], before[-1]]
        keys(driver, Keys.DELETE)
        until(lambda: find("#ask-yes").is_displayed())
        keys(driver, Keys.ESCAPE)
        time.sleep(0.3)
        assert samples(service)["dark"] == 25
        find("#remove").send_keys(Keys.ENTER)
        until(lambda: find("#ask-yes").is_displayed())
        find("#ask-yes").send_keys(Keys.ENTER)
        until(lambda: samples(service)["dark"] == 23)
        until(lambda: driver.execute_script("return document.activeElement.matches('.tile:first-child')"))
        keys(driver, "a", control=True)
        until(lambda: len(chosen(driver)) == 23)
        keys(driver, Keys.ESCAPE, Keys.ESCAPE)
        until(lambda: not find("#sheet").is_displayed())
        until(lambda: driver.execute_script(
            "return document.activeElement.getAttribute('aria-label')") == "Samples of dark")
        find("[aria-label='dark: rename']").send_keys(Keys.ENTER)
        until(lambda: find("#choose-name").is_displayed())
        keys(driver, "night", Keys.ENTER)
        until(lambda: samples(service) == {"light": 25, "night": 23})
        until(lambda: "dark is called night now" in find("#said").text)
        assert not clean(driver)


def test_renaming_to_a_known_class_asks_before_two_become_one(browser, robot):
    url, service, _, _ = robot
    with browser() as driver:
        find = opened(driver, url)
        opens(driver, find, "dark")
        for answer in ("", "#ask-yes"):
            find("#sheet-name").click()
            find("#choose-name").clear()
            find("#choose-name").send_keys("light" + Keys.ENTER)
            until(lambda: find("#ask-title").is_displayed())
            assert find("#ask-title").text == "Make dark and light one class?"
            if answer:
                find(answer).click()
            else:
                keys(driver, Keys.ESCAPE)
                time.sleep(0.3)
                assert samples(service) == {"dark": 25, "light": 25}
        until(lambda: samples(service) == {"light": 50})
        until(lambda: find("#sheet-name").text == "light" and len(driver.find_elements(By.CSS_SELECTOR, ".tile")) == 50)


def test_the_last_samples_of_a_class_are_erased_and_the_class_closes(browser, robot):
    url, service, _, _ = robot
    with browser() as driver:
        find = opened(driver, url)
        opens(driver, find, "dark")
        find("#all").click()
        find("#remove").click()
        find("#ask-other").click()
        until(lambda: samples(service) == {"light": 25})
        until(lambda: not find("#sheet").is_displayed())
        until(lambda: re_said(find("#said").text))
        assert {each["generation"] for each in service.history() if each["restorable"] and not each["current"]} <= {1}
        assert not find("#said").find_elements(By.TAG_NAME, "button")       # there is no way back


def re_said(text):
    return "Erased 25 samples" in text and "No sample is left of dark" in text


def test_what_is_in_the_wrong_class_is_found_and_moved_where_it_belongs(browser, robot):
    url, service, _, _ = robot
    service.learn("dark", shades(150, 1, seed=9), "wrong.png")
    with browser() as driver:
        find = opened(driver, url)
        find("#look").click()
        until(lambda: driver.find_elements(By.CSS_SELECTOR, "#suspects .chip"))
        found = driver.find_elements(By.CSS_SELECTOR, "#suspects > li")
        item = next(each for each in found if "wrong.png" in each.text)
        assert "In dark" in item.text
        item.find_element(By.CSS_SELECTOR, ".chip.first").click()
        until(lambda: samples(service) == {"dark": 25, "light": 26})
        until(lambda: "Moved 1 sample to light" in find("#doubts-said").text)
        until(lambda: "wrong.png" not in find("#suspects").text)
        until(lambda: find("#stale").is_displayed())
        assert find("#advice").text
        assert not clean(driver)


def test_an_answer_says_why_and_shows_what_it_is_like(browser, robot):
    url, _, tap, _ = robot
    with browser() as driver:
        find = opened(driver, url)
        tap.put(*shades(150, 3))
        until(lambda: find(".view .label").text == "light")
        button = find("[aria-label='Why? camera']")
        assert button.get_attribute("aria-expanded") == "false"
        button.send_keys(Keys.ENTER)
        until(lambda: len(driver.find_elements(By.CSS_SELECTOR, ".nearest img")) == 3)
        assert {each.text for each in driver.find_elements(By.CSS_SELECTOR, ".nearest bdi")} == {"light"}
        assert find(".tops").text.startswith("light") and button.get_attribute("aria-expanded") == "true"
        assert "of what is known" in find(".why").text
        assert not clean(driver)


def test_nearly_a_known_name_can_be_that_class(browser, robot):
    url, service, _, folder = robot
    for number in range(2):
        (folder / f"{number}.png").write_bytes(photo(20, seed=number))
    with browser() as driver:
        find = opened(driver, url)
        find("#name").send_keys("Dark")
        find("#files").send_keys("\n".join(str(folder / f"{number}.png") for number in range(2)))
        until(lambda: find("#ask-other").is_displayed())
        assert find("#ask-other").text == "It is dark"
        find("#ask-other").click()
        until(lambda: samples(service) == {"dark": 27, "light": 25})
        until(lambda: "Learned 2 samples of dark" in find("#said").text)
        find("#name").clear()
        find("#name").send_keys("dark")
        find("#files").send_keys("\n".join(str(folder / f"{number}.png") for number in range(2)))
        until(lambda: "2 samples of dark already known" in find("#said").text)
        assert samples(service)["dark"] == 27


def test_many_classes_ask_only_for_the_pictures_in_sight(browser, tmp_path):
    learner = image_state(tmp_path / "state", [f"class {number:03d}" for number in range(2)])
    rows = [each.id for each in learner.samples().samples]
    for number in range(2, 60):     # classes of one sample: what counts is their number
        learner.move(rows[number - 2:number - 1], f"class {number:03d}") if number < 20 else learner.learn(
            shades(number * 3, 1, seed=number), f"class {number:03d}")
    with web_of(learner) as (client, _), browser(1280, 700) as driver:
        find = opened(driver, client.url)
        until(lambda: len(driver.find_elements(By.CSS_SELECTOR, ".class")) == 60)
        time.sleep(1)
        asked = driver.execute_script("return performance.getEntriesByType('resource').map(each => each.name)")
        assert sum("/api/exemplars" in each for each in asked) < 20
        opens(driver, find, "class 001")
        keys(driver, Keys.END)      # what is further down comes when it is looked at
        until(lambda: driver.find_elements(By.CSS_SELECTOR, ".tile:last-child img"))
        asked = driver.execute_script("return performance.getEntriesByType('resource').map(each => each.name)")
        assert sum("/api/samples" in each for each in asked) == 1
        assert sum("/api/pictures" in each for each in asked) <= 3


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_long_and_other_names_fit_and_can_be_read(browser, tmp_path, scheme, width):
    learner = image_state(tmp_path / "state", ["dark", "w" * 255])
    learner.rename("dark", "محمد")
    with web_of(learner) as (client, _), browser(width, 844, scheme) as driver:
        find = opened(driver, client.url)
        find("#look").click()
        until(lambda: find("#doubts-found").is_displayed())
        judge(driver, width)
        find(".open").click()
        until(lambda: driver.find_elements(By.CSS_SELECTOR, "#tiles .pic img"))
        find(".tile").click()
        judge(driver, width)
        find("#remove").click()
        judge(driver, width)


def judge(driver, width):
    """Contrast, names, sizes and width; and all that axe knows, if it is there."""
    low = [(round(ratio, 2), text) for ratio, text in driver.execute_script(CONTRAST) if ratio < 4.5]
    assert not low
    assert driver.execute_script("return document.documentElement.scrollWidth") <= width
    assert driver.execute_script("""return [...document.querySelectorAll('dialog[open], .card')]
        .filter(each => each.scrollWidth > each.clientWidth).map(each => each.outerHTML.slice(0, 200))""") == []
    assert driver.execute_script("""
        return [...document.querySelectorAll('button, input:not([hidden]), img, [role=meter], [role=option], a')]
          .filter(e => e.checkVisibility() && !(e.textContent.trim() || e.getAttribute('aria-label')
            || e.labels?.length || e.hasAttribute('alt'))).map(e => e.outerHTML)""") == []
    if AXE:
        driver.execute_script(Path(AXE).read_text(encoding="utf-8"))
        found = driver.execute_async_script("axe.run(document).then(found => arguments[0](found.violations))")
        assert [(each["id"], each["nodes"][0]["html"]) for each in found] == []
