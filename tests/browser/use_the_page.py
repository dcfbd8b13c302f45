"""Uses the page at the address given, as a person would, and fails with a sentence where it is not as it should be.

ROOMKEEPER_BROWSER_SHOTS names a directory for screenshots; ROOMKEEPER_AXE the file of axe-core, by which the page is
tested for what keeps people out.
"""

import os
import sys
from pathlib import Path

from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

ADDRESS, TOKEN, ROOM = sys.argv[1], os.environ["ROOMKEEPER_BROWSER_TOKEN"], os.environ["ROOMKEEPER_BROWSER_ROOM"]
SHOTS, AXE = os.environ.get("ROOMKEEPER_BROWSER_SHOTS"), os.environ.get("ROOMKEEPER_AXE")
PATIENCE = 60


def browser(width, height, *more):
    options = webdriver.ChromeOptions()
    options.binary_location = "/usr/bin/chromium"
    for word in ("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
                 "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", f"--window-size={width},{height}", *more):
        options.add_argument(word)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    return webdriver.Chrome(options=options, service=Service("/usr/bin/chromedriver"))


class Person:
    def __init__(self, driver):
        self.driver = driver

    def until(self, what, is_so):
        try:
            return WebDriverWait(self.driver, PATIENCE).until(lambda _: is_so())
        except Exception as error:
            self.shot("failed")
            raise AssertionError(f"{what} did not come about. The page says: {self.text()[:2000]}") from error

    def text(self):
        return self.driver.find_element(By.TAG_NAME, "body").text

    def sees(self, words):
        self.until(f"{words!r}", lambda: words in self.text())

    def button(self, words):
        def find():
            return next((b for b in self.driver.find_elements(By.TAG_NAME, "button") if b.text.startswith(words) and b.is_displayed()), None)
        return self.until(f"the button {words!r}", find)

    def press(self, words):
        button = self.button(words)
        self.driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", button)
        button.click()

    def shot(self, name):
        if SHOTS:
            self.driver.save_screenshot(str(Path(SHOTS) / f"{name}.png"))

    def faults(self):
        """What axe-core finds that is serious."""
        if not AXE:
            return []
        # The content policy lets no script in but the page's own; the driver's way in is not the page's.
        self.driver.execute_script(Path(AXE).read_text())
        found = self.driver.execute_async_script("axe.run().then(arguments[0])")
        return [f"{v['id']}: {v['help']}: {v['nodes'][0]['html']}" for v in found["violations"] if v["impact"] in ("serious", "critical")]


def main():
    driver = browser(1280, 900)
    person = Person(driver)
    try:
        driver.get(ADDRESS)
        person.sees("Log in")
        assert "Rooms" not in person.text(), "nothing is shown without a token"
        driver.find_element(By.ID, "token").send_keys("wrong")
        person.press("Log in")
        person.sees("Invalid access token")
        driver.find_element(By.ID, "token").send_keys(TOKEN)
        person.press("Log in")
        person.sees("Garden")
        person.sees("<img src=x onerror")
        person.sees("\\u{202e}")
        assert driver.title == "roomkeeper", f"a room's name ran as a script: {driver.title}"
        assert not driver.find_elements(By.CSS_SELECTOR, "main img"), "a room's name became markup"
        assert driver.find_elements(By.CSS_SELECTOR, "svg.map rect"), "no picture of the space"
        person.shot("rooms")
        faults = person.faults()

        driver.find_element(By.LINK_TEXT, "Garden").click()
        person.sees("Purge the history")
        person.shot("room")
        faults += person.faults()
        driver.find_element(By.XPATH, "//label[contains(., 'local users')]/input").click()
        person.press("Show what would go")
        person.sees("would go")
        person.press("Purge…")
        person.sees("deleted for good")
        person.shot("question")
        person.press("Keep everything")
        person.press("Purge…")
        person.press("Delete ")
        person.sees("complete")
        person.sees("deleted")

        driver.get(ADDRESS + "#jobs")
        person.sees("history purge")
        person.shot("jobs")
        faults += person.faults()
        driver.get(ADDRESS + "#retention")
        person.sees("Retention")
        driver.get(ADDRESS + "#daemon")
        person.sees("roomkeeper)")

        # What fails is said: nothing of this room is that old any more.
        driver.get(ADDRESS + "#room/" + "%21nowhere%3Aexample.org")
        person.sees("Purge the history")
        person.press("Show what would go")
        person.until("a failure that is shown", lambda: "bad" in (driver.find_element(By.ID, "status").get_attribute("class") or ""))

        person.press("Log out")
        person.sees("Log in")
        errors = [entry["message"] for entry in driver.get_log("browser") if "Content Security Policy" in entry["message"]]
        assert not errors, errors
        assert not faults, faults
    finally:
        driver.quit()

    # A phone, in the dark.
    driver = browser(390, 844, "--force-dark-mode")
    person = Person(driver)
    try:
        driver.get(ADDRESS)
        driver.find_element(By.ID, "token").send_keys(TOKEN)
        person.press("Log in")
        person.sees("Garden")
        width = driver.execute_script("return [document.documentElement.scrollWidth, innerWidth]")
        assert width[0] <= width[1] + 1, f"the page is wider than a phone: {width}"
        person.shot("phone")
    finally:
        driver.quit()
    print("the page was used: 1 passed")


main()
