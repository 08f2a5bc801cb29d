"""
The page of demo.py in a real browser: it types, clicks and reads, and sees that nothing leaves this machine.

    python -m pytest -n 0 tests/browser_demo.py

It is not among the tests that `python -m pytest` collects, as it needs what few machines have:

    pip install -r requirements-demo.txt pytest pytest-xdist selenium
    apt-get install chromium chromium-driver     # or Google Chrome and its chromedriver
"""

import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import time

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

import demo
import inference
import roberta
from conftest import ROOT

# demo.py, which tells on standard error whom it connects to
SERVER = """
import sys
def watch(event, args):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.sendto") and "127.0.0.1" not in str(args):
        print("LEFT", event, args, file=sys.stderr)
sys.addaudithook(watch)
import demo
demo.main()
"""
FLAGS = ("--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-sync "
         "--disable-background-networking --disable-component-update --window-size=1200,900").split()


@pytest.fixture(autouse=True)
def no_network():
    """conftest.py's refuses this machine, too; here SERVER and the browser's log tell what leaves it."""


@pytest.fixture
def page(base, tmp_path):
    """-> a process of demo.py, and its address."""
    config = dict(num_labels=2, id2label={0: "<b>good</b>", 1: "bad"})
    roberta.ForSequenceClassification.from_pretrained(base["roberta"], **config).save_pretrained(tmp_path)
    inference.open_model(base["roberta"])[1].save(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    start = time.time()
    process = subprocess.Popen([sys.executable, "-c", SERVER, "--checkpoint", base["roberta"], "--classifier",
                                str(tmp_path), "--port", port, "--device", "cpu", "--threads", "1"],
                               cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    line = process.stdout.readline()
    print(f"started in {time.time() - start:.1f} s")
    assert line == f"http://127.0.0.1:{port}   Ctrl-C ends it\n", process.communicate()
    yield process, line.split()[0]
    process.kill()


@pytest.fixture
def browser(tmp_path):
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or shutil.which("google-chrome")
    for flag in (*FLAGS, f"--user-data-dir={tmp_path / 'profile'}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))
    yield driver
    driver.quit()


def visible(browser, selector):
    return [element for element in browser.find_elements(By.CSS_SELECTOR, selector) if element.is_displayed()]


def ask(browser, box, text, answer):
    """Types a text into a box, clicks the button, waits for the answer, a pattern -> what is on the page."""
    field = visible(browser, "textarea")[box]
    field.send_keys(Keys.CONTROL, "a")
    field.send_keys(text)
    visible(browser, "button.submit-button")[0].click()
    return wait(browser, answer)


def wait(browser, answer):
    read = lambda browser: browser.find_element(By.TAG_NAME, "body").text
    WebDriverWait(browser, 60).until(lambda browser: re.search(answer, read(browser)))
    return read(browser)


def tab(browser, name):
    button = "//button[@role='tab'][normalize-space()='%s']" % name
    WebDriverWait(browser, 60).until(lambda browser: browser.find_elements(By.XPATH, button))
    browser.find_element(By.XPATH, button).click()


def requests(browser):
    events = (json.loads(entry["message"])["message"] for entry in browser.get_log("performance"))
    return [event["params"]["request"]["url"] for event in events
            if event["method"] == "Network.requestWillBeSent"]


def test_the_page(page, browser, base):
    process, address = page
    browser.get(address)
    tab(browser, "Fill in")
    hostile = "<img src=x onerror=alert(1)> ${1+1}"
    ask(browser, 0, hostile, "Please write .MASK. where a word is missing")
    text = ask(browser, 0, hostile + " [MASK] film", re.escape(hostile) + r" \S+ film\n")
    [words] = inference.fill(*inference.open_model(base["roberta"]), hostile + " [MASK] film", demo.BARS)
    assert re.findall(r"\d+\.\d%", text) == [f"{p:.1%}" for _, p in words]

    tab(browser, "Classify")
    assert "<b>good</b>" in ask(browser, 0, "lovely", r"\d%")
    ask(browser, 1, "the " * 80, "a row of .* tokens is longer than the model's 62 positions")

    tab(browser, "Compare")
    ask(browser, 0, "a fine film", "most sentences alike")
    field = visible(browser, "textarea")[1]
    assert field.get_attribute("value").count("\n") == 2
    assert ask(browser, 1, "a fine film", "a fine film\n1.000")

    tab(browser, "Attention")
    ask(browser, 0, "fine film", "sums to 1")
    WebDriverWait(browser, 60).until(lambda browser: 16 < len(visible(browser, ".map rect")) <= 14**2)
    before = [square.get_attribute("fill-opacity") for square in visible(browser, ".map rect")]
    visible(browser, "input[type=radio]")[1].click()  # the second layer
    WebDriverWait(browser, 60).until(lambda browser: before != [
        square.get_attribute("fill-opacity") for square in visible(browser, ".map rect")])

    assert not browser.find_elements(By.CSS_SELECTOR, "img[src=x]")
    urls = [url for url in requests(browser) if not url.startswith(("data:", "blob:", "chrome:"))]
    assert urls and all(url.startswith(address) for url in urls)
    assert not [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and (output, errors) == ("", "demo.py: interrupted\n")
