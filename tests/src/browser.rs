//! A browser without a window: headless Chromium, told what to do by its DevTools protocol over two pipes, so that nothing listens anywhere.
//!
//! <https://chromedevtools.github.io/devtools-protocol/>: JSON objects, each ended by a NUL.

use std::env;
use std::io::{self, BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{ChildStdin, Command, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::Instant;

use serde_json::{Value, json};
use tempfile::TempDir;
use towpath_perf::lab::Child;

use crate::{Host, PATIENCE};

/// Debian calls it so, others so.
const PROGRAMS: [&str; 2] = ["chromium", "chromium-browser"];

/// What a test of a page needs of it, and nothing that asks anybody outside. Our own namespace is its sandbox.
const ARGUMENTS: [&str; 16] = [
    "--headless=new",
    "--remote-debugging-pipe",
    "--no-sandbox",
    "--no-zygote",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-breakpad",
    "--disable-crash-reporter",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-extensions",
    "--disable-sync",
    "--no-first-run",
    "--hide-scrollbars",
    "--font-render-hinting=none",
    "about:blank",
];

/// Chromium gives up what it fetches when the machine gets a link or an address.
const NETWORK_CHANGED: &str = "net::ERR_NETWORK_CHANGED";

/// One browser with one page. Killed when dropped.
pub struct Browser {
    input: ChildStdin,
    answers: Receiver<Value>,
    calls: u64,
    /// Of the one page.
    session: Option<String>,
    /// What went wrong in the page by itself.
    faults: Vec<String>,
    /// Whether something was not fetched because a link or an address has come meanwhile: a lab is young.
    network_changed: bool,
    _child: Child,
    _home: TempDir,
}

/// A key of the keyboard, as `KeyboardEvent.key` names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Key {
    /// Takes back, closes.
    Escape,
    /// Presses what has the focus.
    Enter,
    /// To what comes next.
    Tab,
    /// Ticks a box.
    Space,
    /// `/`
    Slash,
}

impl Browser {
    /// Starts one on a host, at an empty page of this size in CSS pixels.
    ///
    /// # Panics
    ///
    /// Where there is none, with the package to install; or when it does not answer.
    #[track_caller]
    pub fn start(host: &Host, width: u32, height: u32) -> Browser {
        let program = find().unwrap_or_else(|| panic!("no Chromium here; install it: apt install chromium"));
        let home = tempfile::Builder::new().prefix("towpath-browser-").tempdir().expect("a temporary directory");
        // It takes its orders on descriptor 3 and answers on 4; ours are its standard streams.
        let mut command = Command::new("sh");
        command
            .args(["-c", "exec \"$@\" 3<&0 4>&1 </dev/null >/dev/null 2>&1", "sh"])
            .arg(program)
            .arg(format!("--user-data-dir={}", home.path().display()))
            .args(ARGUMENTS)
            // Neither a profile, a desktop, a time zone nor a language of who runs the test.
            .env_clear()
            .env("PATH", env::var_os("PATH").unwrap_or_default())
            .env("HOME", home.path())
            .env("TZ", "UTC")
            .env("LANG", "C.UTF-8")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        let mut child = host.spawn(command).unwrap_or_else(|error| panic!("chromium: {error}"));
        let input = child.process().stdin.take().expect("it is a pipe");
        let output = child.process().stdout.take().expect("it is a pipe");
        let (sender, answers) = mpsc::channel();
        // It ends with the browser.
        thread::spawn(move || {
            for message in BufReader::new(output).split(0) {
                let Ok(message) = message else { return };
                let Ok(value) = serde_json::from_slice(&message) else { return };
                if sender.send(value).is_err() {
                    return;
                }
            }
        });
        let mut browser = Browser {
            input,
            answers,
            calls: 0,
            session: None,
            faults: Vec::new(),
            network_changed: false,
            _child: child,
            _home: home,
        };
        let target = browser.call("Target.createTarget", json!({ "url": "about:blank" }))["targetId"].clone();
        let attached = browser.call("Target.attachToTarget", json!({ "targetId": target, "flatten": true }));
        browser.session = Some(attached["sessionId"].as_str().expect("a session").to_owned());
        for domain in ["Page", "Runtime", "Log", "Accessibility"] {
            browser.call(&format!("{domain}.enable"), json!({}));
        }
        browser.size(width, height, false);
        browser
    }

    /// Goes to an address, and returns when all that its page names is there.
    ///
    /// # Panics
    ///
    /// When it cannot be reached.
    #[track_caller]
    pub fn go(&mut self, address: &str) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            self.network_changed = false;
            let gone = self.call("Page.navigate", json!({ "url": address }));
            match gone.get("errorText").and_then(Value::as_str) {
                None => drop(self.until("the page is there", "document.readyState === 'complete'")),
                Some(NETWORK_CHANGED) => self.network_changed = true,
                Some(error) => panic!("{address}: {error}"),
            }
            if !self.network_changed {
                return;
            }
            assert!(Instant::now() < deadline, "{address}: {NETWORK_CHANGED}");
        }
    }

    /// Loads the page once more, and returns when all that the new one names is there: the old one answers until then.
    ///
    /// # Panics
    ///
    /// When it does not come.
    #[track_caller]
    pub fn reload(&mut self) {
        self.value("window.isOld = true");
        self.call("Page.reload", json!({}));
        self.until("the page once more", "!window.isOld && document.readyState === 'complete'");
    }

    /// The page gets this size in CSS pixels; `phone`: as a phone has them, two by two of the screen for each.
    ///
    /// # Panics
    ///
    /// When the browser does not answer.
    #[track_caller]
    pub fn size(&mut self, width: u32, height: u32, phone: bool) {
        let density = if phone { 2 } else { 1 };
        let metrics = json!({ "width": width, "height": height, "deviceScaleFactor": density, "mobile": phone });
        self.call("Emulation.setDeviceMetricsOverride", metrics);
    }

    /// What the system prefers: dark, else light.
    ///
    /// # Panics
    ///
    /// When the browser does not answer.
    #[track_caller]
    pub fn prefer_dark(&mut self, dark: bool) {
        let value = if dark { "dark" } else { "light" };
        let features = json!({ "features": [{ "name": "prefers-color-scheme", "value": value }] });
        self.call("Emulation.setEmulatedMedia", features);
    }

    /// Certificates are taken whoever has signed them.
    ///
    /// # Panics
    ///
    /// When the browser does not answer.
    #[track_caller]
    pub fn trust_everybody(&mut self) {
        self.call("Security.setIgnoreCertificateErrors", json!({ "ignore": true }));
    }

    /// The value of an expression, waited for where it is a promise.
    ///
    /// # Panics
    ///
    /// When it throws.
    #[track_caller]
    pub fn value(&mut self, expression: &str) -> Value {
        self.try_value(expression).unwrap_or_else(|error| panic!("{expression}: {error}"))
    }

    /// The same, or what it threw.
    fn try_value(&mut self, expression: &str) -> Result<Value, String> {
        let asked = json!({ "expression": expression, "returnByValue": true, "awaitPromise": true });
        // Between two documents there is none to ask.
        let answer = self.try_call("Runtime.evaluate", asked)?;
        match answer.get("exceptionDetails") {
            None => Ok(answer["result"]["value"].clone()),
            Some(thrown) => Err(thrown["exception"]["description"].as_str().unwrap_or("thrown").to_owned()),
        }
    }

    /// Waits until an expression is true, and returns its value.
    ///
    /// # Panics
    ///
    /// When it does not become so, with what the page shows instead.
    #[track_caller]
    pub fn until(&mut self, what: &str, expression: &str) -> Value {
        let deadline = Instant::now() + PATIENCE;
        let expression = format!("(() => {{ const it = {expression}; return it; }})()");
        loop {
            let is_true =
                |value: &Value| !matches!(value, Value::Null | Value::Bool(false)) && value != "" && value != 0;
            if let Ok(value) = self.try_value(&expression)
                && is_true(&value)
            {
                return value;
            }
            if Instant::now() >= deadline {
                let shown = self.try_value("document.body.innerText").unwrap_or_default();
                panic!("waited {PATIENCE:?} for: {what}\n{}\n{:?}", shown.as_str().unwrap_or_default(), self.faults);
            }
            thread::sleep(std::time::Duration::from_millis(20));
        }
    }

    /// The text of the first element, as it is shown.
    ///
    /// # Panics
    ///
    /// When there is none.
    #[track_caller]
    pub fn text(&mut self, selector: &str) -> String {
        let text = self.value(&format!("document.querySelector({}).innerText", quoted(selector)));
        text.as_str().unwrap_or_default().to_owned()
    }

    /// Clicks on the middle of the first element that is shown, with a mouse: what lies over it gets the click.
    ///
    /// # Panics
    ///
    /// When none comes to be shown, or something else lies there.
    #[track_caller]
    pub fn click(&mut self, selector: &str) {
        let quoted = quoted(selector);
        let place = self.until(
            &format!("{selector} can be clicked"),
            &format!(
                "(() => {{
                    const it = [...document.querySelectorAll({quoted})].find((each) => each.checkVisibility());
                    if (!it || it.disabled) return null;
                    it.scrollIntoView({{ block: 'center', behavior: 'instant' }});
                    const box = it.getBoundingClientRect();
                    const [x, y] = [box.x + box.width / 2, box.y + box.height / 2];
                    const top = document.elementFromPoint(x, y);
                    return it === top || it.contains(top) || top?.control === it ? [x, y] : null;
                }})()"
            ),
        );
        for kind in ["mousePressed", "mouseReleased"] {
            let event =
                json!({ "type": kind, "x": place[0], "y": place[1], "button": "left", "buttons": 1, "clickCount": 1 });
            self.call("Input.dispatchMouseEvent", event);
        }
    }

    /// Writes text into the first element, in place of what is there.
    ///
    /// # Panics
    ///
    /// As [`Browser::click`].
    #[track_caller]
    pub fn write(&mut self, selector: &str, text: &str) {
        self.click(selector);
        self.value("document.activeElement.select()");
        self.call("Input.insertText", json!({ "text": text }));
    }

    /// Chooses an option of a list by its value.
    ///
    /// # Panics
    ///
    /// When there is none.
    #[track_caller]
    pub fn choose(&mut self, selector: &str, value: &str) {
        let chosen = self.value(&format!(
            "(() => {{
                const list = document.querySelector({});
                list.value = {};
                list.dispatchEvent(new Event('input', {{ bubbles: true }}));
                list.dispatchEvent(new Event('change', {{ bubbles: true }}));
                return list.value;
            }})()",
            quoted(selector),
            quoted(value)
        ));
        assert_eq!(chosen, value, "{selector}");
    }

    /// Presses a key where the focus is.
    ///
    /// # Panics
    ///
    /// When the browser does not answer.
    #[track_caller]
    pub fn press(&mut self, key: Key) {
        let (name, code, number, text) = match key {
            Key::Escape => ("Escape", "Escape", 27, ""),
            Key::Enter => ("Enter", "Enter", 13, "\r"),
            Key::Tab => ("Tab", "Tab", 9, ""),
            Key::Space => (" ", "Space", 32, " "),
            Key::Slash => ("/", "Slash", 191, "/"),
        };
        for kind in ["keyDown", "keyUp"] {
            let text = if kind == "keyDown" { text } else { "" };
            let event = json!({
                "type": kind, "key": name, "code": code, "windowsVirtualKeyCode": number, "nativeVirtualKeyCode": number, "text": text
            });
            self.call("Input.dispatchKeyEvent", event);
        }
    }

    /// What a screen reader is told: role and name of everything that is not left out, in order.
    ///
    /// # Panics
    ///
    /// When the browser does not answer.
    #[track_caller]
    pub fn spoken(&mut self) -> Vec<(String, String)> {
        let tree = self.call("Accessibility.getFullAXTree", json!({}));
        let nodes = tree["nodes"].as_array().expect("a list of nodes");
        let heard = nodes.iter().filter(|node| node["ignored"] == false);
        let word = |value: &Value| value["value"].as_str().unwrap_or_default().to_owned();
        heard.map(|node| (word(&node["role"]), word(&node["name"]))).collect()
    }

    /// A picture of what is shown (PNG), or of the whole page.
    ///
    /// # Panics
    ///
    /// When the browser does not answer.
    #[track_caller]
    pub fn picture(&mut self, whole_page: bool) -> Vec<u8> {
        let asked = json!({ "format": "png", "captureBeyondViewport": whole_page });
        let data = self.call("Page.captureScreenshot", asked)["data"].clone();
        from_base64(data.as_str().expect("a picture"))
    }

    /// Exceptions, errors and refusals by the Content-Security-Policy since the start; answers with an error status are none.
    pub fn faults(&mut self) -> &[String] {
        while let Ok(message) = self.answers.try_recv() {
            self.hear(&message);
        }
        &self.faults
    }

    #[track_caller]
    fn call(&mut self, method: &str, parameters: Value) -> Value {
        self.try_call(method, parameters).unwrap_or_else(|error| panic!("{method}: {error}"))
    }

    #[track_caller]
    fn try_call(&mut self, method: &str, parameters: Value) -> Result<Value, String> {
        self.calls += 1;
        let mut asked = json!({ "id": self.calls, "method": method, "params": parameters });
        if let Some(session) = &self.session {
            asked["sessionId"] = session.as_str().into();
        }
        let mut message = asked.to_string().into_bytes();
        message.push(0);
        self.send(&message).unwrap_or_else(|error| panic!("{method}: the browser has ended: {error}"));
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.answers.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(mut answer) if answer["id"] == self.calls => {
                    return match answer.get("error") {
                        Some(error) => Err(error["message"].as_str().unwrap_or_default().to_owned()),
                        None => Ok(answer["result"].take()),
                    };
                }
                Ok(other) => self.hear(&other),
                Err(RecvTimeoutError::Timeout) => panic!("{method}: the browser does not answer within {PATIENCE:?}"),
                Err(RecvTimeoutError::Disconnected) => panic!("{method}: the browser has ended"),
            }
        }
    }

    fn send(&mut self, message: &[u8]) -> io::Result<()> {
        self.input.write_all(message)?;
        self.input.flush()
    }

    fn hear(&mut self, message: &Value) {
        let told = &message["params"];
        match message["method"].as_str() {
            Some("Runtime.exceptionThrown") => {
                self.faults.push(told["exceptionDetails"].to_string());
            }
            Some("Runtime.consoleAPICalled") if told["type"] == "error" => self.faults.push(told["args"].to_string()),
            // The page tells itself of answers that it does not like, and of those that never came.
            Some("Log.entryAdded") if told["entry"]["level"] == "error" && told["entry"]["source"] != "network" => {
                self.faults.push(told["entry"].to_string());
            }
            Some("Log.entryAdded") => {
                let text = told["entry"]["text"].as_str().unwrap_or_default();
                self.network_changed |= text.contains(NETWORK_CHANGED);
            }
            _ => {}
        }
    }
}

fn find() -> Option<PathBuf> {
    let path = env::var_os("PATH")?;
    env::split_paths(&path).flat_map(|folder| PROGRAMS.map(|name| folder.join(name))).find(|file| file.is_file())
}

/// A string of JSON is one of JavaScript.
fn quoted(text: &str) -> String {
    Value::from(text).to_string()
}

/// RFC 4648 §4.
fn from_base64(text: &str) -> Vec<u8> {
    let digit = |byte: u8| match byte {
        b'A'..=b'Z' => byte - b'A',
        b'a'..=b'z' => byte - b'a' + 26,
        b'0'..=b'9' => byte - b'0' + 52,
        b'+' => 62,
        _ => 63,
    };
    let mut plain = Vec::with_capacity(text.len() / 4 * 3);
    for group in text.trim_end_matches('=').as_bytes().chunks(4) {
        let bits =
            group.iter().fold(0_u32, |bits, &byte| bits << 6 | u32::from(digit(byte))) << (6 * (4 - group.len()));
        plain.extend_from_slice(&bits.to_be_bytes()[1..group.len()]);
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_as_in_rfc_4648() {
        for (text, plain) in [("", ""), ("Zg==", "f"), ("Zm8=", "fo"), ("Zm9v", "foo"), ("Zm9vYmFy", "foobar")] {
            assert_eq!(from_base64(text), plain.as_bytes(), "{text}");
        }
        assert_eq!(from_base64("+/+/"), [0xfb, 0xff, 0xbf]);
    }
}
