"""The page in a real browser: what it shows, and that everything on it works with mouse and keyboard."""
from __future__ import annotations

import re
import threading
import time
from contextlib import contextmanager

import numpy as np
import pytest
from browser import browser as start_browser
from browser import emulate
from helpers_browser import need_browser
from helpers_daemon import Tap, until
from helpers_http import image_state, photo, shades, web
from helpers_state import vectors
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from edgecl.runtime import http as door
from edgecl.runtime.loop import Loop
from edgecl.runtime.service import Service
from edgecl.runtime.settings import DaemonSettings, SourceSettings
from edgecl.runtime.source_threads import SourceThread

pytestmark = pytest.mark.slow
TOKEN = "x7Hk2mQ9zR4tW8bV1nC5yL3pD6sF0gJa"

CONTRAST = r"""
const parse = text => { const n = text.match(/[\d.]+/g).map(Number); return [n[0], n[1], n[2], n[3] ?? 1]; };
const linear = v => (v /= 255) <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4;
const light = ([r, g, b]) => .2126 * linear(r) + .7152 * linear(g) + .0722 * linear(b);
const behind = element => {
  for (let e = element; e; e = e.parentElement) {
    const colour = parse(getComputedStyle(e).backgroundColor);
    if (colour[3] === 1) return colour;
  }
  return [255, 255, 255, 1];
};
const found = [];
const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (walk.nextNode()) {
  const element = walk.currentNode.parentElement, text = walk.currentNode.textContent.trim();
  if (!text || !element.checkVisibility() || element.closest('.hidden, :disabled')) continue;
  const a = light(parse(getComputedStyle(element).color)), b = light(behind(element));
  found.push([(Math.max(a, b) + .05) / (Math.min(a, b) + .05), text.slice(0, 40)]);
}
return found;
"""


@pytest.fixture(scope="module")
def chromium():
    need_browser()
    with start_browser() as driver:
        yield driver


@pytest.fixture
def browser(chromium):
    """Gives the one browser a size and a scheme; after the test it has forgotten all."""
    @contextmanager
    def window(width=1280, height=900, scheme="light"):
        emulate(chromium, width, height, scheme)
        yield chromium
    yield window
    chromium.get("about:blank")
    chromium.execute_cdp_cmd("Network.clearBrowserCookies", {})
    chromium.execute_cdp_cmd("Network.clearBrowserCache", {})
    chromium.get_log("browser")


@pytest.fixture
def robot(tmp_path):
    """A service on photos with a source that a test sources, and its page."""
    learner = image_state(tmp_path / "state")
    service = Service(learner, DaemonSettings(tmp_path / "state", rounds="off"))
    loop, tap = Loop(service.classifier.classify), Tap()
    source = SourceThread(SourceSettings("camera:tap", "camera"), service.spec, service.hub.say, loop.offer, tap.read)
    loop.follow([source])
    service.sources.follow([source])
    service.start()
    threading.Thread(target=loop.run, daemon=True).start()
    source.start()
    handle = door.start({tmp_path / "state": service}, DaemonSettings(tmp_path / "state", http_listen="127.0.0.1:0"))
    yield handle.url, service, tap, tmp_path
    handle.close()
    source.stop()
    tap.put(None)
    loop.stop()
    assert service.stop(240.0)


def opened(driver, url):
    driver.get(url)
    until(lambda: "generation" in driver.find_element(By.ID, "about").text)
    return lambda css: driver.find_element(By.CSS_SELECTOR, css)


def unsure(service, tap):
    """Show a frame that is put up for review, whatever it is taken for."""
    service._review.reload(1.1)
    tap.put(*shades(85, 1))
    assert until(lambda: service.review()["clusters"])


def samples(service):
    return {each["name"]: each["samples"] for each in service.classes()}


def clean(driver):
    """No error in the console: no script failed, nothing broke the content security policy."""
    return [line["message"] for line in driver.get_log("browser") if line["level"] == "SEVERE"]


def test_it_shows_what_the_camera_sees_and_what_is_known(browser, robot):
    url, _, tap, _ = robot
    with browser() as driver:
        find = opened(driver, url)
        tap.put(*shades(150, 3))
        until(lambda: find(".view .label").text == "light")
        until(lambda: driver.find_elements(By.CSS_SELECTOR, ".view .pane img"))
        assert [each.text for each in driver.find_elements(By.CSS_SELECTOR, "#known h3")] == ["dark", "light"]
        assert "of 200 KB" in find("#bars").text    # no digit of a round number is lost
        assert "of 3 MB" in find("#bars").text
        until(lambda: len(driver.find_elements(By.CSS_SELECTOR, "#known .thumbs img")) == 8)
        assert "KB of 3 MB" in find("#bars").text
        assert len(driver.find_elements(By.CSS_SELECTOR, "#generations li")) == 3
        assert not clean(driver)


def test_nothing_is_proposed_and_what_is_like_it_is_unknown(browser, robot):
    url, service, tap, _ = robot
    with browser() as driver:
        find = opened(driver, url)
        until(lambda: find("#rest").is_displayed())
        find("#nothing").click()
        assert find("#name").get_attribute("value") == "nothing"
        service.learn("nothing", shades(85, 25, 5))
        until(lambda: not find("#rest").is_displayed())
        tap.put(*shades(85, 3))
        until(lambda: find(".view .label").text == "Unknown" and "nothing" in find(".view .meta").text)
        tap.put(*np.zeros((3, 16, 16, 3), np.uint8))
        until(lambda: "the picture is black" in find(".view .meta").text)
        assert find(".view .label").text == "Unknown"
        assert not clean(driver)


def test_files_are_taught_by_the_chooser_and_by_a_drop_on_a_class(browser, robot):
    url, service, _, folder = robot
    for i in range(3):
        (folder / f"{i}.png").write_bytes(photo(85, seed=i))
    (folder / "broken.png").write_bytes(b"no photo")
    with browser() as driver:
        find = opened(driver, url)
        find("#name").send_keys("<b>grey</b>")
        find("#files").send_keys("\n".join(str(folder / f"{i}.png") for i in range(2)))
        until(lambda: "class name" in find("#said").text)      # told, and shown as text
        assert "<b>" in find("#said").text
        find("#name").clear()
        find("#name").send_keys("grey")
        find("#files").send_keys("\n".join(str(folder / f"{name}.png") for name in (0, "broken", 1)))
        until(lambda: re.match(r"Learned 2 samples of grey.*broken\.png", find("#said").text))
        driver.execute_async_script("""
            const done = arguments[arguments.length - 1], files = new DataTransfer();
            const canvas = Object.assign(document.createElement('canvas'), {width: 40, height: 30});
            canvas.toBlob(blob => { files.items.add(new File([blob], 'black.png', {type: 'image/png'}));
              const card = [...document.querySelectorAll('.class')].find(each => each.textContent.includes('dark'));
              card.dispatchEvent(new DragEvent('drop', {dataTransfer: files, bubbles: true, cancelable: true}));
              done(); });""")
        until(lambda: samples(service) == {"dark": 26, "grey": 2, "light": 25})


def test_nearly_the_name_of_a_known_class_asks_first(browser, robot):
    url, service, _, folder = robot
    (folder / "0.png").write_bytes(photo(85, seed=0))
    with browser() as driver:
        find = opened(driver, url)
        find("#name").send_keys("Dark")
        find("#files").send_keys(str(folder / "0.png"))
        until(lambda: find("#ask-text").is_displayed())
        assert "'dark'" in find("#ask-text").text
        ActionChains(driver).send_keys(Keys.ESCAPE).perform()
        until(lambda: "nearly the name" in find("#said").text)
        assert "Dark" not in samples(service)
        find("#files").send_keys(str(folder / "0.png"))
        until(lambda: find("#ask-yes").is_displayed())
        find("#ask-yes").click()
        until(lambda: samples(service).get("Dark") == 1)


@pytest.mark.parametrize("how", ["mouse", "keyboard"])
def test_holding_teaches_what_is_seen_meanwhile(browser, robot, how):
    url, service, tap, _ = robot
    with browser() as driver:
        find = opened(driver, url)
        tap.put(*shades(85, 1))
        until(lambda: not find("#hold").get_attribute("disabled"))
        find("#hold").send_keys("") if how == "keyboard" else find("#hold").click()
        if how == "mouse":
            assert "name of the class" in find("#said").text
        find("#name").send_keys("grey")
        hands, feeding = ActionChains(driver), threading.Event()

        def feed():
            while not feeding.wait(0.1):
                tap.put(*shades(85, 1, seed=int(time.monotonic() * 1000) % 1000))
        thread = threading.Thread(target=feed)
        thread.start()
        if how == "mouse":
            hands.click_and_hold(find("#hold")).pause(1.5).release().perform()
        else:
            hands.send_keys(Keys.TAB).key_down(" ").pause(1.5).key_up(" ").perform()
        feeding.set()
        thread.join()
        until(lambda: re.match(r"Learned \d+ samples? of grey", find("#said").text))
        assert samples(service)["grey"] >= 2
        assert find("#hold-text").text == "Hold to record"


def test_a_frame_is_named_with_one_click(browser, robot):
    url, service, tap, _ = robot
    unsure(service, tap)
    before = samples(service)
    with browser() as driver:
        find = opened(driver, url)
        until(lambda: driver.find_elements(By.CSS_SELECTOR, ".frame > .pic > *"))
        chip = find(".frame .chip")
        name = chip.text
        chip.click()
        until(lambda: not service.review()["clusters"])
        until(lambda: samples(service)[name] == before[name] + 1)
        until(lambda: not find("#review").is_displayed())


def test_going_back_and_forgetting_ask_first(browser, robot):
    url, service, _, _ = robot
    with browser() as driver:
        find = opened(driver, url)
        until(lambda: driver.find_elements(By.CSS_SELECTOR, "[aria-label='Go back to generation 2']"))
        go, yes = "[aria-label='Go back to generation 2']", find("#ask-yes")
        find(go).send_keys(Keys.ENTER)
        assert find("#ask-title").text == "Go back to generation 2?"
        ActionChains(driver).send_keys(Keys.ESCAPE).perform()
        time.sleep(0.3)
        assert service.status()["generation"] == 3
        find(go).click()
        yes.click()
        until(lambda: service.info()["classes"] == ["dark"])
        until(lambda: "is restored" in find("#said").text)
        until(lambda: len(driver.find_elements(By.CSS_SELECTOR, ".class")) == 1)
        find("[aria-label='Forget dark']").click()
        yes.click()
        until(lambda: service.info()["classes"] == [])
        until(lambda: "None yet" in find("#known").text)


def test_the_token_is_asked_for_once(browser, tmp_path):
    with web(tmp_path / "state", token=TOKEN) as (client, _, _, _), browser() as driver:
        url = f"http://127.0.0.1:{client.address[1]}/"
        driver.get(url)
        until(lambda: driver.find_element(By.ID, "login").is_displayed())
        token = driver.find_element(By.ID, "token")
        token.send_keys("wrong" + Keys.ENTER)
        until(lambda: "not the token" in driver.find_element(By.ID, "login-said").text)
        token.clear()
        token.send_keys(TOKEN + Keys.ENTER)
        until(lambda: "2 classes" in driver.find_element(By.ID, "about").text)
        until(lambda: driver.find_element(By.ID, "line").text == "live")
        driver.get(url)
        until(lambda: "2 classes" in driver.find_element(By.ID, "about").text)
        assert not driver.find_element(By.ID, "login").is_displayed()
        assert TOKEN not in str(driver.execute_script("return document.cookie"))
        driver.delete_all_cookies()
        driver.get("about:blank")
        driver.get(f"{url}#token={TOKEN}")
        until(lambda: "2 classes" in driver.find_element(By.ID, "about").text)
        assert TOKEN not in driver.current_url


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_contrast_labels_and_width(browser, robot, scheme, width):
    url, service, tap, _ = robot
    unsure(service, tap)
    with browser(width, 844, scheme) as driver:
        find = opened(driver, url)
        until(lambda: driver.find_elements(By.CSS_SELECTOR, ".frame > .pic > *"))
        until(lambda: find(".view .label").text != "…")
        low = [(round(ratio, 2), text) for ratio, text in driver.execute_script(CONTRAST) if ratio < 4.5]
        assert not low
        assert driver.execute_script("return document.documentElement.scrollWidth") <= width
        unnamed = driver.execute_script("""
            return [...document.querySelectorAll('button, input:not([hidden]), select, img, [role=meter], a')]
              .filter(e => e.checkVisibility() && !(e.textContent.trim() || e.getAttribute('aria-label')
                || e.labels?.length || e.hasAttribute('alt'))).map(e => e.outerHTML)""")
        assert unnamed == []
        small = [each.text for each in driver.find_elements(By.TAG_NAME, "button")
                 if each.is_displayed() and each.size["height"] < 24]
        assert small == []


def test_windows_are_drawn_as_curves(browser, tmp_path):
    with web(tmp_path / "state") as (client, service, loop, taps), browser() as driver:
        threading.Thread(target=loop.run, daemon=True).start()
        for source in service.sources.threads:
            source.start()
        find = opened(driver, f"http://127.0.0.1:{client.address[1]}/")
        taps["tap"].put(*vectors("wasp", 2).astype(np.float32))
        until(lambda: find(".view .label").text == "wasp")
        until(lambda: driver.find_elements(By.CSS_SELECTOR, ".view .pane path"))
        assert find(".view .pane path").get_attribute("d").startswith("M0.00 ")
        assert not clean(driver)
