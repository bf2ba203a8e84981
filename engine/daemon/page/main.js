// The page as a whole: who is logged in, when the daemon is asked, and what is said beside its answers.

import * as api from "./api.js";
import { element, say, set } from "./dom.js";
import { History } from "./history.js";
import { Orders } from "./orders.js";
import { panels } from "./panels.js";
import { Services } from "./services.js";
import { countdown, eventParts, serviceState, span, utc } from "./words.js";

/** Between two questions to the daemon; after a second one without an answer each takes twice as long as the last, up to the limit. */
const ASK_EVERY_MS = 2_000;
const ASK_EVERY_MS_MAX = 8_000;
/** With so many services an answer is megabytes: it is asked for less often. */
const SERVICES_MANY = 200;
const ASK_EVERY_MS_MANY = 6_000;
/** From so many questions without an answer on, what is shown is old and nothing is ordered. */
const STALE_FAILURES = 2;
/** Limits and certificates are asked for with every so many answers: they fill and end slowly. */
const SLOW_EVERY = 5;
/** Who uses the page tells the daemon so often at most. */
const TOUCH_EVERY_MS = 30_000;
/** So long before the session ends for want of use its user is asked, and told before it ends anyway; of a short one a quarter of it. */
const IDLE_WARNING_MS = 60_000;
const END_WARNING_MS = 300_000;
/** Notices that need no answer go by themselves, once the pointer and the focus are elsewhere. */
const NOTICE_MS = 10_000;

const get = (id) => document.querySelector(`#${id}`);

const history = new History();
/** The last answer, and when it came by the clock of this page (`performance.now`). */
let status = null;
let limits = [];
let certificates = [];
let answers = 0;
let answeredAt = 0;
/** Who is logged in, and by when the session is over. */
let session = null;
let idleUntil = Infinity;
let sessionUntil = Infinity;
let idleWarningMs = IDLE_WARNING_MS;
let touchedAt = 0;
/** The one question that is waited for next. */
let timer = 0;
/** Which question is the latest: the answer to an older one counts no more. */
let asked = 0;
let failures = 0;
let lastEvent = null;

const orders = new Orders({ status: () => status, done: told, lost });
const services = new Services((verb, server) => orders.press(verb, server));
const views = panels();

/** Light, dark or as the system; theme.js reads it the next time. It says nothing about the balancer. */
function theme(word) {
  set(document.documentElement, "data-theme", word === "auto" ? null : word);
  try {
    localStorage.setItem("towpath-theme", word);
  } catch {
    // A browser that stores nothing keeps it until the page is left.
  }
}

// ---- who is there

async function begin() {
  try {
    enter(await api.session());
  } catch (refusal) {
    if (refusal.status === 401) return showLogin();
    notice("connection", `${refusal.message}; trying again`, "bad");
    timer = setTimeout(begin, ASK_EVERY_MS);
  }
}

function enter(next) {
  adopt(next);
  notice("connection", null);
  say(get("who"), next.user ? `${next.user} (${next.role})` : "");
  set(get("logout"), "hidden", !next.user);
  set(get("login"), "hidden", true);
  set(get("overview"), "hidden", false);
  set(get("sections"), "hidden", false);
  ask();
}

/** Takes over who is logged in and for how long. */
function adopt(next) {
  session = next;
  touchedAt = performance.now();
  const until = (seconds) => (seconds === null || seconds === undefined ? Infinity : touchedAt + seconds * 1000);
  idleUntil = until(next.idle_seconds_left);
  sessionUntil = until(next.seconds_left);
  idleWarningMs = Math.min(IDLE_WARNING_MS, (idleUntil - touchedAt) / 4);
}

function showLogin() {
  const why = sessionStorage.getItem("towpath-why");
  sessionStorage.removeItem("towpath-why");
  say(get("login-why"), why ?? "");
  set(get("login-why"), "hidden", !why);
  set(get("overview"), "hidden", true);
  set(get("login"), "hidden", false);
  document.title = "Log in · Towpath";
  get("login-user").focus();
}

async function logIn(event) {
  event.preventDefault();
  const [user, password, error] = [get("login-user"), get("login-password"), get("login-error")];
  set(error, "hidden", true);
  const button = event.target.querySelector("button");
  button.disabled = true;
  try {
    const next = await api.login(user.value, password.value);
    password.value = "";
    enter(next);
    get("services").focus({ preventScroll: true });
  } catch (refusal) {
    const wait = refusal.retryAfterS === null ? "" : `; try again in ${span(refusal.retryAfterS * 1000)}`;
    say(error, `${refusal.message}${wait}`);
    set(error, "hidden", false);
    password.value = "";
    password.focus();
  } finally {
    button.disabled = false;
  }
}

/** Leaves nothing of what was shown behind. */
function leave(why) {
  clearTimeout(timer);
  sessionStorage.setItem("towpath-why", why);
  location.reload();
}

async function logOut() {
  try {
    await api.logout();
  } catch (refusal) {
    if (refusal.status !== 401) return notice("connection", `not logged out: ${refusal.message}`, "bad");
  }
  leave("You are logged out.");
}

/** Whether a refusal was the end of the session. */
function lost(refusal) {
  if (refusal.status !== 401) return false;
  const idle = performance.now() >= idleUntil - 1000;
  leave(idle ? "You were logged out because the page was not used." : "Your session is over.");
  return true;
}

/** Whoever presses a key or a button uses the page. */
async function touch() {
  if (!session || get("idle").open || performance.now() - touchedAt < TOUCH_EVERY_MS) return;
  touchedAt = performance.now();
  await stay();
}

async function stay() {
  try {
    adopt(await api.session());
  } catch (refusal) {
    if (lost(refusal)) return;
    say(get("idle-error"), `It could not be said: ${refusal.message}.`);
    set(get("idle-error"), "hidden", false);
  }
}

function watchSession() {
  if (!session) return;
  const now = performance.now();
  const dialog = get("idle");
  const idleLeft = idleUntil - now;
  if (idleLeft <= idleWarningMs && idleUntil < sessionUntil) {
    say(get("idle-left"), countdown(idleLeft));
    if (!dialog.open) {
      set(get("idle-error"), "hidden", true);
      dialog.showModal();
    }
  } else if (dialog.open) {
    dialog.close();
  }
  const left = sessionUntil - now;
  const near = left <= END_WARNING_MS;
  notice("session", near ? "Your session ends soon; log in again then." : null, "warn", [], near ? `${countdown(left)} left` : "");
}

// ---- the daemon's answers

async function ask() {
  clearTimeout(timer);
  const mine = ++asked;
  try {
    // One of these that fails leaves its last answer; what status says is shown all the same.
    const orBefore = (question, before) => question.catch(() => before);
    const isDue = answers % SLOW_EVERY === 0;
    const slow = isDue
      ? [orBefore(api.limits(), limits), orBefore(api.certificates(), certificates)]
      : [limits, certificates];
    const [next, ...nextSlow] = await Promise.all([api.status(), ...slow]);
    // Another question was asked meanwhile, which goes on from here.
    if (mine !== asked) return;
    [status, [limits, certificates]] = [next, nextSlow];
    answers += 1;
    answeredAt = performance.now();
    failures = 0;
    notice("connection", null);
    history.take(next);
    announce(next);
    render();
  } catch (refusal) {
    if (mine !== asked || lost(refusal)) return;
    failures += 1;
    notice("connection", refusal.status === 0 ? "The daemon does not answer." : refusal.message, "bad", [], age());
    render();
  }
  const usualMs = status && status.services.length > SERVICES_MANY ? ASK_EVERY_MS_MANY : ASK_EVERY_MS;
  const waitMs = failures > 0 ? Math.min(ASK_EVERY_MS * 2 ** (failures - 1), ASK_EVERY_MS_MAX) : usualMs;
  // A page that nobody sees asks nothing until it is looked at again.
  if (!document.hidden) timer = setTimeout(ask, waitMs);
}

/** How old is what is shown. */
function age() {
  return status ? `What you see is ${span(performance.now() - answeredAt)} old.` : "";
}

function render() {
  const stale = failures >= STALE_FAILURES;
  set(document.body, "data-stale", stale);
  const shown = get("notice-connection")?.querySelector(".figures");
  if (shown) say(shown, age());
  if (!status) return;
  // Of what nobody has confirmed the clocks stand still.
  const passedMs = stale ? 0 : performance.now() - answeredAt;
  const nowMs = status.unix_ms + passedMs;
  const may = session?.page === "full" && session.role !== "viewer";
  const context = { status, limits, certificates, history, nowMs, passedMs, may, stale };
  const role = status.role === "standby" ? `${status.phase}, standby` : status.phase;
  say(get("daemon"), `${status.version} · ${role} for ${span(status.uptime_seconds * 1000 + passedMs)}`);
  say(get("clock"), utc(nowMs));
  services.update(context);
  views.update(context);
  const down = status.services.filter((service) => serviceState(service).word !== "up").length;
  document.title = down > 0 ? `(${down} not up) Towpath` : "Towpath";
}

/** Tells those who do not see the page what has changed. */
function announce({ events }) {
  const newest = events.at(-1)?.id ?? 0;
  // One that was started anew counts from the beginning.
  const fresh = lastEvent === null || newest < lastEvent ? [] : events.filter((event) => event.id > lastEvent);
  lastEvent = newest;
  if (fresh.length === 0) return;
  const lines = fresh.slice(-3).map((event) => Object.values(eventParts(event)).filter((part) => part !== "").join(": "));
  say(get("news"), lines.join(". "));
}

// ---- notices

/**
 * One notice per subject; null takes it away. `actions` are `[words, what]`. `figure` is what changes all the time: it is shown beside the words, and
 * not read out.
 */
function notice(subject, words, tone = "warn", actions = [], figure = "") {
  const id = `notice-${subject}`;
  const there = get(id);
  if (words === null) return there?.remove();
  if (there && there.dataset.tone === tone && actions.length === 0) {
    say(there.firstChild, words);
    return say(there.querySelector(".figures"), figure);
  }
  const buttons = actions.map(([label, what]) => element("button", { type: "button", onclick: what }, label));
  const node = element("div", { id, class: "notice", "data-tone": tone }, element("span", {}, words), element("span", { class: "figures", "aria-hidden": "true" }, figure), ...buttons);
  if (there) there.replaceWith(node);
  else get("notices").append(node);
}

let goneTimer = 0;

/** After an order: what it did, and how to take it back. */
function told(words, undo, tone) {
  clearTimeout(goneTimer);
  const close = () => notice("order", null);
  const back = () => {
    close();
    undo();
  };
  notice("order", words, tone, [...(undo ? [["Undo", back]] : []), ["Close", close]]);
  const goWhenLeft = () => {
    const node = get("notice-order");
    if (node?.matches(":hover, :focus-within")) goneTimer = setTimeout(goWhenLeft, NOTICE_MS);
    else close();
  };
  if (tone === "good") goneTimer = setTimeout(goWhenLeft, NOTICE_MS);
  ask();
}

// ---- begin

// theme.js has set it already.
get("theme").value = document.documentElement.dataset.theme ?? "auto";
get("theme").addEventListener("change", (event) => theme(event.target.value));
get("login-form").addEventListener("submit", logIn);
get("logout").addEventListener("click", logOut);
get("idle-out").addEventListener("click", logOut);
get("idle-stay").addEventListener("click", stay);
get("idle").addEventListener("cancel", (event) => {
  event.preventDefault();
  stay();
});
document.addEventListener("keydown", (event) => {
  touch();
  const writes = event.target.matches?.("input:not([type=checkbox]), select");
  if (event.key === "/" && !writes && !document.querySelector("dialog[open]") && !event.ctrlKey && !event.altKey && !event.metaKey) {
    event.preventDefault();
    get("filter").focus();
  }
});
document.addEventListener("pointerdown", touch);
// Where rows are cards nobody sees the heads of the table: the list beside the filter sorts.
const narrow = matchMedia("(max-width: 56rem)");
const narrowed = () => document.querySelectorAll("th[data-sort] button").forEach((each) => set(each, "disabled", narrow.matches));
narrow.addEventListener("change", narrowed);
narrowed();
document.addEventListener("visibilitychange", () => {
  if (!document.hidden && session) ask();
});
setInterval(() => {
  watchSession();
  if (session && !document.hidden) render();
}, 1000);

begin();
