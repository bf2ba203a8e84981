// Everything on the page that is only looked at: sums, what needs attention, certificates, limits, events, workers.

import { attention, LISTED_MAX, serversOf, tally } from "./attention.js";
import { badge, bar, element, following, say, set, sparkline } from "./dom.js";
import { PLACES } from "./history.js";
import { bytes, certificateName, certificateState, clock, counted, eventParts, lastReload, limitName, limitState, limitWords, percent, rate, roleState, serverState, serviceState, socket, span, takenOverWords, thousands, utc } from "./words.js";

/** Limits of services, servers and source addresses that are shown, the fullest first. */
const LIMITS_SHOWN = 12;
/** From such a share of its time on a worker has little left for more. */
const BUSY_HIGH = 0.9;
/** Certificates that are shown, those that end first. */
const CERTIFICATES_SHOWN = 24;
/** Events that are shown until somebody wants more. */
const EVENTS_SHOWN = 12;

const get = (id) => document.querySelector(`#${id}`);

/** All of them; `update(context)` as of the services. */
export function panels() {
  const all = [sums(), attentionPanel(), leaving(), certificates(), limits(), events(), workers(), processPanel()];
  return { update: (context) => all.forEach((panel) => panel(context)) };
}

function sums() {
  const card = (title, ...children) => element("dl", { class: "sum" }, element("dt", {}, title), ...children.map((child) => element("dd", {}, child)));
  const badges = () => {
    const node = element("div");
    return { node, follow: following(node, (state) => state.word.replace(/^[\d,]+ /, ""), () => {
      const one = badge();
      return { nodes: [one.node], update: one.update };
    }) };
  };
  const [services, servers] = [badges(), badges()];
  const figure = () => element("span", { class: "large figures" });
  const [connections, opened, traffic] = [figure(), figure(), figure()];
  const [openedLine, trafficLine] = [sparkline(), sparkline()];
  get("sums").append(
    card("Services", services.node),
    card("Servers", servers.node),
    card("Connections", connections),
    card("New connections", opened, openedLine.node),
    card("Throughput", traffic, trafficLine.node),
  );
  return ({ status, history }) => {
    services.follow(tally(status.services.map(serviceState)));
    servers.follow(tally(serversOf(status).map(serverState)));
    say(connections, thousands(status.services.reduce((sum, service) => sum + service.connections, 0)));
    const courses = history.of("");
    say(opened, courses.opened.length > 0 ? `${rate(courses.opened.at(-1))}/s` : "–");
    say(traffic, courses.bytes.length > 0 ? `${bytes(courses.bytes.at(-1))}/s` : "–");
    openedLine.update(courses.opened, PLACES);
    trafficLine.update(courses.bytes, PLACES);
  };
}

function attentionPanel() {
  const follow = following(get("attention-list"), (item) => `${item.whom} ${item.tone}`, () => {
    const state = badge("lamp");
    const whom = element("strong");
    const why = element("span");
    const node = element("li", {}, state.node, element("span", {}, whom, " – ", why));
    return {
      nodes: [node],
      update(item) {
        state.update(item);
        say(whom, item.whom);
        say(why, item.why);
      },
    };
  });
  return (context) => {
    const items = attention(context);
    set(get("attention"), "hidden", items.length === 0);
    const more = items.length - LISTED_MAX;
    const rest = more > 0 ? [{ tone: "calm", shape: "warning", word: "more", whom: `${thousands(more)} more`, why: "see below" }] : [];
    follow([...items.slice(0, LISTED_MAX), ...rest]);
  };
}

function leaving() {
  const follow = following(get("leaving-list"), (server) => `${server.name} ${server.address} ${server.port}`, () => {
    const node = element("li");
    return {
      nodes: [node],
      update: (server) => say(node, `${server.name} (${socket(server.address, server.port)}): ${counted(server.connections, "connection")}`),
    };
  });
  return ({ status }) => {
    set(get("leaving"), "hidden", status.leaving.length === 0);
    follow(status.leaving);
  };
}

/** A tile: a name and a state, something below. */
function tile(...below) {
  const name = element("span");
  const state = badge("lamp");
  return { name, state, node: element("li", {}, element("div", { class: "top" }, name, state.node), ...below) };
}

function certificates() {
  const key = (row) => `${row.service} ${row.kind} ${row.file} ${row.sha256}`;
  const follow = following(get("certificate-list"), key, () => {
    const [of, until, file] = [element("p", { class: "quiet" }), element("p", { class: "quiet figures" }), element("p", { class: "quiet" })];
    const { name, state, node } = tile(of, until, file);
    return {
      nodes: [node],
      update(row) {
        say(name, certificateName(row));
        state.update(certificateState(row));
        const what = row.kind === "certificate" ? row.key : row.kind;
        say(of, [row.service === null ? "this page and the API" : `service ${row.service}`, what].filter((part) => part !== "").join(" · "));
        say(until, `until ${utc(row.not_after_unix_seconds * 1000)}`);
        say(file, row.file);
      },
    };
  });
  // What ends first stands first.
  return ({ certificates }) => {
    set(get("no-certificates"), "hidden", certificates.length > 0);
    follow(certificates.slice(0, CERTIFICATES_SHOWN));
    const more = certificates.length - CERTIFICATES_SHOWN;
    set(get("more-certificates"), "hidden", more <= 0);
    say(get("more-certificates"), `${thousands(more)} more are good for longer; \`towpath certs\` lists all of them.`);
  };
}

/** A tile with a bar. */
function limitTile(limit) {
  const label = limitName(limit);
  const meter = bar(label);
  const [words, met, remedy] = [element("p", { class: "figures" }), element("p", { class: "quiet figures" }), element("p", { class: "quiet" })];
  const share = element("span", { class: "figures" });
  const node = element("li", {}, element("div", { class: "top" }, element("span", {}, label), share), meter.node, words, met, remedy);
  return {
    nodes: [node],
    update(next) {
      const state = limitState(next);
      const text = limitWords(next);
      meter.update(next.max === 0 ? 0 : next.used / next.max, state.tone, text);
      say(share, percent(next.used, next.max));
      say(words, state.word === "" ? text : `${text}: ${state.word}`);
      set(met, "hidden", !(next.refused > 0));
      say(met, next.refused > 0 ? `met ${counted(next.refused, "time")}` : "");
      set(remedy, "hidden", state.tone === "good");
      say(remedy, next.key === null ? next.remedy : `${next.key}: ${next.remedy}`);
    },
  };
}

function limits() {
  const [follow, followOthers] = ["limit-list", "other-limit-list"].map((id) => following(get(id), limitName, limitTile));
  return ({ limits }) => {
    follow(limits.filter((limit) => limit.subject === null));
    const others = limits.filter((limit) => limit.subject !== null).sort((a, b) => b.percent - a.percent);
    followOthers(others.slice(0, LIMITS_SHOWN));
    set(get("other-limits"), "hidden", others.length === 0);
    const more = others.length - LIMITS_SHOWN;
    set(get("more-limits"), "hidden", more <= 0);
    say(get("more-limits"), `${thousands(more)} more are less full; \`towpath limits\` lists all of them.`);
  };
}

/** States that have a shape of their own, where an event ends in one. */
const EVENT_STATES = {
  up: ["good", "up"],
  down: ["bad", "down"],
  held: ["warn", "held"],
  unknown: ["warn", "unknown"],
  drain: ["calm", "drain"],
  drained: ["calm", "drain"],
  halt: ["calm", "halt"],
  ready: ["good", "up"],
};

function events() {
  let shown = EVENTS_SHOWN;
  let last = null;
  const follow = following(get("event-list"), (event) => `${event.id} ${event.unix_ms}`, () => {
    const time = element("time", { class: "quiet figures" });
    const kind = element("span", { class: "quiet kind" });
    const whom = element("span", { class: "whom" });
    const change = badge("lamp");
    const reason = element("span", { class: "reason" });
    const node = element("li", {}, time, kind, whom, element("span", { class: "change" }, change.node), reason);
    return {
      nodes: [node],
      update({ nowMs, ...event }) {
        const parts = eventParts(event);
        set(time, "datetime", new Date(event.unix_ms).toISOString());
        set(time, "title", utc(event.unix_ms));
        say(time, clock(event.unix_ms, nowMs));
        say(kind, event.kind);
        say(whom, parts.whom);
        const [tone, shape] = EVENT_STATES[event.to] ?? ["none", "none"];
        change.update({ word: parts.change, tone, shape });
        say(reason, parts.why);
      },
    };
  });
  const render = () => {
    if (!last) return;
    const { status, nowMs } = last;
    offerKinds(status.events);
    const [wanted, kind] = [get("event-filter").value.trim().toLowerCase(), get("event-kind").value];
    const found = status.events.filter((event) => {
      const text = [event.kind, ...event.services, event.subject ?? "", event.from, event.to, event.reason].join(" ").toLowerCase();
      return text.includes(wanted) && (kind === "" || event.kind === kind);
    });
    found.reverse();
    follow(found.slice(0, shown).map((event) => ({ ...event, nowMs })));
    set(get("no-events"), "hidden", found.length > 0);
    set(get("event-list"), "hidden", found.length === 0);
    set(get("more-events"), "hidden", found.length <= EVENTS_SHOWN);
    say(get("more-events"), shown > EVENTS_SHOWN ? "Show fewer" : `Show all ${thousands(found.length)}`);
  };
  get("event-filter").addEventListener("input", render);
  get("event-kind").addEventListener("change", render);
  get("more-events").addEventListener("click", () => {
    shown = shown > EVENTS_SHOWN ? EVENTS_SHOWN : Infinity;
    render();
  });
  return (context) => {
    last = context;
    render();
  };
}

/** The kinds that there are, to choose from. */
function offerKinds(all) {
  const choice = get("event-kind");
  const known = new Set([...choice.options].map((option) => option.value));
  for (const kind of new Set(all.map((event) => event.kind))) {
    if (!known.has(kind)) choice.append(element("option", { value: kind }, kind));
  }
}

function workers() {
  const follow = following(get("worker-rows"), (worker) => String(worker.id), () => {
    const head = element("th", { role: "rowheader", scope: "row" });
    const state = badge("lamp");
    const figure = (label) => element("td", { role: "cell", class: "figure", "data-label": label });
    const [cpu, sessions, flows, dropped, generation] = ["CPU", "Sessions", "Flows", "Dropped frames", "Generation"].map(figure);
    const stateCell = element("td", { role: "cell", "data-label": "State" }, state.node);
    const busy = element("span", { class: "figures" });
    const share = bar("");
    const line = sparkline();
    const busyCell = element("td", { role: "cell", "data-label": "Busy" }, element("div", { class: "course" }, busy, share.node, line.node));
    const node = element("tr", { role: "row" }, head, stateCell, busyCell, cpu, sessions, flows, dropped, generation);
    return {
      nodes: [node],
      update({ loads, ...worker }) {
        say(head, `${worker.id}`);
        const serves = worker.state === "serving";
        state.update({ word: worker.state, tone: serves ? "good" : "bad", shape: serves ? "up" : "down" });
        const load = loads.at(-1);
        const words = load === undefined ? "–" : percent(load, 1);
        say(busy, words);
        share.update(load ?? 0, load > BUSY_HIGH ? "warn" : "good", words);
        set(share.node, "aria-label", `Busy: worker ${worker.id}`);
        // Of all its time, so that an idle one is a flat line.
        line.update(loads, PLACES, 1);
        const drops = Object.values(worker.drops).reduce((sum, count) => sum + count, 0);
        const figures = [worker.cpu, worker.sessions, worker.flows, drops, worker.generation];
        [cpu, sessions, flows, dropped, generation].forEach((cell, at) => say(cell, thousands(figures[at])));
      },
    };
  });
  return ({ status, history }) => follow(status.workers.map((worker) => ({ ...worker, loads: history.ofWorker(worker.id) })));
}

/** The process as a whole: what it is, what it runs by, whom it follows. */
function processPanel() {
  const follow = following(get("process-list"), (fact) => fact.name, () => {
    const [name, state, words] = [element("dt"), badge("lamp"), element("span", { class: "figures" })];
    return {
      nodes: [element("div", {}, name, element("dd", {}, state.node, words))],
      update(fact) {
        say(name, fact.name);
        set(state.node, "hidden", !fact.state);
        if (fact.state) state.update(fact.state);
        say(words, fact.words);
      },
    };
  });
  return ({ status, nowMs, passedMs }) => {
    const facts = [
      { name: "Version", words: status.version },
      { name: "Role", state: roleState(status.role), words: "" },
      { name: "Started", words: `${utc(status.started_unix_ms)}, ${span(status.uptime_seconds * 1000 + passedMs)} ago` },
    ];
    if (status.taken_over) facts.push({ name: "Taken over", words: takenOverWords(status.taken_over, nowMs) });
    facts.push({ name: "Generation", words: thousands(status.generation) });
    const reload = lastReload(status.events);
    if (reload) {
      const state = reload.refused ? { word: "refused", tone: "warn", shape: "warning" } : { word: "taken", tone: "good", shape: "up" };
      facts.push({ name: "Last reload", state, words: `${clock(reload.unixMs, nowMs)}: ${reload.words}` });
    } else {
      facts.push({ name: "Last reload", words: "none among the latest events" });
    }
    const pool = status.handshake_pool;
    if (pool) {
      const waiting = `${thousands(pool.running)} of ${counted(pool.cpus.length, "thread")} sign, ${counted(pool.queued, "handshake")} wait${pool.queued === 1 ? "s" : ""}`;
      facts.push({ name: "Handshakes", words: waiting });
    }
    const log = status.access_log;
    if (log) facts.push({ name: "Access log", words: `${counted(log.written, "line")} written, ${thousands(log.dropped + log.failed)} lost` });
    for (const { receiver, delivered, failed, dropped } of status.notify) {
      facts.push({ name: `Told by ${receiver}`, words: `${counted(delivered, "event")}, ${thousands(failed)} failed, ${thousands(dropped)} dropped` });
    }
    follow(facts);
  };
}
